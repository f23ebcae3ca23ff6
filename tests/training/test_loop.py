"""Training: resumes exactly, does not depend on the number of processes, refuses what cannot work."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from editar.config import OptimConfig, TrainConfig
from editar.data.encode import write_shard
from editar.errors import CheckpointError, ConfigError, TrainingError
from editar.runtime.entry import load_config
from editar.training.loop import train
from editar.training.optim import Muon, lr_factor, make_optimizers, orthogonalise
from editar.weights.run_checkpoint import complete
from tests.helpers import trainings
from tests.helpers.tiny import tiny_overrides


def train_tiny(folder: Path, tokenizer: Path, *more: str) -> Path:
    return train(load_config(TrainConfig, "train", tiny_overrides(folder, tokenizer, "eval_every=100", *more)))


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def test_run_folder_holds_what_edit_and_eval_need(tiny_run: Path) -> None:
    names = {path.name for path in tiny_run.iterdir()}
    assert {"config.yaml", "model.safetensors", "tokenizer.safetensors", "metrics.jsonl", "provenance.json"} <= names
    assert (tiny_run / "samples" / "step_0000004.png").is_file()
    rows = [json.loads(line) for line in (tiny_run / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 4]
    assert {"token", "distill", "grad_norm", "lr"} <= rows[0].keys()
    assert {"heldout_token", "heldout_accuracy", "heldout_nano", "heldout_canny"} <= rows[-1].keys()
    assert rows[-1]["heldout_nano"] == rows[-1]["heldout_token"]


def test_two_sources_of_one_kind_have_losses_of_their_own(
    tmp_path: Path, tiny_tokenizer: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sources = ["data=folder", "~data.sources.folder"]
    for number, name in enumerate(("mine", "yours")):
        folder = tmp_path / name
        folder.mkdir()
        Image.new("RGB", (64, 64), ("red", "blue")[number]).save(folder / "a.png")
        line = json.dumps({"source": "a.png", "target": "a.png", "instruction": "wait"})
        (folder / "pairs.jsonl").write_text(f"{line}\n" * (20 + 10 * number))
        sources += [f"+source@data.sources.{name}=folder", f"data.sources.{name}.path={folder}"]
    run = train_tiny(tmp_path / "run", tiny_tokenizer, *sources, "steps=1", "teacher=none")
    row = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    assert {name for name in row if name.startswith("heldout_")} == {
        "heldout_token", "heldout_accuracy", "heldout_mine", "heldout_yours"
    }  # fmt: skip
    assert row["heldout_mine"] != row["heldout_yours"]
    assert row["heldout_token"] == pytest.approx((2 * row["heldout_mine"] + 3 * row["heldout_yours"]) / 5)
    said = "mine 50.0 % (18 rows, 2 more held out), yours 50.0 % (27 rows, 3 more held out)"
    assert f"data: {said}" in capsys.readouterr().err


def test_only_the_newest_checkpoints_stay(tmp_path: Path, tiny_tokenizer: Path) -> None:
    folder = train_tiny(tmp_path / "run", tiny_tokenizer, "steps=4", "save_every=1", "keep_checkpoints=2")
    assert sorted(p.name for p in (folder / "checkpoints").iterdir()) == ["step_0000003", "step_0000004"]


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_run_continued_behind_its_checkpoint_equals_the_uninterrupted_one(
    tmp_path: Path, tiny_tokenizer: Path, optimizer: str
) -> None:
    common = ["steps=5", "save_every=3", f"optim.name={optimizer}", "gpt.resid_dropout=0.1", "optim.ema_decay=0.9"]
    whole = train_tiny(tmp_path / "whole", tiny_tokenizer, *common)
    broken = train_tiny(tmp_path / "broken", tiny_tokenizer, *common)
    # Back to the state after a kill behind step 3: later checkpoint gone, later rows half written.
    (broken / "checkpoints/step_0000005").rename(tmp_path / "lost")
    with (broken / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "tok')
    (broken / "model.safetensors").unlink()
    train_tiny(broken, tiny_tokenizer, *common)
    a, b = weights(whole), weights(broken)
    assert all(torch.equal(a[key], b[key]) for key in a)
    steps = [json.loads(line)["step"] for line in (broken / "metrics.jsonl").read_text().splitlines()]
    assert steps == [1, 2, 3, 4, 5, 5]


def spoil(cache: Path, row: int) -> str:
    """Make the stored teacher features of a training row not finite; returns the row's id."""
    (shard,) = cache.glob("*.parquet")
    records = pq.read_table(shard).to_pylist()
    values = np.frombuffer(records[row]["features"], np.float16).copy()
    values[1:] = np.nan  # behind the number of tokens
    records[row]["features"] = values.tobytes()
    write_shard(records, shard)
    return str(records[row]["id"])


def test_a_sample_that_is_not_finite_is_named_or_left_out(
    tmp_path: Path, tiny_tokenizer: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = ["steps=6", "save_every=1", f"data.cache={tmp_path / 'codes'}"]  # 24 rows: every row once
    train_tiny(tmp_path / "good", tiny_tokenizer, *common)
    name = spoil(tmp_path / "codes/nano", 5)
    with pytest.raises(TrainingError, match=rf"distill, grad_norm not finite.*{name}.*skip_nonfinite=N \(now 0\)"):
        train_tiny(tmp_path / "strict", tiny_tokenizer, *common)
    stopped = [path.name for path in complete(tmp_path / "strict")]
    folder = train_tiny(tmp_path / "lenient", tiny_tokenizer, *common, "skip_nonfinite=1")
    assert "weights left as they were; samples" in capsys.readouterr().err
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    bad = [row["step"] for row in rows if "distill" in row and row["distill"] is None]
    assert len(bad) == 1
    assert stopped == [f"step_{step:07d}" for step in range(max(1, bad[0] - 2), bad[0])]
    assert all(torch.isfinite(value).all() for value in weights(folder).values())


def test_the_average_is_what_evaluation_and_edits_get(tmp_path: Path, tiny_tokenizer: Path) -> None:
    common = ["steps=2", "save_every=1", "optim.name=adamw"]
    plain = train_tiny(tmp_path / "plain", tiny_tokenizer, *common)
    averaged = train_tiny(tmp_path / "ema", tiny_tokenizer, *common, "optim.ema_decay=0.75")
    first, second = (trainings.stored(plain / f"checkpoints/step_{step:07d}")["model.output.weight"] for step in (1, 2))
    # From zero, the layer's start: 3/4 * (1/4 first) + 1/4 second.
    torch.testing.assert_close(weights(averaged)["output.weight"], 0.1875 * first + 0.25 * second)
    torch.testing.assert_close(trainings.stored(averaged / "checkpoints/step_0000002")["model.output.weight"], second)
    losses = [json.loads((f / "metrics.jsonl").read_text().splitlines()[-1]) for f in (plain, averaged)]
    assert losses[0]["heldout_token"] != losses[1]["heldout_token"]


def test_a_profile_is_written(tmp_path: Path, tiny_tokenizer: Path) -> None:
    folder = train_tiny(tmp_path / "run", tiny_tokenizer, "steps=7", "profile=true")
    events = json.loads((folder / "profile/trace.json").read_text())["traceEvents"]
    assert any("addmm" in event.get("name", "") or "aten::mm" in event.get("name", "") for event in events)


def test_wandb_offline_keeps_its_run_over_a_resume(tmp_path: Path, tiny_tokenizer: Path) -> None:
    common = ["wandb.enabled=true", "wandb.mode=offline"]
    folder = train_tiny(tmp_path / "run", tiny_tokenizer, "steps=1", *common)
    name = (folder / "wandb_id.txt").read_text()
    train_tiny(folder, tiny_tokenizer, "steps=2", *common)
    assert (folder / "wandb_id.txt").read_text() == name
    assert len(list((folder / "wandb").glob(f"offline-run-*-{name}"))) >= 1


def test_another_config_in_the_same_folder_is_refused(tiny_run: Path, tiny_tokenizer: Path) -> None:
    with pytest.raises(ConfigError, match=r"holds a run with another config \(optim\.lr was 0\.002, now 0\.5\)"):
        train_tiny(tiny_run, tiny_tokenizer, "optim.lr=0.5")


def test_a_run_may_be_made_longer(tmp_path: Path, tiny_tokenizer: Path) -> None:
    folder = train_tiny(tmp_path / "run", tiny_tokenizer, "steps=2")
    train_tiny(folder, tiny_tokenizer, "steps=3")
    steps = [json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert steps == [1, 2, 2, 3, 3]
    assert len(json.loads((folder / "provenance.json").read_text())) == 2


def test_missing_and_unfit_tokenizers_are_named(tmp_path: Path, tiny_tokenizer: Path) -> None:
    with pytest.raises(CheckpointError, match="nowhere"):
        train_tiny(tmp_path / "a", tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match=r"does not fit .*the config needs"):
        train_tiny(tmp_path / "b", tiny_tokenizer, "tokenizer.codebook_size=32")


def test_the_distillation_loss_falls(tmp_path: Path, tiny_tokenizer: Path) -> None:
    """Four rows, seen at every step: the alignment layer learns them."""
    nothing_dropped = ["drop.text=0", "drop.image=0", "drop.both=0"]
    overrides = ["steps=6", "data.train_samples=4", "optim.warmup_steps=0", *nothing_dropped]
    folder = train_tiny(tmp_path / "run", tiny_tokenizer, *overrides)
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert rows[5]["distill"] < 0.9 * rows[0]["distill"]


def test_init_from_takes_weights_only(tmp_path: Path, tiny_run: Path, tiny_tokenizer: Path) -> None:
    folder = train_tiny(
        tmp_path / "run", tiny_tokenizer, f"init_from={tiny_run}", "steps=1", "optim.lr=0", "optim.muon_lr=0"
    )
    a, b = weights(tiny_run), weights(folder)
    assert all(torch.equal(a[key], b[key]) for key in a)
    assert json.loads((folder / "metrics.jsonl").read_text().splitlines()[0])["step"] == 1


def test_init_from_may_have_fewer_source_images(tmp_path: Path, tiny_run: Path, tiny_tokenizer: Path) -> None:
    """The second image begins at the first one's learned position; every other weight is as it was."""
    two = [f"init_from={tiny_run}", "data=nano_pairs", "steps=1"]
    folder = train_tiny(tmp_path / "run", tiny_tokenizer, *two, "optim.lr=0", "optim.muon_lr=0")
    a, b = weights(tiny_run), weights(folder)
    segment = "pos_embeddings.segment.weight"
    assert torch.equal(b[segment], torch.cat([a[segment], a[segment][:1]]))
    assert all(torch.equal(a[key], b[key]) for key in a if key != segment)
    with pytest.raises(ConfigError, match=r"trained with 1 source image\(s\), found data.images=2, .* train the GPT"):
        train_tiny(tmp_path / "adapter", tiny_tokenizer, *two, "lora.rank=2", "precision=bf16")
    with pytest.raises(CheckpointError, match=r"segment.weight is \(4, 32\), the config needs \(3, 32\)"):
        train_tiny(tmp_path / "back", tiny_tokenizer, f"init_from={folder}", "steps=1")


def test_learning_rates() -> None:
    constant = OptimConfig()
    assert [lr_factor(s, 100, constant) for s in (0, 50, 99)] == [1.0, 1.0, 1.0]
    linear = OptimConfig(schedule="linear", warmup_steps=10)
    assert [round(lr_factor(s, 110, linear), 6) for s in (0, 9, 10, 60, 110)] == [0.1, 1.0, 1.0, 0.5, 0.0]
    cosine = OptimConfig(schedule="cosine", final_lr_ratio=0.1)
    assert lr_factor(0, 100, cosine) == pytest.approx(1.0)
    assert lr_factor(50, 100, cosine) == pytest.approx(0.55)
    assert lr_factor(100, 100, cosine) == pytest.approx(0.1)


def test_weight_decay_only_on_matrices_and_tables_never_in_muon() -> None:
    from tests.helpers.tiny_gpt import ROPES, config, model

    gpt = model(config(ROPES["shared"]))
    adamw = make_optimizers(gpt, OptimConfig())
    assert len(adamw) == 1
    decayed, plain = adamw[0].param_groups
    assert all(p.dim() >= 2 for p in decayed["params"])
    assert all(p.dim() < 2 for p in plain["params"])
    assert sum(len(group["params"]) for group in adamw[0].param_groups) == len(list(gpt.parameters()))
    muon = make_optimizers(gpt, OptimConfig(name="muon"))[1]
    assert isinstance(muon, Muon)
    tables = {id(p) for name, p in gpt.named_parameters() if "embedding" in name and "cap_proj" not in name}
    chosen = {id(p) for p in muon.param_groups[0]["params"]}
    assert not chosen & (tables | {id(gpt.output.weight)})
    assert id(gpt.layers[0].attention.wqkv.weight) in chosen


@pytest.mark.parametrize("shape", [(8, 8), (4, 20), (20, 4)])
def test_orthogonalise_flattens_the_spectrum(shape: tuple[int, int]) -> None:
    values = torch.linalg.svdvals(orthogonalise(torch.randn(shape), rounds=8))
    assert values.min() > 0.5
    assert values.max() < 1.3
