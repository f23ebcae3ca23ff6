"""Machines as they should not be: no git, no room, no reader, no working directory, half of torchrun."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from editar.errors import ConfigError
from editar.runtime import files
from editar.runtime.distributed import distributed
from editar.runtime.entry import told_in_one_line
from editar.runtime.files import provenance
from editar.weights.run_checkpoint import latest_checkpoint
from tests.helpers import trainings
from tests.helpers.tiny import ROOT, tiny_overrides


def raise_in_entry(error: BaseException) -> None:
    with told_in_one_line("editar.train"):
        raise error


def in_shell(script: str) -> str:
    """What the last line of stderr says, between the program's name and the first semicolon; exit code 2."""
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 2
    return done.stderr.splitlines()[-1].partition(": ")[2].partition(";")[0]


@pytest.mark.parametrize(
    ("script", "commit"),
    [("exit 3", "unknown"), ("printf '\\377\\376'", "\ufffd\ufffd"), ("exec sleep 300", "unknown")],
)
def test_a_git_that_fails_hangs_or_says_nonsense(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, commit: str
) -> None:
    git = tmp_path / "git"
    git.write_text(f"#!/bin/sh\n{script}\n")
    git.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setattr(files, "GIT_SECONDS", 1)
    found = provenance()
    assert found["commit"] == commit and json.loads(json.dumps(found)) == found


def test_nobody_reads_what_is_printed(tiny_tokenizer: Path, tmp_path: Path) -> None:
    given = " ".join(tiny_overrides(tmp_path / "run", tiny_tokenizer, "steps=1"))
    command = f"{sys.executable} -m editar.train {given}"
    silent = ["bash", "-c", f"set -o pipefail; {command} 2>&1 | true"]
    assert subprocess.run(silent, cwd=ROOT, timeout=200).returncode == 0
    assert latest_checkpoint(tmp_path / "run") is not None
    helps = ["bash", "-c", f"set -o pipefail; {sys.executable} -m editar.train --help | head -n 1"]
    done = subprocess.run(helps, cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "") and done.stdout.startswith("usage: ")
    results = ["bash", "-c", f"set -o pipefail; {sys.executable} scripts/fetch_weights.py --list | true"]
    done = subprocess.run(results, cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    for place in ("image=x 2>/dev/full", "--help >/dev/full"):
        full = subprocess.run(["bash", "-c", f"{sys.executable} -m editar.edit {place}"], cwd=ROOT)
        assert full.returncode == 2


def test_texts_are_utf8_in_any_locale(tmp_path: Path) -> None:
    code = (
        "from editar.runtime.entry import script\nfrom editar.runtime.files import write_text\n"
        "from editar.runtime.log import echo\n\n@script('x')\ndef main():\n"
        "    write_text('a.txt', '\\xa0\\u6f22')\n    echo('\\u6f22\\udcff')\n\nmain()"
    )
    settings = os.environ | {"PYTHONPATH": str(ROOT), "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=settings, capture_output=True)
    assert (done.stdout, done.stderr) == ("\u6f22".encode() + b"\xff\n", b"")
    assert (tmp_path / "a.txt").read_bytes() == "\xa0\u6f22".encode()


def test_figures_need_no_display(tmp_path: Path) -> None:
    code = "from editar.report.plots import load_pyplot; print(load_pyplot().get_backend())"
    settings = os.environ | {"PYTHONPATH": str(ROOT), "MPLBACKEND": "nosuch"}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=settings, capture_output=True, text=True)
    assert done.stdout.lower() == "agg\n", done.stderr


def test_a_lock_without_room(tmp_path: Path) -> None:
    code = "import resource\nfrom pathlib import Path\nfrom editar.runtime.lock import sole_run\n"
    code += "resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))\nsole_run(Path('run')).__enter__()"
    settings = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=settings, capture_output=True, text=True)
    assert "ConfigError: run/running.lock: cannot be written (File too large); make room there" in done.stderr
    assert not list((tmp_path / "run").iterdir())


def test_too_little_memory(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"), told_in_one_line("editar.train"):
        torch.empty(2**40, 2**40)
    assert "out of memory" in capsys.readouterr().err


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


def test_a_very_long_error_is_cut_in_its_middle(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit), told_in_one_line("editar.edit"):
        raise ConfigError(f"{'a' * 9000}: give another")
    error = capsys.readouterr().err
    assert len(error) < 1300 and error.startswith("editar.edit: aaa") and error.endswith("aaa: give another\n")


def test_a_working_directory_that_is_gone(tmp_path: Path) -> None:
    code = "import os\nos.rmdir(os.getcwd())\nfrom editar.edit import main\nmain()"
    command, environment = [sys.executable, "-c", code, "image=x"], os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 2 and "the working directory does not exist any more" in done.stderr


def test_impossible_torchrun_environments() -> None:
    environments = [
        {"WORLD_SIZE": "-1"},
        {"WORLD_SIZE": "2"},
        {"RANK": "5", "WORLD_SIZE": "2"},
        {"WORLD_SIZE": "two"},
        {"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "localhost", "MASTER_PORT": "99999"},
    ]
    code = (
        "import os\nfrom editar.runtime.distributed import distributed\nbefore = dict(os.environ)\n"
        f"for environment in {environments}:\n"
        "    os.environ.clear()\n    os.environ.update(before | environment)\n"
        "    try:\n        distributed('cpu').__enter__()\n"
        "    except Exception as error:\n        print(type(error).__name__, error)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    lines = done.stdout.splitlines()
    assert len(lines) == len(environments), done.stdout + done.stderr
    assert all(line.startswith("ConfigError") and "start with torchrun" in line for line in lines), lines


def test_names_in_a_file_do_not_steer_the_terminal(tmp_path: Path, refusal: Callable[..., str]) -> None:
    torch.save({"model": {"\n\x1b[31mOWNED": torch.zeros(1)}}, tmp_path / "w.pt")
    told = refusal("scripts/convert_weights.py", str(tmp_path / "w.pt"), str(tmp_path / "out"))
    assert "OWNED" in told and "\x1b" not in told and len(told.splitlines()) == 1


def test_broken_surroundings_end_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def ends(error: BaseException) -> str:
        with pytest.raises(SystemExit) as end:
            raise_in_entry(error)
        assert end.value.code == 2
        return capsys.readouterr().err

    assert "No space left" in ends(OSError(28, "No space left on device"))
    with pytest.raises(UnicodeEncodeError) as told:
        os.fsdecode(b"\xff").encode()
    assert "a name that is not UTF-8" in ends(told.value)
    with pytest.raises(UnicodeEncodeError) as told:
        "\u6f22.png".encode("ascii")
    assert r"'\u6f22.png': a name that ascii, this locale's encoding, cannot hold" in ends(told.value)
    work = tmp_path / "gone"
    work.mkdir()
    command = f"PYTHONPATH={ROOT} {sys.executable} -m editar.train output_dir=x"
    assert in_shell(f"cd {work}; rmdir {work}; {command}") == "the working directory does not exist any more"
    silent = (
        f"cd {tmp_path}; (PYTHONPATH={ROOT} {sys.executable} -m editar.edit image=x 2>&-); echo code: $? >&2; exit 2"
    )
    assert in_shell(silent) == "2"
    monkeypatch.setenv("LOCAL_RANK", "zero")
    with pytest.raises(ConfigError, match="LOCAL_RANK=zero in the environment is no number"), distributed("cpu"):
        pass
