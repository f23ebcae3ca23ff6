"""Run folders under attack: two runs at once, failed starts, damaged files, full disks, weights that are not finite."""

from __future__ import annotations

import json
import platform
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from editar.config import TokenizerTrainConfig, TrainConfig, from_yaml
from editar.errors import CheckpointError, ConfigError, TrainingError
from editar.runtime.entry import load_config
from editar.runtime.files import check_run_folder, load_weights, save_weights, write_run_folder, write_text
from editar.runtime.lock import NAME, sole_run
from editar.runtime.log import MetricLogger
from editar.sampling.pipeline import EditPipeline
from editar.training.loop import train
from editar.training.tokenizer.loop import train_tokenizer
from editar.weights.run_checkpoint import latest_checkpoint
from tests.attack.conftest import Continue
from tests.helpers.hostile import moved
from tests.helpers.tiny import ROOT, TINY_TOKENIZER, tiny_overrides, train_config


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


def test_an_update_that_went_wrong_is_not_saved(tiny_tokenizer: Path, tmp_path: Path) -> None:
    """The last step's loss is that of the weights before it, and there is no next step to find it out."""
    wild = ["optim.lr=1e38", "optim.muon_lr=1e38"]
    given = tiny_overrides(tmp_path / "run", tiny_tokenizer, "steps=1", "optim.warmup_steps=0", *wild)
    with pytest.raises(TrainingError, match=r"after step 1: .* not finite, nothing of it is saved"):
        train(train_config(*given))
    assert not (tmp_path / "run/model.safetensors").exists() and latest_checkpoint(tmp_path / "run") is None


def test_a_run_whose_checkpoints_were_removed_is_not_trained_anew(
    tiny_run: Path, tiny_tokenizer: Path, tmp_path: Path
) -> None:
    run = Path(shutil.copytree(tiny_run, tmp_path / "run"))
    for checkpoint in (run / "checkpoints").iterdir():
        shutil.rmtree(checkpoint)
    with pytest.raises(ConfigError, match=r"holds model\.safetensors, but no checkpoint to go on from"):
        train(train_config(*tiny_overrides(run, tiny_tokenizer, "steps=4", "eval_every=4", "save_every=2")))


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
    for steps in (4, 2):
        go_on(run, f"steps={steps}")
        assert f"{run} is finished: 4 steps done, steps={steps}" in capsys.readouterr().err
    assert before == ((run / "model.safetensors").stat().st_mtime_ns, (run / "metrics.jsonl").read_bytes())
    assert from_yaml(TrainConfig, run / "config.yaml").steps == 4


def test_a_run_that_lost_its_config_is_not_continued_with_another(run: Path, go_on: Continue) -> None:
    (run / "config.yaml").unlink()
    with pytest.raises(ConfigError, match=r"holds checkpoints, but no config\.yaml that says of which training"):
        go_on(run, "seed=7")
    assert not (run / "config.yaml").exists()


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
    weights = folder / "model.safetensors"
    good = load_weights(weights)
    for harm in (
        weights.unlink,
        lambda: weights.write_bytes(weights.read_bytes()[:500]),
        lambda: save_weights({}, weights),
    ):
        harm()
        train_tokenizer(tokenizer_config(folder))
        assert all(torch.equal(value, good[name]) for name, value in load_weights(weights).items())


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


def test_a_tokenizer_that_diverges_saves_nothing(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="not finite, nothing is saved"):
        train_tokenizer(tokenizer_config(tmp_path / "run", "optim.name=adamw", "optim.lr=1e9", "steps=4"))
    assert not (tmp_path / "run/model.safetensors").exists() and not (tmp_path / "run/result.json").exists()


def test_a_folder_in_the_place_of_a_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "scores.json").mkdir()
    with pytest.raises(IsADirectoryError) as told:
        write_text(tmp_path / "scores.json", "{}")
    assert told.value.filename == str(tmp_path / "scores.json") and "is a folder" in str(told.value.strerror)


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.safetensors"])
def test_one_flipped_bit_of_a_run_is_noticed(tiny_run: Path, tmp_path: Path, name: str) -> None:
    folder = shutil.copytree(tiny_run, tmp_path / "run", ignore=shutil.ignore_patterns("checkpoints", "codes"))
    content = bytearray((folder / name).read_bytes())
    content[-5] ^= 4
    (folder / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=r"its tensors are not as they were written, the file is damaged"):
        EditPipeline.from_pretrained(folder)


def test_a_folder_that_was_moved_goes_on(tiny_run: Path, tmp_path: Path) -> None:
    run = shutil.copytree(tiny_run, tmp_path / "elsewhere")
    cfg = moved(run)
    cfg.steps += 1
    train(cfg)
    assert latest_checkpoint(run).name == f"step_{cfg.steps:07d}"  # type: ignore[union-attr]


def test_the_last_good_step_is_kept_when_the_next_is_not_finite(tiny_tokenizer: Path, tmp_path: Path) -> None:
    cfg = train_config(
        *tiny_overrides(tmp_path / "run", tiny_tokenizer, "optim.muon_lr=1e38", "steps=3", "save_every=1")
    )
    with pytest.raises(TrainingError, match="The last checkpoint is step_0000001"):
        train(cfg)
    assert not list((tmp_path / "run" / "checkpoints").glob(".*"))
