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
SERVER.set_forkserver_preload(
    [
        *("editar.training.loop", "editar.runtime.entry", "hydra", "kornia", "transformers"),
        *("torch.distributed.launcher.api", "torch.distributed.elastic.rendezvous.registry"),
    ]
)


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


def ranked_entry(overrides: list[str], log: str) -> None:
    """`entry` as a worker of torchrun's agent, which sets its environment; notes its process id in `log`.starts."""
    with open(f"{log}.starts", "a") as file:
        file.write(f"{os.environ['TORCHELASTIC_RESTART_COUNT']} {os.environ['RANK']} {os.getpid()}\n")
    try:
        entry(overrides, log, None)
    except SystemExit as left:  # the agent takes an exception of a function as a failure, whatever its code
        if left.code:
            raise


def agent(overrides: list[str], log: str, processes: int, restarts: int) -> None:
    """torchrun's agent, whose workers are forked like those of `start` instead of importing everything again."""
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    os.environ |= {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=restarts,
        start_method="forkserver",
    )
    elastic_launch(config, ranked_entry)(overrides, log)


def launch(overrides: list[str], log: Path, processes: int, restarts: int) -> Any:
    """Running `torchrun --nproc-per-node=PROCESSES --max-restarts=RESTARTS -m editar.train`, as `start` gives it."""
    child = SERVER.Process(target=agent, args=(overrides, str(log), processes, restarts))
    child.start()
    return child


def workers(log: Path) -> dict[int, list[int]]:
    """Process ids of all ranks by attempt, for the attempts of `launch` with that log that have begun."""
    path, found = log.with_name(f"{log.name}.starts"), dict[int, list[int]]()
    for line in path.read_text().splitlines() if path.exists() else ():
        attempt, _, process = map(int, line.split())
        found.setdefault(attempt, []).append(process)
    return found


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
