"""Foreign checkpoints: every layout, what a file is found to hold, and every kind of bad file."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import save_file

from editar.config import CONFIG_DIR, TokenizerConfig
from editar.errors import CheckpointError
from editar.models.vq import VQModel
from editar.weights.read import OFFICIAL_SIZES, read_checkpoint
from tests.helpers.official import GOLDEN, RELEASE, T2I, VQ, official, same

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
    with pytest.raises(CheckpointError, match=words) as error:
        read_checkpoint(tmp_path / name)
    assert "\n" not in str(error.value)
    assert str(tmp_path / name) in str(error.value)


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
        "grid": 4, "images": None, "teacher_dim": 768,
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
