"""Trainings in processes of their own that start in a moment and can be killed.

A fork server imports torch once; each child is forked from it before any thread exists.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint import FileSystemReader

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["editar.training.loop", "editar.runtime.entry", "hydra", "kornia", "transformers"])


def entry(overrides: list[str], log: str, file_limit: int | None) -> None:
    """`python -m editar.train` with `overrides`; what it prints goes to `log`; files may not grow over
    `file_limit` bytes."""
    torch.set_num_threads(1)
    handle = os.open(log, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    if file_limit is not None:
        import resource
        import signal

        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_limit, file_limit))
    sys.argv = ["editar/train.py", *overrides]
    from editar.train import main

    main()


def start(overrides: list[str], log: Path, file_limit: int | None = None) -> Any:
    """A running child; `.join()`, `.kill()`, `.exitcode` as of multiprocessing."""
    child = SERVER.Process(target=entry, args=(overrides, str(log), file_limit))
    child.start()
    return child


def rows(folder: Path) -> list[dict[str, Any]]:
    """Complete rows of a run's metrics.jsonl, without what depends on the clock or the machine."""
    path = folder / "metrics.jsonl"
    lines = [line for line in path.read_text().splitlines() if line.endswith("}")] if path.exists() else []
    clock = ("samples_per_s", "tokens_per_s", "tflops_per_s", "memory_gb", "data_wait")
    return [{k: v for k, v in json.loads(line).items() if k not in clock} for line in lines]


def wait_for_rows(folder: Path, count: int, alive: Any, seconds: float = 120) -> None:
    """Until the run has logged `count` rows or `alive()` says that it has ended."""
    end = time.monotonic() + seconds
    while time.monotonic() < end and alive() and len(rows(folder)) < count:
        time.sleep(0.005)


def stored(checkpoint: Path) -> dict[str, torch.Tensor]:
    """Every tensor of a checkpoint: weights, moments, average."""
    metadata = FileSystemReader(checkpoint).read_metadata()
    state = {k: torch.empty(v.size, dtype=v.properties.dtype) for k, v in metadata.state_dict_metadata.items()}
    dcp.load(state, checkpoint_id=checkpoint)
    return state
