"""A finished tiny run to attack: every test gets a copy of its own."""

from __future__ import annotations

import runpy
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from editar.config import TrainConfig
from editar.runtime.entry import load_config
from editar.training.loop import train
from tests.helpers.tiny import ROOT, tiny_overrides

Continue = Callable[..., Path]


@pytest.fixture
def run(tiny_run: Path, tmp_path: Path) -> Path:
    """Copy of a run of four steps, with checkpoints of steps 2 and 4."""
    return Path(shutil.copytree(tiny_run, tmp_path / "run"))


@pytest.fixture
def go_on(tiny_run: Path, tiny_tokenizer: Path) -> Continue:
    """Start the command that made the copied run again, with more overrides."""

    def start(folder: Path, *more: str) -> Path:
        common = ["steps=4", "eval_every=4", "save_every=2", f"data.cache={tiny_run / 'codes'}"]
        return train(load_config(TrainConfig, "train", tiny_overrides(folder, tiny_tokenizer, *common, *more)))

    return start


@pytest.fixture
def refusal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs a script in this process -> what it printed to stderr before it left with exit code 2."""

    def run(script: str, *arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", [script, *arguments])
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            runpy.run_path(str(ROOT / script), run_name="__main__")
        assert end.value.code == 2
        return capsys.readouterr().err

    return run
