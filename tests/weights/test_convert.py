"""Weights in and out through the real commands: imported folders edit and train on, exported runs come back equal."""

from __future__ import annotations

import json
import math
import runpy
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import BitImageProcessor, Dinov2Config, Dinov2Model

from editar.config import RopeConfig, TrainConfig
from editar.data.loader import DrawBatchSampler, batches
from editar.errors import CheckpointError
from editar.models.gpt import GPT
from editar.models.vq import VQModel
from editar.runtime.distributed import distributed
from editar.runtime.entry import load_config
from editar.sampling.pipeline import EditPipeline
from editar.training.build import build_run
from editar.training.loop import train_step
from editar.weights.convert import export_official, gpt_config, import_weights, official_args
from editar.weights.read import read_checkpoint
from tests.helpers import tiny, trainings
from tests.helpers.official import GOLDEN, RELEASE, T2I, TINY, VQ, config, fake_gpt, official, same

# What an official checkpoint can hold: its positions and its optimiser, here at a rate that shows after a step.
OFFICIAL = [
    "rope=editar", "optim.name=adamw", "optim.schedule=constant", "optim.warmup_steps=0", "gpt.resid_dropout=0.1",
    "eval_every=100",
]  # fmt: skip


def convert(*arguments: object) -> None:
    """scripts/convert_weights.py as the shell would run it, in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["convert_weights.py", *map(str, arguments)])
        runpy.run_path(str(tiny.ROOT / "scripts" / "convert_weights.py"), run_name="__main__")


def train(log: Path, overrides: list[str]) -> None:
    """`python -m editar.train` in a process of its own."""
    child = trainings.start(overrides, log)
    child.join()
    assert child.exitcode == 0, log.read_text()[-2000:]


def by_name(optimizer: dict[str, Any]) -> dict[str, torch.Tensor]:
    """An official optimiser state under the names of our checkpoints, by the order of the golden file's groups."""
    groups = json.loads((GOLDEN / "keys.json").read_text())["editar_release"]
    names = groups["optimizer_group0_names"] + groups["optimizer_group1_names"]
    assert [number for group in optimizer["param_groups"] for number in group["params"]] == list(range(len(names)))
    return {
        f"optimizer_0.{name}.{key}": value
        for index, name in enumerate(names)
        for key, value in optimizer["state"][index].items()
    }


# --- a run of ours, out and in again --------------------------------------------------------------


def test_a_run_exported_and_imported_trains_on_as_if_nothing_had_happened(
    tmp_path: Path, tiny_tokenizer: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, back, file = tmp_path / "run", tmp_path / "back", tmp_path / "run.pt"
    train(tmp_path / "log", tiny.tiny_overrides(run, tiny_tokenizer, *OFFICIAL, "steps=2"))
    convert(run, file, "--export-official")
    assert "step 2, with optimiser state" in capsys.readouterr().err
    _, *settings = tiny.tiny_overrides(back, tiny_tokenizer, *OFFICIAL)
    convert(file, back, "--keep-optimizer", "--config", *settings)
    for folder in (run, back):
        train(tmp_path / f"{folder.name}.log", tiny.tiny_overrides(folder, tiny_tokenizer, *OFFICIAL, "steps=4"))
        assert f"resuming {folder} at step 2" in (tmp_path / f"{folder.name}.log").read_text()
    behind = [row for row in trainings.rows(run) if row["step"] > 2]
    assert [row["step"] for row in behind] == [3, 4, 4]  # the last is the held-out rows'
    assert trainings.rows(back) == behind
    assert same(load_file(run / "model.safetensors"), load_file(back / "model.safetensors"))
    end = "checkpoints/step_0000004"
    assert same(trainings.stored(run / end), trainings.stored(back / end))


def test_an_export_holds_the_checkpoint_and_the_official_hyperparameters(tmp_path: Path, tiny_tokenizer: Path) -> None:
    run = tmp_path / "run"
    train(tmp_path / "log", tiny.tiny_overrides(run, tiny_tokenizer, *OFFICIAL, "steps=1", "optim.ema_decay=0.5"))
    export_official(run, tmp_path / "run.pt")
    found, stored = official(tmp_path / "run.pt"), trainings.stored(run / "checkpoints/step_0000001")
    assert list(found) == ["model", "optimizer", "steps", "args"]
    assert same({f"model.{key}": value for key, value in found["model"].items()}, only(stored, "model."))
    assert found["steps"] == 1 and found["args"].gpt_model == "GPT-32x2"
    assert same(by_name(found["optimizer"]), only(stored, "optimizer_0."))
    there = official(RELEASE)["optimizer"]["param_groups"]
    for ours, theirs, decay in zip(found["optimizer"]["param_groups"], there, (0.01, 0.0), strict=True):
        assert same(ours, theirs | {"lr": 2e-3, "weight_decay": decay})


def only(stored: dict[str, torch.Tensor], start: str) -> dict[str, torch.Tensor]:
    return {key: value for key, value in stored.items() if key.startswith(start)}


def test_muon_leaves_no_optimiser_state(tmp_path: Path, tiny_tokenizer: Path) -> None:
    run = tmp_path / "run"
    train(tmp_path / "log", tiny.tiny_overrides(run, tiny_tokenizer, *OFFICIAL, "steps=1", "optim.name=muon"))
    assert list(export_official(run, tmp_path / "run.pt")) == ["model", "steps", "args"]
    assert same(official(tmp_path / "run.pt")["model"], load_file(run / "model.safetensors"))


@pytest.mark.multiprocess
def test_shards_of_two_processes_are_exported_whole(tmp_path: Path, tiny_tokenizer: Path) -> None:
    run = tmp_path / "run"
    overrides = tiny.tiny_overrides(run, tiny_tokenizer, *OFFICIAL, "steps=1", "micro_batch=2", "parallel=fsdp")
    done = tiny.run_module("editar.train", *overrides, processes=2)
    assert done.returncode == 0, done.stderr[-2000:]
    assert len(list((run / "checkpoints/step_0000001").glob("*.distcp"))) == 2
    written = export_official(run, tmp_path / "run.pt")
    assert same(written["model"], load_file(run / "model.safetensors"))
    assert same(by_name(written["optimizer"]), only(trainings.stored(run / "checkpoints/step_0000001"), "optimizer_0."))


# --- official files in ----------------------------------------------------------------------------


def test_an_imported_folder_edits(tmp_path: Path) -> None:
    """As the official weights do when nothing but torch has read them."""
    settings = [*TINY, "text=nano", "text.dim=24", "text.max_tokens=120"]
    import_weights(RELEASE, tmp_path / "run", settings, tokenizer=str(VQ))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]
    pipeline = EditPipeline.from_pretrained(tmp_path / "run", "cpu", {"greedy": True})
    assert pipeline.cfg.rope == RopeConfig() and pipeline.cfg.gpt.grid == 4
    gpt, tokenizer = GPT(pipeline.cfg.gpt), VQModel(pipeline.cfg.tokenizer)
    gpt.load_state_dict(official(RELEASE)["model"])
    tokenizer.load_state_dict(official(VQ)["model"])
    by_hand = EditPipeline(pipeline.cfg, gpt.eval(), tokenizer.eval(), pipeline.text)
    edits = [p(GOLDEN / "image_0.png", "make the red circle blue") for p in (pipeline, by_hand)]
    np.testing.assert_array_equal(*(np.asarray(images[0]) for images in edits))
    source = json.loads((tmp_path / "run" / "source.json").read_text())
    assert (source["kind"], source["steps"], source["licence"]) == ("gpt_editar", 2, None)
    with pytest.raises(CheckpointError, match="exists already"):
        import_weights(RELEASE, tmp_path / "run", TINY)


@pytest.mark.parametrize("kind", ["tokenizer", "gpt"])
def test_the_tokenizer_may_be_the_folder_of_a_run(
    kind: str, tmp_path: Path, tiny_run: Path, tiny_tokenizer: Path
) -> None:
    """Its settings come along, so nothing of them has to be given; a file of another shape is refused."""
    weights, out = tmp_path / "gpt.safetensors", tmp_path / "out"
    shutil.copy(tiny_run / "model.safetensors", weights)
    settings = [text for text in tiny.tiny_overrides(out, tiny_tokenizer)[1:] if not text.startswith("tokenizer.")]
    folder = {"tokenizer": tiny_tokenizer, "gpt": tiny_run}[kind]
    convert(weights, out, "--tokenizer", str(folder), "--config", *settings)
    own, theirs = (EditPipeline.from_pretrained(path, "cpu", {"greedy": True}) for path in (out, tiny_run))
    assert replace(own.cfg.tokenizer, weights=None) == replace(theirs.cfg.tokenizer, weights=None)
    picture = Image.new("RGB", (64, 64), "red")
    edits = [np.asarray(pipeline(picture, "make it blue")[0]) for pipeline in (own, theirs)]
    np.testing.assert_array_equal(*edits)
    with pytest.raises(CheckpointError, match="these weights need tokenizer"):
        import_weights(weights, tmp_path / "no", [*tiny.tiny_overrides(out, tiny_tokenizer)[1:]], tokenizer=str(VQ))
    assert not (tmp_path / "no").exists()


def write_pairs(folder: Path, count: int) -> Path:
    """Own data: `count` pairs of noise, 8 px."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for name in (f"{i}{side}.png" for i in range(count) for side in "ab"):
        Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8)).save(folder / name)
    lines = [{"source": f"{i}a.png", "target": f"{i}b.png", "instruction": "make it blue"} for i in range(count)]
    (folder / "pairs.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return folder


def test_the_release_trains_on_with_its_own_moments(tmp_path: Path) -> None:
    """Equal to the same step after torch's own loading of the official optimiser state."""
    data, teacher, run = write_pairs(tmp_path / "data", 6), tmp_path / "dinov2", tmp_path / "run"
    shape = Dinov2Config(hidden_size=768, num_hidden_layers=1, num_attention_heads=2, mlp_ratio=1)
    Dinov2Model(shape).save_pretrained(teacher)
    side = {"height": 28, "width": 28}  # 2 x 2 patches of 14 px, as the student's 4 x 4 codes give
    BitImageProcessor(size={"shortest_edge": 28}, crop_size=side).save_pretrained(teacher)
    settings = [
        *TINY, "text=nano", "text.dim=24", "text.max_tokens=120", f"teacher.weights={teacher}", "data=folder",
        f"data.sources.folder.path={data}", "data.heldout_samples=2", f"tokenizer.weights={VQ}", "precision=fp32",
        "global_batch=2", "num_workers=0", "log_every=1", "steps=3", "optim.lr=1e-2",
    ]  # fmt: skip
    convert(RELEASE, run, "--keep-optimizer", "--config", *settings)
    train(tmp_path / "log", [f"output_dir={run}", *settings])
    assert f"resuming {run} at step 2" in (tmp_path / "log").read_text()

    cfg = load_config(TrainConfig, "train", [f"output_dir={tmp_path / 'by_hand'}", *settings, "init_from=null"])
    with distributed("cpu") as ranks:
        ours = build_run(cfg, ranks, Path(cfg.output_dir))
        ours.gpt.load_state_dict(official(RELEASE)["model"])
        ours.optimizers[0].load_state_dict(official(RELEASE)["optimizer"])
        for group in ours.optimizers[0].param_groups:
            group["base_lr"] = cfg.optim.lr
        draws = DrawBatchSampler(2, 3, ranks.rank, ranks.size, cfg.global_batch, ours.micro_batch)
        feed = batches(ours.train_rows, draws, 0, ranks.device)
        values = train_step(ours, feed, 2, stop=False)
    torch.testing.assert_close(dict(ours.gpt.state_dict()), load_file(run / "model.safetensors"), rtol=0, atol=1e-6)
    (row,) = (row for row in trainings.rows(run) if "token" in row)
    assert row["step"] == 3 and row["token"] == pytest.approx(values["token"])


def test_import_needs_a_config_that_fits(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"these weights need text.dim=24$"):
        import_weights(RELEASE, tmp_path / "run", [*TINY, "text.dim=32"])
    with pytest.raises(CheckpointError, match="a GPT, where a VQ tokenizer is wanted"):
        import_weights(T2I, tmp_path / "run", tokenizer=str(RELEASE))
    more = torch.load(RELEASE, weights_only=False)
    more["model"]["layers.0.attention.bias"] = torch.zeros(3)
    torch.save(more, tmp_path / "more.pt")
    with pytest.raises(CheckpointError, match=r"unexpected .*layers\.0\.attention\.bias"):
        import_weights(tmp_path / "more.pt", tmp_path / "run", TINY)
    assert [path.name for path in tmp_path.iterdir()] == ["more.pt"]
    import_weights(T2I, tmp_path / "nameless")
    assert not (tmp_path / "nameless" / "config.yaml").exists()


def test_import_finds_the_config_of_an_official_size(tmp_path: Path) -> None:
    paper = load_config(TrainConfig, "train", ["experiment=editar_xl", "gpt=b", "teacher=none", "output_dir=x"])
    path = fake_gpt(paper.gpt, tmp_path / "w.pt")
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


def test_an_optimiser_state_that_cannot_be_kept_is_refused(tmp_path: Path) -> None:
    def refused(release: dict[str, Any] | Path, settings: list[str] | None = TINY) -> str:
        source = release if isinstance(release, Path) else tmp_path / "release.pt"
        if isinstance(release, dict):
            torch.save(release, source)
        with pytest.raises(CheckpointError) as error:
            import_weights(source, tmp_path / "run", settings, keep_optimizer=True)
        assert not [path for path in tmp_path.iterdir() if "run" in path.name]  # nothing half made
        return str(error.value).removeprefix(f"{source}: ")

    assert refused(T2I, [*TINY, "teacher=none"]) == "holds no optimiser state to keep"
    assert "--config" in refused(RELEASE, None)
    assert "AdamW's moments, which optim.name=muon has no use for" in refused(RELEASE, [*TINY, "optim.name=muon"])
    assert "missing pos_embeddings.grid.weight" in refused(RELEASE, [*TINY, "rope.learned=true"])
    release = official(RELEASE)
    swapped = dict(release["optimizer"]["state"])
    swapped[0], swapped[1] = swapped[1], swapped[0]
    release["optimizer"] = release["optimizer"] | {"state": swapped}
    assert "AdamW state 0 has not the shape of cls_embedding.cap_proj.fc1.weight" in refused(release)
    del swapped[20]
    swapped[0], swapped[1] = swapped[1], swapped[0]
    assert "holds no AdamW state of alignment.bias, which should be 20" in refused(release)
    for key, value in (("exp_avg", torch.nan), ("exp_avg_sq", -1.0)):
        release = official(RELEASE)
        release["optimizer"]["state"][3][key].view(-1)[0] = value
        assert "its AdamW state 3, of " in refused(release)
    for steps in (-5, "many", math.nan):
        assert f"steps={steps!r} is no number of training steps" in refused(official(RELEASE) | {"steps": steps})


# --- out ------------------------------------------------------------------------------------------


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


def test_an_export_that_cannot_be_made_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import_weights(RELEASE, tmp_path / "run", TINY, keep_optimizer=True)
    (data,) = (tmp_path / "run/checkpoints/step_0000002").glob("*.distcp")
    data.write_bytes(data.read_bytes()[:100])
    for source, words in (
        (tmp_path / "run", "step_0000002: not a readable checkpoint ("),
        (tmp_path, "holds no config.yaml of a GPT; give the folder that editar.train wrote"),
    ):
        with pytest.raises(SystemExit, match="2"):
            convert(source, tmp_path / "back.pt", "--export-official")
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(f"convert_weights: {source}") and words in line
    assert not (tmp_path / "back.pt").exists()


def test_convert_script_both_ways(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, back = tmp_path / "run", tmp_path / "back.pt"
    convert(RELEASE, run, "--keep-optimizer", "--config", *TINY)
    assert "run: gpt_editar (dim 16, n_layer 2, vocab_size 64" in capsys.readouterr().err
    convert(run, back, "--export-official")
    assert "back.pt: 23 tensors, step 2, with optimiser state" in capsys.readouterr().err
    assert same(dict(official(RELEASE)["model"]), official(back)["model"])
    with pytest.raises(SystemExit, match="2"):
        convert("nowhere.pt", tmp_path / "other")
    assert capsys.readouterr().err.strip() == "convert_weights: nowhere.pt: no such file or folder"
