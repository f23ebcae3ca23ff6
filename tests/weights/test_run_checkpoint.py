"""Checkpoint folders in one process: what goes in comes out, and only whole ones count."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from editar.errors import CheckpointError
from editar.weights.run_checkpoint import (
    complete,
    latest_checkpoint,
    partial_of,
    read_whole,
    step_of,
    write_whole,
)
from tests.helpers.official import same

STATE = {
    "model": {"a.weight": torch.arange(6.0).view(2, 3), "b": torch.ones(2, dtype=torch.bfloat16)},
    "optimizer_0": {"a.weight": {"step": torch.tensor(7.0), "exp_avg": torch.full((2, 3), 0.5)}},
}


def test_what_goes_in_comes_out(tmp_path: Path) -> None:
    write_whole(tmp_path, 7, STATE)
    newest = latest_checkpoint(tmp_path)
    assert newest == tmp_path / "checkpoints/step_0000007"
    step, state = read_whole(newest)
    assert step == 7 and same(state, STATE)


def test_the_newest_is_by_number_and_unfinished_ones_do_not_count(tmp_path: Path) -> None:
    assert latest_checkpoint(tmp_path) is None
    for step in (10, 2):
        write_whole(tmp_path, step, STATE)
    partial_of(tmp_path, 20).mkdir()
    assert [step_of(path) for path in complete(tmp_path)] == [2, 10]
    changed = STATE | {"model": {"a.weight": torch.zeros(2, 3)}}
    write_whole(tmp_path, 10, changed)
    assert same(read_whole(tmp_path / "checkpoints/step_0000010")[1], changed)


def test_what_cannot_be_read_or_written_is_one_line(tmp_path: Path) -> None:
    old = tmp_path / "checkpoints/step_0000001"
    old.mkdir(parents=True)
    with pytest.raises(CheckpointError, match=r"step_0000001: not a readable checkpoint \(.*state.json") as error:
        read_whole(old)
    assert "\n" not in str(error.value)
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="file: checkpoint of step 1 could not be written") as error:
        write_whole(tmp_path / "file", 1, STATE)
    assert "\n" not in str(error.value)
