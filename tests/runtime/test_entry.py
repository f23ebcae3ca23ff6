"""What an entry prints and returns when something that is not the user's mistake ends it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from editar.runtime.entry import told_in_one_line


def run(action: Callable[[], object], folder: Path) -> None:
    with told_in_one_line("editar.train") as told:
        told.folder = str(folder)
        action()


def ending(action: Callable[[], object], folder: Path) -> int | str | None:
    with pytest.raises(SystemExit) as end:
        run(action, folder)
    return end.value.code


def test_too_little_memory_is_one_line_that_says_what_to_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for action in (lambda: torch.empty(1 << 50), lambda: bytearray(1 << 60)):
        assert ending(action, tmp_path) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("editar.train: out of memory (")
        assert "docs/troubleshooting.md" in line
        assert "Traceback" in Path(line.rpartition(" ")[2]).read_text()


def test_any_other_error_is_one_line_and_a_traceback(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert ending(lambda: [][1], tmp_path) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("editar.train: IndexError: list index out of range (")
    assert "Traceback" in next(tmp_path.glob("traceback_*.txt")).read_text()
