"""The same training on any number of processes, under DDP and FSDP2, compiled or not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from editar.config import TrainConfig
from editar.errors import ConfigError
from editar.runtime.entry import load_config
from editar.training.loop import dropout_seed, train
from editar.training.parallel import micro_batch
from tests.helpers.tiny import run_module, tiny_overrides

# A large eps: else AdamW's first steps are the gradient's sign, which rounding flips near zero.
COMMON = ["steps=3", "eval_every=3", "optim.name=adamw", "optim.eps=1e-3", "global_batch=8"]


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: Path) -> Path:
    """One process, 8 samples at once."""
    folder = tmp_path_factory.mktemp("one") / "run"
    return train(load_config(TrainConfig, "train", tiny_overrides(folder, tiny_tokenizer, *COMMON, "micro_batch=8")))


def assert_close(a: Path, b: Path) -> None:
    one, two = (load_file(folder / "model.safetensors") for folder in (a, b))
    assert one.keys() == two.keys()
    for key in one:
        torch.testing.assert_close(one[key], two[key], atol=1e-5, rtol=1e-4)
    rows = [[json.loads(line) for line in (f / "metrics.jsonl").read_text().splitlines()] for f in (a, b)]
    for first, second in zip(*rows, strict=True):
        for name in ("token", "distill", "grad_norm", "accuracy", "heldout_token", "heldout_canny"):
            if name in first:
                assert first[name] == pytest.approx(second[name], rel=1e-4), name


@pytest.mark.multiprocess
@pytest.mark.parametrize(
    "how",
    [
        pytest.param(["parallel=ddp"], id="ddp"),
        pytest.param(["parallel=fsdp"], id="fsdp", marks=pytest.mark.slow),  # the next one does the same and more
        pytest.param(["parallel=fsdp", "micro_batch=2", "activation_checkpointing=true"], id="fsdp accumulated"),
    ],
)
def test_two_processes_of_four_equal_one_of_eight(
    tmp_path: Path, tiny_tokenizer: Path, one: Path, how: list[str]
) -> None:
    two = tmp_path / "two"
    overrides = tiny_overrides(two, tiny_tokenizer, *COMMON, "micro_batch=4", *how)
    done = run_module("editar.train", *overrides, processes=2)
    assert done.returncode == 0, done.stderr[-2000:]
    assert_close(one, two)
    assert (two / "samples/step_0000003.png").read_bytes() == (one / "samples/step_0000003.png").read_bytes()


def test_accumulation_and_recomputation_change_nothing(tmp_path: Path, tiny_tokenizer: Path, one: Path) -> None:
    how = ["micro_batch=3", "activation_checkpointing=true"]  # 3 does not divide 8: 2 at once, 4 times
    overrides = tiny_overrides(tmp_path / "run", tiny_tokenizer, *COMMON, *how)
    assert_close(one, train(load_config(TrainConfig, "train", overrides)))


@pytest.mark.slow
def test_compiled_blocks_change_nothing(tmp_path: Path, tiny_tokenizer: Path, one: Path) -> None:
    overrides = tiny_overrides(tmp_path / "run", tiny_tokenizer, *COMMON, "micro_batch=8", "compile=true")
    assert_close(one, train(load_config(TrainConfig, "train", overrides)))


@pytest.mark.multiprocess
def test_an_error_of_all_processes_is_told_once(tmp_path: Path, tiny_tokenizer: Path) -> None:
    overrides = tiny_overrides(tmp_path / "run", tiny_tokenizer, "global_batch=5")
    done = run_module("editar.train", *overrides, processes=2)
    assert done.returncode != 0
    assert done.stderr.count("global_batch=5 is not divisible by 2 processes") == 1


@pytest.mark.multiprocess
def test_a_step_that_is_not_finite_stops_all_processes_before_it_counts(tmp_path: Path, tiny_tokenizer: Path) -> None:
    common = [*COMMON, "optim.eps=1e-8", "optim.lr=1e30", "save_every=1", "optim.warmup_steps=0"]
    folder = tmp_path / "run"
    done = run_module("editar.train", *tiny_overrides(folder, tiny_tokenizer, *common), processes=2)
    assert done.returncode != 0
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("editar.train:")]
    assert "not finite, weights left as they were; samples nano/" in line
    assert line.count("nano/") == 8  # every process's samples are named


def test_shares_of_the_global_batch() -> None:
    def cfg(**changes: int) -> TrainConfig:
        more = [f"{key}={value}" for key, value in changes.items()]
        return load_config(TrainConfig, "train", ["output_dir=x", "global_batch=64", *more])

    assert [micro_batch(cfg(micro_batch=8), ranks) for ranks in (1, 2, 8, 16, 64)] == [8, 8, 8, 4, 1]
    assert micro_batch(cfg(micro_batch=7), 2) == 4
    with pytest.raises(ConfigError, match="global_batch=64 is not divisible by 3 processes"):
        micro_batch(cfg(), 3)


def test_dropout_belongs_to_seed_step_and_rank() -> None:
    seeds = {dropout_seed(seed, step, rank) for seed in range(3) for step in range(50) for rank in range(8)}
    assert len(seeds) == 3 * 50 * 8
    assert all(0 <= seed < 2**63 for seed in seeds)
