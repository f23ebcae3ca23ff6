"""Kills of two processes at random moments: whatever is killed, the run ends as if nothing had happened."""

from __future__ import annotations

import os
import random
import signal
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from editar.weights.run_checkpoint import latest_checkpoint
from tests.helpers import trainings
from tests.helpers.tiny import tiny_overrides

KILLS, STEPS = 15, 60
COMMON = [
    f"steps={STEPS}",
    "save_every=2",
    "eval_every=20",
    "optim.name=adamw",
    "gpt.resid_dropout=0.1",
    "micro_batch=2",
]


class Job:
    """A training of two processes under torchrun's agent, which is started again when it was killed too."""

    def __init__(self, overrides: list[str], log: Path) -> None:
        self.overrides, self.log, self.lives = overrides, log, 0
        self.start()

    def start(self) -> None:
        self.lives += 1
        self.log_of_life = self.log.with_name(f"{self.log.name}{self.lives}")
        self.agent: Any = trainings.launch(self.overrides, self.log_of_life, processes=2, restarts=2 * KILLS)
        self.attempts = 0

    def started(self) -> list[int]:
        """Waits for the next attempt's two processes -> their ids."""
        end = time.monotonic() + 120
        while time.monotonic() < end and self.agent.is_alive():
            begun = trainings.workers(self.log_of_life)
            if len(begun) > self.attempts and len(begun[newest := max(begun)]) == 2:
                self.attempts = len(begun)
                return begun[newest]
            time.sleep(0.005)
        raise AssertionError(f"no new attempt: {self.said()}")

    def said(self) -> str:
        return self.log_of_life.read_text(errors="replace")[-3000:] if self.log_of_life.exists() else ""


def kill(job: Job, processes: list[int], which: str) -> None:
    """SIGKILL to one process of the training, which torchrun's agent then starts anew with the other one, or to
    all of them and the agent, as when a machine goes down."""
    victims = {"first": processes[:1], "second": processes[1:], "all": [job.agent.pid, *processes]}[which]
    for process in victims:
        with suppress(ProcessLookupError):  # the agent ended it a moment ago
            os.kill(process, signal.SIGKILL)
    if which == "all":
        job.agent.join()
        job.start()


@pytest.mark.slow
@pytest.mark.multiprocess
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_two_processes_killed_at_random_moments_equal_the_uninterrupted_run(
    tmp_path: Path, tiny_tokenizer: Path, tiny_run: Path, parallel: str
) -> None:
    """docs/training.md: on a CPU with the same number of processes, bit for bit."""
    seed = int(os.environ.get("ATTACK_SEED", time.time_ns() % 2**32))
    print(f"{parallel}: ATTACK_SEED={seed}")
    rng, whole, folder = random.Random(seed), tmp_path / "whole", tmp_path / "run"
    common = [*COMMON, f"parallel={parallel}", f"data.cache={tiny_run / 'codes'}"]
    agent = trainings.launch(tiny_overrides(whole, tiny_tokenizer, *common), tmp_path / "log", processes=2, restarts=0)
    agent.join()
    assert agent.exitcode == 0, (tmp_path / "log").read_text()[-3000:]

    job = Job(tiny_overrides(folder, tiny_tokenizer, *common), tmp_path / "log_of_life_")
    counts: dict[str, int] = {}
    for number in range(KILLS):
        processes = job.started()
        if rng.random() < 0.3:
            moment = "at the start"
            time.sleep(rng.uniform(0, 1.5))
        else:
            moment = "in training"
            trainings.wait_for_rows(folder, 3 * number + rng.randint(0, 3), job.agent.is_alive)
            time.sleep(rng.uniform(0, 0.1))
        assert job.agent.is_alive(), job.said()
        which = rng.choice(["first", "second", "all"])
        kill(job, processes, which)
        counts[f"{which} {moment}"] = counts.get(f"{which} {moment}", 0) + 1
        newest = latest_checkpoint(folder)
        print(f"kill {number + 1}: {which} {moment}, newest checkpoint {newest.name if newest else 'none'}")
    job.agent.join()
    assert job.agent.exitcode == 0, job.said()
    print(f"{parallel}: {sum(counts.values())} kills: {counts}")

    ends = [latest_checkpoint(run) for run in (whole, folder)]
    assert [path.name for path in ends if path] == [f"step_{STEPS:07d}"] * 2
    one, two = (trainings.stored(path) for path in ends if path)
    assert one.keys() == two.keys()
    assert [key for key in one if not torch.equal(one[key], two[key])] == []
    weights, again = (load_file(run / "model.safetensors") for run in (whole, folder))
    assert all(torch.equal(weights[key], again[key]) for key in weights)
    assert (whole / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()
    assert trainings.rows(whole) == trainings.rows(folder)
    assert not list((folder / "checkpoints").glob(".*"))
