"""Shell recipes: bash accepts them, and the configurations that they train with exist."""

from __future__ import annotations

import os
import shlex
import subprocess
from pathlib import Path

import pytest

from editar.config import TokenizerTrainConfig, TrainConfig
from editar.runtime.entry import load_config
from tests.helpers.tiny import ROOT, run_module

SCRIPTS = sorted((ROOT / "scripts").glob("*.sh"))
CONFIGS = {"train": TrainConfig, "train_tokenizer": TokenizerTrainConfig}


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_bash_accepts_it(script: Path) -> None:
    checked = subprocess.run(["bash", "-n", str(script)], capture_output=True, text=True, check=False)
    assert (checked.returncode, checked.stderr) == (0, "")


def commands(script: str, *arguments: str, runs: str = "runs") -> list[tuple[str, list[str]]]:
    """Entry and overrides of every `python -m editar.ENTRY ...` that the script runs, as bash expands them."""
    echo = os.environ | {"PYTHON": "echo", "RUNS": runs, "CACHE": "caches/editar"}
    done = subprocess.run(
        ["bash", str(ROOT / "scripts" / script), *arguments], env=echo, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    found = []
    for line in done.stdout.splitlines():
        _, module, rest = line.partition("-m editar.")
        if module:
            entry, *overrides = shlex.split(rest)
            found.append((entry, overrides))
    return found


def test_the_reference_trains_with_configurations_that_exist() -> None:
    found = commands("train_reference.sh")
    assert [entry for entry, _ in found] == ["train_tokenizer", "train_tokenizer", "train", "train"]
    folders = [load_config(CONFIGS[entry], entry, overrides).output_dir for entry, overrides in found]
    assert folders == ["runs/nano_tokenizer", "runs/nano_tokenizer_decoder", "runs/nano", "runs/nano_pairs"]


@pytest.mark.parametrize(
    ("script", "given", "message"),
    [
        ("train_editar_xl.sh", {"GPUS": "a[0]"}, "GPUS=a[0]: give the number of GPUs"),
        ("table1.sh", {"GPUS": "0"}, "GPUS=0: give the number of GPUs"),
        ("table1.sh", {}, "give DATA=DIR, the folder with mapping_file.json"),
        ("figure5.sh", {}, "give NAME=RUN of each checkpoint"),
        ("figure6.sh", {}, "give a run folder"),
        ("diversity.sh", {}, "give a run folder"),
        ("supplement_c.sh", {"DEPTH": "d"}, "give COCOSTUFF=DIR, Captioned_COCOStuff"),
        ("slurm_train.sh", {}, "start this with sbatch, not with bash"),
    ],
)
def test_what_is_missing_is_one_line(script: str, given: dict[str, str], message: str) -> None:
    file = str(ROOT / "scripts" / script)
    settings = os.environ | {"PYTHON": "echo"} | given
    done = subprocess.run(["bash", file], env=settings, capture_output=True, text=True, check=False)
    told = done.stderr.replace("table3.sh", "table1.sh")  # which starts it
    assert (done.returncode, done.stdout, told.splitlines()) == (2, "", [f"{file}: {message}"])


@pytest.mark.slow
def test_the_reference_recipe_runs_to_its_end(tmp_path: Path) -> None:
    """Its real shapes, for a few steps each."""
    short = {"train_tokenizer": ["steps=4"], "train": ["steps=4", "data.train_samples=64", "data.heldout_samples=16"]}
    for number, (entry, overrides) in enumerate(commands("train_reference.sh", runs=str(tmp_path))):
        soon = ["kmeans_at=2"] if number == 0 else []
        if number == 3:  # begins with what the one before became
            out, decoder = tmp_path / "reference/nano", tmp_path / "nano_tokenizer_decoder"
            done = run_module("scripts/export_run.py", str(tmp_path / "nano"), str(out), "--decoder", str(decoder))
            assert done.returncode == 0, done.stderr
        done = run_module(f"editar.{entry}", *overrides, *short[entry], *soon)
        assert done.returncode == 0, done.stderr


def test_the_papers_training_is_a_configuration_that_exists() -> None:
    ((entry, overrides),) = commands("train_editar_xl.sh", "output_dir=runs/xl")
    cfg = load_config(CONFIGS[entry], entry, overrides)
    assert (cfg.output_dir, cfg.data.cache, cfg.gpt.dim) == ("runs/xl", "caches/editar", 1280)
