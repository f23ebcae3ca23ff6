"""An installed wheel does without the checkout: it holds settings, the list of weights and py.typed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.tiny import ROOT

PARTS = ("editar", "configs", "third_party", "pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE")


def run(*command: str, folder: Path, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, *command],
        cwd=folder,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


@pytest.mark.slow
def test_a_wheel_works_without_the_checkout(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    for name in PARTS:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, source / name)
    offline = ["--no-deps", "--no-index", "--disable-pip-version-check"]
    run("-m", "pip", "wheel", "--no-build-isolation", *offline, "-w", str(tmp_path), str(source), folder=tmp_path)
    [wheel] = tmp_path.glob("editar-*.whl")
    run("-m", "pip", "install", *offline, "--target", str(target), str(wheel), folder=tmp_path)
    shutil.rmtree(source)
    installed = {file.relative_to(target).as_posix() for file in target.rglob("*") if file.is_file()}
    configs = {f"editar/{file.relative_to(ROOT).as_posix()}" for file in (ROOT / "configs").rglob("*.yaml")}
    assert configs | {"editar/py.typed", "editar/third_party/weights.yaml", "editar/report/narrow.css.j2"} <= installed
    assert not [name for name in installed if name.startswith(("configs", "tests", "third_party"))]
    given = {"folder": tmp_path, "PYTHONPATH": str(target), "CUDA_VISIBLE_DEVICES": ""}
    shown = run("-m", "editar.train", "--help", "experiment=editar_xl", **given)
    assert "usage: python -m editar.train" in shown and "global_batch: 64" in shown
    where = (
        "import editar; from editar.runtime.manifest import load_manifest; print(editar.__file__, len(load_manifest()))"
    )
    file, count = run("-c", where, **given).split()
    assert Path(file).is_relative_to(target) and int(count) > 10
