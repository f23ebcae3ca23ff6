"""benchmarks/gpu.py rehearsed: every part runs, on a bare image as well, and what fails or hangs is told."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from benchmarks.gpu import PARTS, run
from tests.helpers.tiny import ROOT

# What an image with torch, transformers, timm, scikit-image, safetensors and pyarrow may lack.
LACKING = ("hydra", "omegaconf", "kornia", "lpips", "cleanfid", "datasets", "wandb", "torchmetrics", "diffusers")
WITHOUT_THEM = [part.name for part in PARTS if part.name.split(",")[0] not in ("tests", "parity")]


def rehearse(folder: Path, *names: str) -> dict[str, Any]:
    """The report of these parts where LACKING cannot be imported."""
    (folder / "sitecustomize.py").write_text(f"import sys\nsys.modules.update(dict.fromkeys({LACKING}))\n")
    command = [sys.executable, "benchmarks/gpu.py", "--rehearse", "--out", str(folder / "report.json")]
    environment = os.environ | {"PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*command, "--only", *names], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    report: dict[str, Any] = json.loads((folder / "report.json").read_text())
    assert list(report["parts"]) == list(names)
    return report


def test_sampling_and_training_on_a_bare_image(tmp_path: Path) -> None:
    report = rehearse(tmp_path, "sampling, batch 1", "training step")
    assert report["headline"]["batch 1, eager 4: ms a pass"] > 0
    assert report["headline"]["training cached, 2 samples: MFU"] > 0
    row = report["parts"]["sampling, batch 1"]["figures"]["rows"][0]
    assert {engine["agreement"] for engine in row["engine"].values()} == {1.0}  # with the plain loop's codes


@pytest.mark.slow
def test_every_part_on_a_bare_image(tmp_path: Path) -> None:
    report = rehearse(tmp_path, *WITHOUT_THEM)
    assert all("figures" in part for part in report["parts"].values())


@pytest.mark.slow
def test_the_whole_rehearsal(tmp_path: Path) -> None:
    out = tmp_path / "report.json"
    command = [sys.executable, "benchmarks/gpu.py", "--rehearse", "--out", str(out)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    assert [part["state"] for part in json.loads(out.read_text())["parts"].values()] == ["ok"] * len(PARTS)


def test_a_part_that_hangs_is_ended_with_all_it_started(tmp_path: Path) -> None:
    script = tmp_path / "part.py"
    script.write_text(
        "import json, subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        "json.dump({'child': child.pid}, open(sys.argv[1], 'w'))\n"
        "print('half done', flush=True)\n"
        "time.sleep(600)\n"
    )
    found = run(f"{script} FILE", 5, rehearse=True)
    assert found["state"] == "stopped after 5 s" and found["tail"] == "half done\n"
    child = found["figures"]["child"]  # what it had written before is kept
    end = time.monotonic() + 30
    while running(child) and time.monotonic() < end:  # killed with its group, but ends in its own time
        time.sleep(0.05)
    assert not running(child)


def running(process: int) -> bool:
    """Whether it is there and not a zombie (Linux)."""
    status = Path(f"/proc/{process}/stat")
    return status.exists() and status.read_text().rpartition(")")[2].split()[0] != "Z"


def test_a_part_that_fails_tells_why(tmp_path: Path) -> None:
    (tmp_path / "part.py").write_text("raise SystemExit('no such kernel')\n")
    found = run(f"{tmp_path}/part.py", 60, rehearse=True)
    assert found["state"] == "failed with exit code 1" and "no such kernel" in found["tail"]
