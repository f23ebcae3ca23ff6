"""Run folders under attack: two runs at once, failed starts, damaged files, full disks, weights that are not finite."""

from __future__ import annotations

import json
import os
import platform
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from editar.config import TokenizerTrainConfig, TrainConfig
from editar.errors import CheckpointError, ConfigError, TrainingError
from editar.runtime.entry import load_config, told_in_one_line
from editar.runtime.files import check_run_folder, load_weights, provenance, save_weights, write_run_folder
from editar.runtime.lock import NAME, sole_run
from editar.runtime.log import MetricLogger
from editar.sampling.pipeline import EditPipeline
from editar.training.loop import train
from editar.training.tokenizer.loop import train_tokenizer
from tests.attack.conftest import Continue
from tests.helpers import trainings
from tests.helpers.tiny import ROOT, TINY_TOKENIZER, tiny_overrides


def tokenizer_config(folder: Path, *more: str) -> TokenizerTrainConfig:
    base = [f"output_dir={folder}", "steps=2", "num_workers=0", "log_every=1", "batch_size=4", *TINY_TOKENIZER]
    return load_config(TokenizerTrainConfig, "train_tokenizer", [*base, *more])


@contextmanager
def another_process(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that holds `folder` until it is killed."""
    code = f"from pathlib import Path; from editar.runtime.lock import sole_run\nwith sole_run(Path({str(folder)!r})):"
    command = [sys.executable, "-c", f"{code}\n print('held', flush=True); input()"]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        yield holder
        holder.kill()


def test_a_second_run_in_a_folder_is_refused_until_the_first_is_gone(run: Path, go_on: Continue) -> None:
    with another_process(run) as holder:
        for start in (lambda: go_on(run), lambda: train_tokenizer(tokenizer_config(run))):
            with pytest.raises(ConfigError, match=rf"process {holder.pid} on \S+ is at work in this folder; wait"):
                start()
        holder.send_signal(signal.SIGKILL)
        holder.wait()
    assert json.loads((run / NAME).read_text())["process"] == holder.pid  # left behind
    go_on(run)
    assert not (run / NAME).exists()


@pytest.mark.parametrize("content", ["", "{", "[]", "7", '{"host": 3'])
def test_a_cut_lock_file_does_not_block(tmp_path: Path, content: str) -> None:
    (tmp_path / NAME).write_text(content)
    with sole_run(tmp_path):
        assert json.loads((tmp_path / NAME).read_text())["host"] == platform.node()
    assert not (tmp_path / NAME).exists()


def test_a_lock_of_another_host_ends_with_its_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """torchrun may start the first process anew on another node."""
    lock = {"host": "elsewhere", "process": 7, "job": "job-1"}
    (tmp_path / NAME).write_text(json.dumps(lock))
    for job in ("none", "job-2"):
        monkeypatch.setenv("TORCHELASTIC_RUN_ID", job)
        message = rf"process 7 on elsewhere is at work .* If it is gone, remove {tmp_path / NAME}"
        with pytest.raises(ConfigError, match=message), sole_run(tmp_path):
            pass
        assert json.loads((tmp_path / NAME).read_text()) == lock
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "job-1")
    with sole_run(tmp_path):
        pass


def test_a_finished_run_says_so(run: Path, go_on: Continue, capsys: pytest.CaptureFixture[str]) -> None:
    before = (run / "model.safetensors").stat().st_mtime_ns, (run / "metrics.jsonl").read_bytes()
    go_on(run)
    assert f"{run} is finished: 4 steps done, steps=4" in capsys.readouterr().err
    assert before == ((run / "model.safetensors").stat().st_mtime_ns, (run / "metrics.jsonl").read_bytes())


def test_a_finished_tokenizer_is_not_trained_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = train_tokenizer(tokenizer_config(tmp_path / "tokenizer"))

    def contents() -> dict[Path, tuple[int, bytes]]:
        return {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.rglob("*") if path.is_file()}

    before = contents()
    train_tokenizer(tokenizer_config(folder))
    assert f"{folder} is finished" in capsys.readouterr().err
    assert before == contents()
    with pytest.raises(ConfigError, match="another config"):
        train_tokenizer(tokenizer_config(folder, "seed=3"))


def test_a_source_taken_away_is_another_config(tmp_path: Path, tiny_tokenizer: Path) -> None:
    common = tiny_overrides(tmp_path / "run", tiny_tokenizer)
    one = load_config(TrainConfig, "train", common)
    two = load_config(TrainConfig, "train", [*common, "+source@data.sources.second=nano"])
    write_run_folder(tmp_path / "run", two)
    check_run_folder(tmp_path / "run", two)
    with pytest.raises(ConfigError, match=r"another config \(data\.sources\.second\.kind was nano, now None"):
        train(one)
    write_run_folder(tmp_path / "other", one)
    with pytest.raises(ConfigError, match=r"data\.sources\.second\.kind was None, now nano"):
        check_run_folder(tmp_path / "other", two)


@pytest.mark.parametrize("mistake", ["tokenizer.weights", "init_from", "init_from that does not fit"])
def test_a_failed_start_leaves_nothing_that_blocks(
    tmp_path: Path, tiny_run: Path, tiny_tokenizer: Path, mistake: str
) -> None:
    folder = tmp_path / "run"
    common = tiny_overrides(folder, tiny_tokenizer, "steps=1", "eval_every=9")
    wrong = {
        "tokenizer.weights": ["tokenizer.weights=nowhere"],
        "init_from": ["init_from=nowhere"],
        "init_from that does not fit": [f"init_from={tiny_run}", "gpt.dim=64"],
    }[mistake]
    with pytest.raises(CheckpointError):
        train(load_config(TrainConfig, "train", [*common, *wrong]))
    assert list(folder.iterdir()) == []  # neither a config nor a data set that was encoded first
    train(load_config(TrainConfig, "train", common))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("config.yaml", b"a: [", "config.yaml: damaged"),
        ("config.yaml", b"\xff\xfe\x00", "config.yaml: damaged"),
        ("config.yaml", b"- 1\n", "no mapping of settings"),
        ("provenance.json", b"{", "provenance.json: damaged"),
        ("provenance.json", b"7", "provenance.json: damaged"),
        ("provenance.json", b"\xff", "provenance.json: damaged"),
    ],
)
def test_damaged_files_are_named(run: Path, go_on: Continue, name: str, content: bytes, message: str) -> None:
    (run / name).write_bytes(content)
    with pytest.raises(ConfigError, match=message) as error:
        go_on(run)
    assert "\n" not in str(error.value)


def test_damaged_rows_are_dropped_and_the_rest_stays(tmp_path: Path) -> None:
    good = [json.dumps({"step": step, "token": 1.0}) for step in (1, 2, 3)]
    bad = [b"{}", b"[1]", b'{"step": "x"}', b'{"step": null}', b"\xff}", b"}", b'{"step": 1, "tok']
    lines = [b for row in good for b in (row.encode(), *bad)]
    (tmp_path / "metrics.jsonl").write_bytes(b"\n".join(lines))
    logger = MetricLogger(tmp_path, 9, start_step=2)
    assert (tmp_path / "metrics.jsonl").read_text().splitlines() == good[:2]
    assert logger.has(2, "token") and not logger.has(3, "token")


def test_no_git_on_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert provenance()["commit"] == "unknown"


def test_a_disk_that_is_full_from_the_start(tmp_path: Path, tiny_run: Path, tiny_tokenizer: Path) -> None:
    overrides = tiny_overrides(tmp_path / "run", tiny_tokenizer, "steps=4", f"data.cache={tiny_run / 'codes'}")
    child = trainings.start(overrides, tmp_path / "log", file_limit=1500)
    child.join()
    said = (tmp_path / "log").read_text()
    assert child.exitcode == 2, said
    assert f"editar.train: {tmp_path / 'run/config.yaml'}: File too large" in said and "Traceback" not in said


def test_a_tokenizer_that_diverges_saves_nothing(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="not finite, nothing is saved"):
        train_tokenizer(tokenizer_config(tmp_path / "run", "optim.name=adamw", "optim.lr=1e9", "steps=4"))
    assert not (tmp_path / "run/model.safetensors").exists() and not (tmp_path / "run/result.json").exists()


@pytest.mark.parametrize("file", ["model", "tokenizer"])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_weights_that_are_not_finite_do_not_edit(run: Path, file: str, value: float) -> None:
    path = run / f"{file}.safetensors"
    state = load_weights(path)
    name = {"model": "output.weight", "tokenizer": "decoder.conv_out.weight"}[file]
    state[name].view(-1)[3] = value
    save_weights(state, path)
    with pytest.raises(CheckpointError, match=rf"not finite: {name}"):
        EditPipeline.from_pretrained(run, "cpu")


@pytest.mark.parametrize("where", ["output folder", "no folder", "folder that is not there"])
def test_any_other_error_is_a_line_and_a_file(tmp_path: Path, capfd: pytest.CaptureFixture[str], where: str) -> None:
    folder = {"output folder": str(tmp_path), "no folder": None}.get(where, str(tmp_path / "absent"))

    def entry() -> None:
        with told_in_one_line("editar.train") as told:
            told.folder = folder
            raise RuntimeError("two\nlines ü")

    with pytest.raises(SystemExit) as left:
        entry()
    assert left.value.code == 1
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("editar.train: RuntimeError: two lines ü (")
    file = Path(line.rsplit("see ", 1)[1].rstrip(")"))
    assert "Traceback" in file.read_text() and str(os.getpid()) in file.name
    assert (file.parent == tmp_path) == (where == "output folder")
    file.unlink()
