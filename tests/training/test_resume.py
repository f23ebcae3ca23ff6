"""Nothing is lost: killed, told to stop, out of disk, on another number of processes, a run goes on exactly."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from editar.runtime.stop import EXIT_STOPPED
from editar.weights.run_checkpoint import complete, latest_checkpoint
from tests.helpers import trainings
from tests.helpers.tiny import ROOT, run_module, tiny_overrides

STEPS = 20
COMMON = [f"steps={STEPS}", "save_every=2", "eval_every=10", "optim.name=adamw", "gpt.resid_dropout=0.1"]


def assert_same_run(a: Path, b: Path, exact: bool = True, rows: bool = True) -> None:
    """Weights, moments and metrics of two finished runs."""
    newest = [latest_checkpoint(folder) for folder in (a, b)]
    assert [path.name for path in newest if path] == [f"step_{STEPS:07d}"] * 2
    for one, two in (
        (trainings.stored(path) for path in newest if path),
        (load_file(f / "model.safetensors") for f in (a, b)),
    ):
        assert one.keys() == two.keys()
        for key in one:
            if exact:
                assert torch.equal(one[key], two[key]), key
            else:
                torch.testing.assert_close(one[key], two[key], atol=1e-5, rtol=1e-4)
    if rows:
        assert trainings.rows(a) == trainings.rows(b)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: Path) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "run"
    child = trainings.start(tiny_overrides(folder, tiny_tokenizer, *COMMON), folder.parent / "log")
    child.join()
    assert child.exitcode == 0, (folder.parent / "log").read_text()[-2000:]
    steps = [*range(1, 11), 10, *range(11, 21), 20]
    assert [row["step"] for row in trainings.rows(folder)] == steps
    return folder


@pytest.mark.parametrize("background", [True, False], ids=["async", "sync"])
def test_killed_at_ten_random_moments_it_equals_the_uninterrupted_run(
    tmp_path: Path, tiny_tokenizer: Path, uninterrupted: Path, background: bool
) -> None:
    rng = random.Random(int(background))
    folder, log = tmp_path / "run", tmp_path / "log"
    overrides = tiny_overrides(folder, tiny_tokenizer, *COMMON, f"async_checkpoints={background}")
    for life in range(10):
        child = trainings.start(overrides, log)
        # Each life gets a little further than the last, then dies anywhere in a step or in saving.
        trainings.wait_for_rows(folder, 2 * life + rng.randint(0, 2), child.is_alive)
        time.sleep(rng.uniform(0, 0.05))
        child.kill()
        child.join()
        assert child.exitcode == -signal.SIGKILL, log.read_text()[-2000:]
    child = trainings.start(overrides, log)
    child.join()
    assert child.exitcode == 0, log.read_text()[-2000:]
    assert_same_run(uninterrupted, folder)
    assert not list((folder / "checkpoints").glob(".*"))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_told_to_stop_it_saves_and_exits_with_its_own_code(
    tmp_path: Path, tiny_tokenizer: Path, uninterrupted: Path, number: signal.Signals
) -> None:
    folder, log = tmp_path / "run", tmp_path / "log"
    overrides = tiny_overrides(folder, tiny_tokenizer, *COMMON)
    child = trainings.start(overrides, log)
    trainings.wait_for_rows(folder, 3, child.is_alive)
    os.kill(child.pid, number)
    child.join()
    assert child.exitcode == EXIT_STOPPED, log.read_text()[-2000:]
    last = trainings.rows(folder)[-1]["step"]
    assert latest_checkpoint(folder) == folder / f"checkpoints/step_{last:07d}"
    assert f"told to stop ({number.name}); saved step {last}" in log.read_text()
    child = trainings.start(overrides, log)
    child.join()
    assert child.exitcode == 0, log.read_text()[-2000:]
    assert_same_run(uninterrupted, folder)


def test_a_signal_to_the_loaders_workers_too(tmp_path: Path, tiny_tokenizer: Path) -> None:
    """As Slurm and `timeout` send it: to the whole process group."""
    folder, log = tmp_path / "run", tmp_path / "log"
    common = [*COMMON, "steps=100000", "save_every=100000", "eval_every=100000", "num_workers=2"]
    command = [sys.executable, "-m", "editar.train", *tiny_overrides(folder, tiny_tokenizer, *common)]
    with log.open("wb") as file:
        run = subprocess.Popen(command, cwd=ROOT, stdout=file, stderr=file, start_new_session=True)
    trainings.wait_for_rows(folder, 3, lambda: run.poll() is None)
    os.killpg(run.pid, signal.SIGTERM)
    assert run.wait(timeout=100) == EXIT_STOPPED, log.read_text()[-2000:]
    assert latest_checkpoint(folder) is not None


def test_a_full_disk_leaves_the_last_checkpoint_and_one_line(tmp_path: Path, tiny_tokenizer: Path) -> None:
    folder, log = tmp_path / "run", tmp_path / "log"
    overrides = tiny_overrides(folder, tiny_tokenizer, *COMMON, "gpt.dim=96", "eval_every=100")
    child = trainings.start([*overrides, "steps=2"], log)
    child.join()
    assert child.exitcode == 0, log.read_text()[-2000:]
    size = max(file.stat().st_size for file in (folder / "checkpoints/step_0000002").iterdir())
    log.unlink()
    child = trainings.start(overrides, log, file_limit=size - 4096)
    child.join()
    assert child.exitcode == 2
    (line,) = [line for line in log.read_text().splitlines() if line.startswith("editar.train:")]
    assert "checkpoint of step 4 could not be written" in line
    assert "step_0000002 is complete" in line
    assert complete(folder) == [folder / "checkpoints/step_0000002"]
    child = trainings.start(overrides, log)
    child.join()
    assert child.exitcode == 0, log.read_text()[-2000:]


def test_milestones_stay(tmp_path: Path, tiny_tokenizer: Path) -> None:
    overrides = tiny_overrides(tmp_path / "run", tiny_tokenizer, *COMMON, "save_every=1", "keep_every=3", "steps=8")
    child = trainings.start([*overrides, "keep_checkpoints=1"], tmp_path / "log")
    child.join()
    assert child.exitcode == 0, (tmp_path / "log").read_text()[-2000:]
    assert [path.name[-1] for path in complete(tmp_path / "run")] == ["3", "6", "8"]


def test_a_damaged_checkpoint_is_named(tmp_path: Path, tiny_tokenizer: Path) -> None:
    overrides = tiny_overrides(tmp_path / "run", tiny_tokenizer, *COMMON, "steps=2")
    child = trainings.start(overrides, tmp_path / "log")
    child.join()
    (data,) = (tmp_path / "run/checkpoints/step_0000002").glob("*.distcp")
    data.write_bytes(data.read_bytes()[:100])
    child = trainings.start([*overrides, "steps=4"], tmp_path / "log")
    child.join()
    assert child.exitcode == 2
    assert "step_0000002: not readable or of another model" in (tmp_path / "log").read_text()


@pytest.mark.multiprocess
def test_from_two_processes_to_one_to_two_and_from_ddp_to_fsdp(tmp_path: Path, tiny_tokenizer: Path) -> None:
    """Dropout masks belong to a rank, so they are off; a large eps, since AdamW's first steps are else the
    gradient's sign, which rounding flips near zero."""
    common = [*COMMON, "gpt.resid_dropout=0", "optim.eps=1e-3", "optim.ema_decay=0.5", "micro_batch=2"]
    whole, folder = tmp_path / "whole", tmp_path / "run"
    child = trainings.start(tiny_overrides(whole, tiny_tokenizer, *common), tmp_path / "log")
    child.join()
    assert child.exitcode == 0, (tmp_path / "log").read_text()[-2000:]
    for processes, steps, parallel in ((2, 2, "ddp"), (0, 4, "fsdp"), (2, STEPS, "fsdp")):
        overrides = tiny_overrides(folder, tiny_tokenizer, *common, f"steps={steps}", f"parallel={parallel}")
        done = run_module("editar.train", *overrides, processes=processes)
        assert done.returncode == 0, done.stderr[-2000:]
    assert_same_run(whole, folder, exact=False, rows=False)
    steps = [row["step"] for row in trainings.rows(folder)]
    assert sorted(set(steps)) == list(range(1, STEPS + 1))


def torchrun(overrides: list[str], log: Path, *options: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", *options]
    with log.open("wb") as file:
        return subprocess.Popen(
            [*command, "-m", "editar.train", *overrides],
            cwd=ROOT,
            env=os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
            stdout=file,
            stderr=file,
        )


def processes_under(parent: int) -> list[int]:
    """Its child processes."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rsplit(")", 1)[1].split()
        except OSError:  # it ended while we looked
            continue
        if int(fields[1]) == parent:
            found.append(int(stat.parent.name))
    return sorted(found)


@pytest.mark.multiprocess
def test_torchrun_restarts_a_killed_process_and_the_run_goes_on(tmp_path: Path, tiny_tokenizer: Path) -> None:
    folder, log = tmp_path / "run", tmp_path / "log"
    common = [*COMMON, "steps=40", "save_every=1", "eval_every=100", "micro_batch=2"]
    launcher = torchrun(tiny_overrides(folder, tiny_tokenizer, *common), log, "--max-restarts=1")
    trainings.wait_for_rows(folder, 4, lambda: launcher.poll() is None)
    os.kill(processes_under(launcher.pid)[-1], signal.SIGKILL)
    assert launcher.wait(timeout=300) == 0, log.read_text()[-3000:]
    assert "resuming" in log.read_text()
    assert [row["step"] for row in trainings.rows(folder)][:40] == list(range(1, 41))


@pytest.mark.multiprocess
def test_sigterm_to_torchrun_saves_on_all_processes(tmp_path: Path, tiny_tokenizer: Path) -> None:
    folder, log = tmp_path / "run", tmp_path / "log"
    common = [*COMMON, "steps=100000", "save_every=100000", "eval_every=100000", "micro_batch=2"]
    launcher: Any = torchrun(tiny_overrides(folder, tiny_tokenizer, *common), log)
    trainings.wait_for_rows(folder, 3, lambda: launcher.poll() is None)
    launcher.send_signal(signal.SIGTERM)
    assert launcher.wait(timeout=300) != 0
    newest = latest_checkpoint(folder)
    assert newest is not None, log.read_text()[-3000:]
    assert log.read_text().count("told to stop (SIGTERM)") == 1
    assert len(list(newest.glob("*.distcp"))) == 2
