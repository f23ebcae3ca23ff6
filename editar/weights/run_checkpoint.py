"""Checkpoint folders of a training run: their names, which is the newest, and the whole state in one process.

`checkpoints/step_0001000/` is a torch.distributed.checkpoint (DCP), of which every process wrote its share, and a
state.json with the step. Its tensors go by parameter names, so they fit any number of processes:

    model.NAME                                     weights and null tables
    ema.NAME                                       their running average, with optim.ema_decay
    optimizer_0.NAME.{step,exp_avg,exp_avg_sq}     AdamW
    optimizer_1.NAME.momentum                      Muon, with optim.name=muon

DCP keeps its table of contents as a pickle: read only checkpoints that you or people you trust have made.
"""

from __future__ import annotations

import json
import os
import shutil
import warnings
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint import FileSystemReader
from torch.distributed.checkpoint.api import CheckpointException

from editar.errors import CheckpointError, one_line
from editar.runtime.files import write_json

warnings.filterwarnings("ignore", message=".*assuming the intent is to", category=UserWarning)  # one process: meant
FAILURES = (Exception, CheckpointException)  # DCP's own, which is a BaseException, wraps what went wrong on any process
State = dict[str, Any]  # nested dicts whose leaves are tensors


def name_of(step: int) -> str:
    return f"step_{step:07d}"


def step_of(path: Path) -> int:
    return int(path.name.removeprefix("step_"))


def complete(folder: Path) -> list[Path]:
    """Checkpoints of a run folder, oldest first."""
    return sorted((folder / "checkpoints").glob("step_*"))


def latest_checkpoint(folder: Path) -> Path | None:
    return found[-1] if (found := complete(folder)) else None


def partial_of(folder: Path, step: int) -> Path:
    """Where a checkpoint of the run in `folder` is written before `put_in_place`."""
    return folder / "checkpoints" / f".{name_of(step)}.part"


def put_in_place(folder: Path, step: int, processes: int) -> None:
    """Complete a written checkpoint and give it its name, which replaces one of the same step."""
    partial, final = partial_of(folder, step), folder / "checkpoints" / name_of(step)
    write_json(partial / "state.json", {"step": step, "world_size": processes, "torch": torch.__version__})
    shutil.rmtree(final, ignore_errors=True)
    os.replace(partial, final)


def read_step(path: Path) -> int:
    return int(json.loads((path / "state.json").read_text())["step"])


def read_whole(path: Path) -> tuple[int, State]:
    """Step and all tensors of a checkpoint on the CPU, nested as they were saved. Raises CheckpointError."""
    try:
        step, metadata = read_step(path), FileSystemReader(path).read_metadata()
        stored: dict[str, Any] = metadata.state_dict_metadata
        flat = {key: torch.empty(value.size, dtype=value.properties.dtype) for key, value in stored.items()}
        dcp.load(flat, checkpoint_id=path)
    except FAILURES as error:  # damaged or missing files: many types, one meaning
        raise CheckpointError(f"{path}: not a readable checkpoint ({one_line(root_cause(error))})") from error
    state: State = {}
    for key, (*outer, name) in metadata.planner_data.items():
        place = state
        for part in outer:
            place = place.setdefault(part, {})
        place[name] = flat[key]
    return step, state


def write_whole(folder: Path, step: int, state: State) -> None:
    """Write a checkpoint of the run in `folder` from one process. Raises CheckpointError."""
    try:
        dcp.save(state, checkpoint_id=partial_of(folder, step))
        put_in_place(folder, step, processes=1)
    except FAILURES as error:
        cause = one_line(root_cause(error))
        raise CheckpointError(f"{folder}: checkpoint of step {step} could not be written ({cause})") from error


def root_cause(error: BaseException) -> BaseException:
    """DCP reports {rank: (exception, traceback)}: the first of them."""
    if isinstance(error, CheckpointException) and error.failures:
        return next(iter(error.failures.values()))[0]
    return error
