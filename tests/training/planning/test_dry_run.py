"""What a dry run prints and refuses."""

from __future__ import annotations

from pathlib import Path

import pytest

from editar.errors import ConfigError
from editar.training.planning.dry_run import dry_run
from tests.helpers.tiny import run_module, tiny_overrides, train_config


def test_dry_run_prints_the_plan_and_loads_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dry_run(train_config("experiment=editar_xl", f"output_dir={tmp_path / 'run'}"))
    text = capsys.readouterr().out
    assert "777,678,080 parameters" in text
    assert "64 samples = 1 processes x 8 at once x 8 times" in text
    assert "pipe 25.0 %" in text
    assert not (tmp_path / "run").exists()


def test_dry_run_as_a_command(tmp_path: Path, tiny_tokenizer: Path) -> None:
    done = run_module("editar.train", *tiny_overrides(tmp_path / "run", tiny_tokenizer, "dry_run=true"))
    assert done.returncode == 0, done.stderr
    assert "nano: 100.0 % of the draws, 24 rows" in done.stdout
    assert not (tmp_path / "run").exists()


def test_impossible_plans_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    xl = ("experiment=editar_xl", f"output_dir={tmp_path}")
    with pytest.raises(ConfigError, match=r"GB free, the checkpoints need .* GB \(9\.4 GB each\)"):
        dry_run(
            train_config(
                "experiment=editar_xl",
                f"output_dir={tmp_path}",
                "keep_checkpoints=1000000",
                "steps=1000000",
                "save_every=1",
            )
        )
    monkeypatch.setenv("WORLD_SIZE", "7")
    with pytest.raises(ConfigError, match="global_batch=64 is not divisible by 7 processes"):
        dry_run(train_config(*xl))
    with pytest.raises(ConfigError, match=r"optim\.name=muon needs whole matrices"):
        train_config(*xl, "optim.name=muon", "parallel=fsdp")
