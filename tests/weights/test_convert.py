"""Foreign checkpoints: every layout, every kind of bad file, and both directions of conversion."""

from __future__ import annotations

import argparse
import functools
import json
import os
import pickle
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import save_file

from editar.config import CONFIG_DIR, GPTConfig, RopeConfig, TokenizerConfig, TrainConfig, to_dataclass
from editar.errors import CheckpointError
from editar.models.gpt import GPT
from editar.models.vq import VQModel
from editar.runtime.entry import load_config
from editar.training.optim import make_optimizers
from editar.weights.convert import export_official, gpt_config, import_weights, official_args
from editar.weights.load import OFFICIAL_SIZES, load_gpt, load_vq, read_checkpoint
from tests.helpers import tiny

GOLDEN = tiny.GOLDEN / "release_ckpt"
RELEASE, T2I, VQ = (GOLDEN / name for name in ("editar_release_tiny.pt", "t2i_tiny.pt", "vq_tiny.pt"))
TINY = [
    "experiment=editar_xl", "gpt.dim=16", "gpt.n_layer=2", "gpt.n_head=2", "text.dim=24", "image_size=8",
    "tokenizer.ch=32", "tokenizer.encoder_ch_mult=[1,1]", "tokenizer.decoder_ch_mult=[1,1]",
    "tokenizer.z_channels=16", "tokenizer.codebook_size=64",
]  # fmt: skip


@functools.cache
def config(*more: str) -> TrainConfig:
    return load_config(TrainConfig, "train", ["output_dir=x", *TINY, *more])


def gpt(*more: str) -> GPT:
    return GPT(config(*more).gpt)


def official(path: Path) -> dict[str, Any]:
    with torch.serialization.safe_globals([argparse.Namespace]):
        return torch.load(path, weights_only=True)


def same(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and a == b


# --- layouts, prefixes, dtypes --------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["model", "module", "state_dict", "flat"])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
def test_layouts_and_prefixes(tmp_path: Path, layout: str, prefix: str) -> None:
    plain = official(T2I)["model"]
    state = {prefix + key: value for key, value in plain.items()}
    torch.save(state if layout == "flat" else {layout: state, "epoch": 3}, tmp_path / "w.pt")
    found, info = read_checkpoint(tmp_path / "w.pt")
    assert same(found, plain)
    assert (info.kind, info.layout) == ("gpt_t2i", layout)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_becomes_float32(tmp_path: Path, dtype: torch.dtype) -> None:
    half = {key: value.to(dtype) for key, value in official(T2I)["model"].items()}
    torch.save(half, tmp_path / "w.bin")
    save_file(half, str(tmp_path / "w.safetensors"))
    for name in ("w.bin", "w.safetensors"):
        assert same(read_checkpoint(tmp_path / name)[0], {key: value.float() for key, value in half.items()})


def test_old_torch_format_and_wrong_suffix(tmp_path: Path) -> None:
    plain = official(T2I)["model"]
    torch.save({"model": plain}, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    save_file(plain, str(tmp_path / "really_safetensors.pt"))
    for name in ("old.pt", "really_safetensors.pt"):
        assert same(read_checkpoint(tmp_path / name)[0], plain)


# --- bad files ------------------------------------------------------------------------------------


def bad_files() -> dict[str, tuple[bytes, str]]:
    whole = T2I.read_bytes()
    return {
        "empty.pt": (b"", "the file is empty"),
        "page.pt": (b"\n<!DOCTYPE html><html>Sign in</html>", "this is a web page"),
        "pointer.pt": (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n", "git-lfs pointer"),
        "text.pt": (b"Entry not found", "neither a torch nor a safetensors file"),
        "cut.pt": (whole[: len(whole) // 2], "truncated or damaged"),
        "cut.safetensors": ((600).to_bytes(8, "little") + b'{"a":{"dtype":"F32"', "not a readable safetensors file"),
    }


@pytest.mark.parametrize("name", list(bad_files()))
def test_bad_files_say_what_is_wrong_in_one_line(tmp_path: Path, name: str) -> None:
    content, words = bad_files()[name]
    (tmp_path / name).write_bytes(content)
    model = gpt()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(CheckpointError, match=words) as error:
        load_gpt(model, tmp_path / name)
    assert "\n" not in str(error.value)
    assert str(tmp_path / name) in str(error.value)
    assert same(dict(model.state_dict()), before)


class Evil:
    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, ("touch owned",)


@pytest.mark.parametrize("zipped", [True, False])
def test_malicious_pickle_is_refused_and_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, zipped: bool) -> None:
    monkeypatch.chdir(tmp_path)
    if zipped:
        torch.save({"model": official(T2I)["model"], "args": Evil()}, "evil.pt")
    else:
        Path("evil.pt").write_bytes(pickle.dumps({"model": Evil()}, protocol=2))
    with pytest.raises(CheckpointError, match=r"refused, its pickle wants (posix|nt)\.system") as error:
        read_checkpoint("evil.pt")
    assert "\n" not in str(error.value)
    assert not Path("owned").exists()


def test_other_contents_are_refused(tmp_path: Path) -> None:
    cases = {
        "list": ([torch.zeros(2)], "holds a list"),
        "progress": ({"step": 3, "rng": []}, "no weights found; its entries are step, rng"),
        "other": ({"conv.weight": torch.zeros(2, 2)}, "neither a GPT nor a VQ tokenizer; it holds conv.weight"),
        "c2i": ({"cls_embedding.embedding_table.weight": torch.zeros(2, 2)}, "class-conditional"),
    }
    for name, (value, words) in cases.items():
        torch.save(value, tmp_path / name)
        with pytest.raises(CheckpointError, match=words):
            read_checkpoint(tmp_path / name)
    with pytest.raises(CheckpointError, match=r"no model.safetensors"):
        read_checkpoint(tmp_path)
    with pytest.raises(CheckpointError, match=r"no such file.*fetch_weights.py vq_ds16_t2i"):
        read_checkpoint(tmp_path / "vq_ds16_t2i.pt")


# --- kinds and sizes ------------------------------------------------------------------------------


def test_kinds_and_sizes_of_the_golden_files() -> None:
    _, release = read_checkpoint(RELEASE)
    assert release.kind == "gpt_editar"
    assert release.sizes == {
        "dim": 16, "n_layer": 2, "n_head": None, "vocab_size": 64, "text_dim": 24, "null_text_rows": 120,
        "grid": 4, "teacher_dim": 768,
    }  # fmt: skip
    assert release.training["steps"] == 2 and release.training["args"]["gpt_model"] == "GPT-tiny"
    _, t2i = read_checkpoint(T2I)
    assert (t2i.kind, t2i.sizes["grid"], t2i.sizes["teacher_dim"]) == ("gpt_t2i", None, None)
    _, vq = read_checkpoint(VQ)
    golden = json.loads((GOLDEN / "config.json").read_text())["vq"]
    assert vq.kind == "vq"
    assert vq.sizes == {
        "ch": golden["ch"], "encoder_ch_mult": [1, 1], "decoder_ch_mult": [1, 1],
        "num_res_blocks": golden["num_res_blocks"], "z_channels": golden["z_channels"],
        "codebook_size": golden["codebook_size"], "codebook_dim": golden["codebook_embed_dim"],
    }  # fmt: skip


def test_vq_sizes_of_unequal_levels(tmp_path: Path) -> None:
    cfg = TokenizerConfig(
        ch=8, norm_groups=4, encoder_ch_mult=[1, 2, 4], decoder_ch_mult=[1, 1, 3], num_res_blocks=1, codebook_size=32
    )
    torch.save(VQModel(cfg).state_dict(), tmp_path / "vq.pt")
    sizes = read_checkpoint(tmp_path / "vq.pt")[1].sizes
    assert sizes == {key: getattr(cfg, key) for key in sizes}


def test_official_sizes_are_the_gpt_configs() -> None:
    for name, (dim, layers, heads) in OFFICIAL_SIZES.items():
        yaml = OmegaConf.load(CONFIG_DIR / "gpt" / f"{name}.yaml")
        assert (yaml.dim, yaml.n_layer, yaml.n_head) == (dim, layers, heads)


def fake_gpt(cfg: GPTConfig, path: Path) -> Path:
    """A checkpoint of any size without its bytes: every tensor is one stored number, expanded."""
    with torch.device("meta"):
        shapes = {key: value.shape for key, value in GPT(cfg).state_dict().items()}
    torch.save({"model": {key: torch.zeros(()).expand(shape) for key, shape in shapes.items()}}, path)
    return path


@pytest.mark.parametrize("name", list(OFFICIAL_SIZES))
def test_wrong_size_names_the_config_that_fits(tmp_path: Path, name: str) -> None:
    dim, layers, heads = OFFICIAL_SIZES[name]
    path = fake_gpt(
        GPTConfig(dim=dim, n_layer=layers, n_head=heads, vocab_size=64, grid=4, text_dim=24), tmp_path / "w.pt"
    )
    assert read_checkpoint(path)[1].sizes["n_head"] == heads
    with pytest.raises(CheckpointError, match=f"and [0-9]+ more; these weights need gpt={name}$"):
        load_gpt(gpt(), path)


def test_wrong_settings_are_named() -> None:
    for change, words in (
        ("text.max_tokens=77", "text.max_tokens=120"),
        ("text.dim=32", "text.dim=24"),
        ("tokenizer.codebook_size=128", "tokenizer.codebook_size=64"),
        ("image_size=16", "an image_size of 4 times the tokenizer's downsampling"),
        ("teacher.dim=11", "teacher.dim=768"),
        ("gpt.n_layer=3", "gpt.dim=16 gpt.n_layer=2"),
    ):
        with pytest.raises(CheckpointError, match=f"these weights need {words}$") as error:
            load_gpt(gpt(change), RELEASE)
        assert "\n" not in str(error.value)
    vq = VQModel(config("tokenizer.z_channels=32", "tokenizer.encoder_ch_mult=[1,2]").tokenizer)
    with pytest.raises(CheckpointError, match=r"need tokenizer.encoder_ch_mult=\[1,1\] tokenizer.z_channels=16$"):
        load_vq(vq, VQ)


def test_wrong_head_count_is_found_although_every_shape_fits(tmp_path: Path) -> None:
    dim, layers, _ = OFFICIAL_SIZES["b"]
    right = GPTConfig(dim=dim, n_layer=layers, n_head=12, vocab_size=64, grid=4, text_dim=24)
    path = fake_gpt(right, tmp_path / "w.pt")
    with torch.device("meta"):
        wrong = GPT(GPTConfig(dim=dim, n_layer=layers, n_head=6, vocab_size=64, grid=4, text_dim=24))
    with pytest.raises(CheckpointError, match=r"the weights have 12 attention heads, the config gpt.n_head=6"):
        load_gpt(wrong, path)


def test_gpt_and_vq_are_not_mixed_up() -> None:
    with pytest.raises(CheckpointError, match="a VQ tokenizer, where a GPT is wanted"):
        load_gpt(gpt(), VQ)
    with pytest.raises(CheckpointError, match="a GPT, where a VQ tokenizer is wanted"):
        load_vq(VQModel(config().tokenizer), RELEASE)


# --- loading, with the declared differences -------------------------------------------------------


def loaded_and_kept(model: GPT, source: Path) -> list[str]:
    """Load; check that kept entries did not move and all others are the file's. Returns the kept."""
    before = {key: value.clone() for key, value in model.state_dict().items()}
    report = load_gpt(model, source)
    file = read_checkpoint(source)[0]
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key] if key in report.kept else file[key]), key
    return report.kept


@pytest.mark.parametrize("teacher", ["dinov2", "clip", "None"])
def test_t2i_start_keeps_what_the_official_load_keeps(teacher: str) -> None:
    golden = json.loads((GOLDEN / "keys.json").read_text())[f"load_into_edit_model_distill_{teacher}"]
    kept = loaded_and_kept(gpt(f"teacher={teacher.lower()}"), T2I)
    assert kept == golden["missing_keys"]


def test_release_loads_whole() -> None:
    model = gpt()
    assert loaded_and_kept(model, RELEASE) == []
    report = load_gpt(model, RELEASE, strict=True)
    assert (report.kept, report.ignored, report.warnings) == ([], [], [])
    assert str(report) == f"loaded gpt_editar from {RELEASE}"


def test_release_alignment_is_ignored_without_a_teacher() -> None:
    report = load_gpt(gpt("teacher=none"), RELEASE, strict=True)
    assert report.ignored == ["alignment.weight", "alignment.bias"]
    assert "ignored alignment.weight, alignment.bias (this configuration has no teacher)" in str(report)


def test_release_without_alignment_keeps_it_initial(tmp_path: Path) -> None:
    state = {key: value for key, value in official(RELEASE)["model"].items() if "alignment" not in key}
    torch.save({"model": state}, tmp_path / "w.pt")
    assert loaded_and_kept(gpt(), tmp_path / "w.pt") == ["alignment.weight", "alignment.bias"]
    with pytest.raises(CheckpointError, match=r"missing alignment.weight; missing alignment.bias$"):
        load_gpt(gpt(), tmp_path / "w.pt", strict=True)


def test_learned_positions_start_fresh_and_other_rope_is_said() -> None:
    model = gpt("rope.learned=true", "rope=shared")
    report = load_gpt(model, RELEASE)
    assert report.kept == ["pos_embeddings.grid.weight", "pos_embeddings.text.weight", "pos_embeddings.segment.weight"]
    assert "trained with rope layout=quadrants" in str(report) and "used with layout=shared" in str(report)


def test_undeclared_differences_change_nothing(tmp_path: Path) -> None:
    state = official(RELEASE)["model"]
    del state["norm.weight"]
    state["layers.7.extra"] = torch.zeros(1)
    torch.save(state, tmp_path / "w.pt")
    model = gpt()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(CheckpointError, match=r"missing norm.weight.*unexpected layers.7.extra"):
        load_gpt(model, tmp_path / "w.pt")
    assert same(dict(model.state_dict()), before)


def test_saved_key_value_caches_are_ignored(tmp_path: Path) -> None:
    state = official(RELEASE)["model"] | {"layers.0.attention.kv_cache.k_cache": torch.zeros(2)}
    torch.save({"model": state}, tmp_path / "w.pt")
    assert load_gpt(gpt(), tmp_path / "w.pt").ignored == ["layers.0.attention.kv_cache.k_cache"]


def test_vq_with_and_without_usage_history(tmp_path: Path) -> None:
    state = official(VQ)["model"]
    vq = VQModel(config().tokenizer)
    assert load_vq(vq, VQ).kept == []
    assert same(dict(vq.state_dict()), {key: state[key] for key in vq.state_dict()})
    torch.save({key: value for key, value in state.items() if key != "quantize.codebook_used"}, tmp_path / "w.pt")
    assert load_vq(vq, tmp_path / "w.pt").kept == ["quantize.codebook_used"]


# --- folders --------------------------------------------------------------------------------------


def test_import_makes_a_folder_that_edits(tmp_path: Path) -> None:
    import_weights(RELEASE, tmp_path / "run", TINY, tokenizer=str(VQ))
    cfg = to_dataclass(TrainConfig, OmegaConf.load(tmp_path / "run" / "config.yaml"))
    assert cfg.rope == RopeConfig() and cfg.gpt.grid == 4
    assert load_gpt(GPT(cfg.gpt), tmp_path / "run", strict=True).warnings == []
    assert load_vq(VQModel(cfg.tokenizer), tmp_path / "run").kept == []
    source = json.loads((tmp_path / "run" / "source.json").read_text())
    assert (source["kind"], source["steps"], source["licence"]) == ("gpt_editar", 2, None)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]
    with pytest.raises(CheckpointError, match="exists already"):
        import_weights(RELEASE, tmp_path / "run", TINY)


def test_import_needs_a_config_that_fits(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"these weights need text.dim=24$"):
        import_weights(RELEASE, tmp_path / "run", [*TINY, "text.dim=32"])
    import_weights(T2I, tmp_path / "nameless")
    assert not (tmp_path / "nameless" / "config.yaml").exists()


def test_import_finds_the_config_of_an_official_size(tmp_path: Path) -> None:
    name = "b"
    dim, layers, heads = OFFICIAL_SIZES[name]
    path = fake_gpt(GPTConfig(dim=dim, n_layer=layers, n_head=heads, teacher_dim=None), tmp_path / "w.pt")
    cfg = gpt_config(read_checkpoint(path)[1], None, tmp_path / "run")
    assert cfg is not None
    assert (cfg.gpt.n_head, cfg.gpt.grid, cfg.teacher.name, cfg.rope) == (12, 32, "none", RopeConfig())


def test_release_comes_back_unchanged(tmp_path: Path) -> None:
    import_weights(RELEASE, tmp_path / "run", TINY, keep_optimizer=True)
    export_official(tmp_path / "run", tmp_path / "back.pt")
    there, back = official(RELEASE), official(tmp_path / "back.pt")
    assert list(there) == list(back)
    assert list(there["model"]) == list(back["model"])
    assert same(dict(there["model"]), back["model"])
    assert same(there["optimizer"], back["optimizer"])
    assert same(there["steps"], back["steps"])
    assert same(vars(there["args"]), vars(back["args"]))


def test_kept_optimizer_loads_into_ours(tmp_path: Path) -> None:
    import_weights(RELEASE, tmp_path / "run", TINY, keep_optimizer=True)
    cfg = config()
    (adamw,) = make_optimizers(GPT(cfg.gpt), cfg.optim)
    saved = torch.load(tmp_path / "run/checkpoints/step_0000002/state.pt", weights_only=True)
    adamw.load_state_dict(saved["optimizers"][0])
    golden = json.loads((GOLDEN / "keys.json").read_text())["editar_release"]
    names = {id(p): name for name, p in adamw_names(cfg, adamw)}
    for group, key in zip(adamw.param_groups, ("optimizer_group0_names", "optimizer_group1_names"), strict=True):
        assert [names[id(p)] for p in group["params"]] == golden[key]


def adamw_names(cfg: TrainConfig, optimizer: torch.optim.Optimizer) -> list[tuple[str, torch.nn.Parameter]]:
    """Names of the optimiser's parameters, by the order that make_optimizers takes them in."""
    named = list(GPT(cfg.gpt).named_parameters())
    ordered = [n for n, p in named if p.dim() >= 2] + [n for n, p in named if p.dim() < 2]
    return list(zip(ordered, [p for group in optimizer.param_groups for p in group["params"]], strict=True))


def test_args_of_our_own_run_carry_every_official_name() -> None:
    golden = json.loads((GOLDEN / "keys.json").read_text())["editar_release"]["args"]
    ours = official_args(config())
    assert set(ours) == set(golden)
    same_value = ("use_distill", "distill_mode", "lr", "beta2", "weight_decay", "codebook_size", "cls_token_num")
    assert [ours[key] for key in same_value] == [golden[key] for key in same_value]


def test_export_refuses_what_the_official_code_cannot_compute(tmp_path: Path) -> None:
    import_weights(RELEASE, tmp_path / "run", [*TINY, "rope=shared"])
    with pytest.raises(CheckpointError, match="rope settings that the official code does not have"):
        export_official(tmp_path / "run", tmp_path / "back.pt")


def convert(*arguments: str) -> None:
    """scripts/convert_weights.py as the shell would run it, in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["convert_weights.py", *arguments])
        runpy.run_path(str(tiny.ROOT / "scripts" / "convert_weights.py"), run_name="__main__")


def test_convert_script_both_ways(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, back = str(tmp_path / "run"), str(tmp_path / "back.pt")
    convert(str(RELEASE), run, "--keep-optimizer", "--config", *TINY)
    assert "run: gpt_editar (dim 16, n_layer 2, vocab_size 64" in capsys.readouterr().err
    convert(run, back, "--export-official")
    assert "back.pt: 23 tensors, step 2, with optimiser state" in capsys.readouterr().err
    assert same(dict(official(RELEASE)["model"]), official(Path(back))["model"])
    with pytest.raises(SystemExit, match="2"):
        convert("nowhere.pt", run + "2")
    assert capsys.readouterr().err.strip() == "convert_weights: nowhere.pt: no such file or folder"
