"""scripts/table1-3.sh, supplement_c.sh, diversity.sh and figure5-6.sh, from a checkpoint to the table and the page."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from editar.config import EvalConfig
from editar.evaluation.nano.export import PROMPTS, export_translation
from editar.report.merge import load_scored
from editar.runtime.entry import load_config
from editar.runtime.files import load_weights, save_weights
from tests.helpers.page import Page
from tests.helpers.pie import GOLDEN
from tests.helpers.tiny import ROOT

QUICK = ["networks.structure=null", "networks.lpips=null", "networks.clip=null", "num_workers=0"]


def run_script(name: str, *arguments: str, **environment: str) -> str:
    """What it prints, errors included."""
    settings = os.environ | {"PYTHON": sys.executable, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""} | environment
    done = subprocess.run(
        ["bash", f"scripts/{name}", *arguments], cwd=ROOT, env=settings, text=True, timeout=400,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:]
    return done.stdout


def test_table_1_and_3(tiny_run: Path, tmp_path: Path) -> None:
    """Our checkpoint, and a folder of somebody else's pictures; no baseline is run."""
    folders = f"other={GOLDEN / 'output' / 'tiny-editor'}"
    settings = {"CHECKPOINT": str(tiny_run), "DATA": str(GOLDEN / "data"), "OUT": str(tmp_path / "3")}
    text = run_script("table3.sh", OVERRIDES=" ".join(QUICK), **settings, BASELINES="", FOLDERS=folders)
    assert "MagicBrush" in text and "ours *" in text and "other *" in text
    assert Page(tmp_path / "3" / "report.html").grids[0]["methods"] == ["ours", "other"]
    settings["OUT"] = str(tmp_path / "1")
    shutil.copytree(tmp_path / "3" / "ours", tmp_path / "1" / "ours")
    settings["BASELINES"] = "mgie instruct_pix2pix"
    text = run_script("table1.sh", *QUICK, **settings)  # goes on with the pictures that are there
    assert "ours *" in text and "Pix2pix-zero" in text
    assert "MGIE is not run here" in text and "baseline mgie is left out of the table" in text
    *_, why = text[: text.index("baseline instruct_pix2pix is left out")].splitlines()
    assert why.endswith("; get it with `python scripts/fetch_weights.py instruct_pix2pix`")
    assert sum(line.startswith("baseline mgie") for line in text.splitlines()) == 1


def recorded(tmp_path: Path, script: str, *arguments: str, **settings: str) -> tuple[list[EvalConfig], list[str]]:
    """The evaluations that a script would start, composed, and the arguments of its report or figure."""
    python, log = tmp_path / "python", tmp_path / "log"
    python.write_text(f'#!/bin/sh\necho "$@" >> {log}\n')
    python.chmod(0o755)
    given = {"CHECKPOINT": "ours", "OUT": str(tmp_path / "out"), "PYTHON": str(python)} | settings
    print(run_script(script, *arguments, **given))
    *calls, last = [line.split() for line in log.read_text().splitlines()]
    runs = [load_config(EvalConfig, "eval", call[2:]) for call in calls if call[:2] == ["-m", "editar.eval"]]
    return runs, last[1:]


def test_baselines_of_table_3_compose(tmp_path: Path) -> None:
    """The script's commands without their work: what it gives to the baselines fits them."""
    settings = {"DATA": "data", "OVERRIDES": "networks.clip=null", "FOLDERS": "mgie=pictures"}
    runs, report = recorded(tmp_path, "table3.sh", "sampling.cfg_scale=2", **settings)
    assert [run.method for run in runs] == ["ours", "InstructPix2Pix", "MagicBrush", "mgie"]
    assert [run.sampling for run in runs] == [{"cfg_scale": 2}, {}, {}, {}]
    assert [run.baseline.pipeline for run in runs[1:3]] == ["instruct_pix2pix"] * 2
    assert all(run.networks.clip is None for run in runs)
    assert report[:4] == [run.output_dir for run in runs]


def test_baselines_of_table_2_compose(tmp_path: Path) -> None:
    runs, report = recorded(tmp_path, "table2.sh", DEPTH="d", CANNY="d", COCOSTUFF="c")
    found = [(run.benchmark, run.method) for run in runs if run.baseline.given]
    names = ["ControlNet", "ControlNet++", "T2I-Adapter"]
    assert found == [(task, name) for task in ("depth", "canny", "cocostuff") for name in names]
    assert report[:12] == [run.output_dir for run in runs]


def test_what_is_not_given_is_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs, report = recorded(tmp_path, "table2.sh", DEPTH="d", CHECKPOINT="", BASELINES="controlnet")
    assert [(run.benchmark, run.method) for run in runs] == [("depth", "ControlNet"), ("canny", "ControlNet")]
    assert report[:2] == [run.output_dir for run in runs]
    said = capsys.readouterr().out
    assert "our row is left out of the table: give CHECKPOINT=RUN" in said
    assert "cocostuff is left out of the table: give COCOSTUFF=DIR" in said
    with pytest.raises(AssertionError, match="nothing was scored"):
        recorded(tmp_path, "table1.sh", DATA="d", CHECKPOINT="", BASELINES="")


def test_table_2(tiny_run: Path, tmp_path: Path) -> None:
    roots = {name.upper(): str(export_translation(name, tmp_path / name, 2)) for name in PROMPTS}
    judges = ["networks.depth=null", "networks.segmenter=null", "networks.inception=null", "num_workers=0"]
    text = run_script("table2.sh", *judges, **roots, CHECKPOINT=str(tiny_run), BASELINES="", OUT=str(tmp_path / "out"))
    last = text[text.rindex("canny_ms_ssim") :]
    assert "ControlNet++" in last and "ours *" in last
    assert len(Page(tmp_path / "out" / "report.html").grids) == 3


def test_supplement_c_composes(tmp_path: Path) -> None:
    runs, report = recorded(tmp_path, "supplement_c.sh", "without=a", "dinov2=b", DEPTH="d", COCOSTUFF="c")
    assert [run.checkpoint for run in runs] == ["a"] * 3 + ["b"] * 3 and runs[1].root == "d"
    assert all(run.networks.depth is run.networks.segmenter is None and run.networks.inception for run in runs)
    assert report[:6] == [run.output_dir for run in runs]


def test_diversity_composes(tmp_path: Path) -> None:
    runs, figure = recorded(tmp_path, "diversity.sh", "ours", "samples=8", BENCHMARK="nano", SEEDS="0 7", IDS="a b")
    assert [(run.method, run.sampling) for run in runs] == [("seed_0", {"seed": 0}), ("seed_7", {"seed": 7})]
    assert figure[:5] == [*(run.output_dir for run in runs), "--ids", "a", "b"]


def test_figure_6_from_a_checkpoint(tiny_run: Path, tmp_path: Path) -> None:
    settings = {"DATA": str(GOLDEN / "data"), "OUT": str(tmp_path), "SCALES": "1 3", "OVERRIDES": " ".join(QUICK)}
    assert "cfg_3 *" in run_script("figure6.sh", str(tiny_run), **settings)
    page = Page(tmp_path / "report.html")
    assert "Guidance sweep" in page.text and "Ablation" not in page.text
    assert page.grids[0]["methods"] == ["cfg_1", "cfg_3"]


def test_figure_5_from_two_checkpoints(tiny_run: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(tiny_run, other)
    state = load_weights(other / "model.safetensors")
    save_weights({key: value * 1.1 for key, value in state.items()}, other / "model.safetensors")
    settings = {"BENCHMARK": "nano", "OUT": str(tmp_path), "OVERRIDES": "samples=8"}
    run_script("figure5.sh", f"without={tiny_run}", f"hog={other}", **settings)
    page = Page(tmp_path / "report.html")
    assert "Ablation" in page.text and "Guidance sweep" not in page.text
    [grid] = page.grids
    assert grid["methods"] == ["without", "hog"]
    assert all(entry["pictures"]["source"] and all(entry["pictures"]["results"]) for entry in grid["entries"])
    evaluation = load_scored(str(tmp_path / "hog")).evaluation
    assert evaluation.means(evaluation.methods[0])["success"].count == 8
