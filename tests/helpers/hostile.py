"""What the tests of tests/attack share."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from editar.config import TrainConfig, from_yaml
from editar.errors import UserError


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def bare(run: Path, folder: Path) -> Path:
    """A copy of a run without its checkpoints."""
    return shutil.copytree(run, folder, ignore=shutil.ignore_patterns("checkpoints", "codes", "samples"))


def moved(run: Path) -> TrainConfig:
    """The run's own settings, in the folder where it lies now."""
    cfg = from_yaml(TrainConfig, run / "config.yaml")
    cfg.data.cache, cfg.output_dir = str(cfg.data.cache).replace(cfg.output_dir, str(run)), str(run)
    return cfg


def names_in_one_line(error: pytest.ExceptionInfo[UserError], name: str) -> None:
    assert "\n" not in str(error.value) and name in str(error.value), str(error.value)
