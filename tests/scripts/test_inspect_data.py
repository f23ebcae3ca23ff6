"""Looking at the data: the contact sheet and the realised shares."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from tests.helpers import miniature
from tests.helpers.tiny import run_module


def test_the_mixture_is_drawn_and_counted(five_sources: dict[str, Path], tmp_path: Path) -> None:
    paths = [f"data.sources.{name}.path={folder}" for name, folder in five_sources.items()]
    sheet = tmp_path / "sheet.png"
    done = run_module(
        "scripts/inspect_data.py", "--draws", "5", "--out", str(sheet), "data=editar", "data.heldout_samples=5", *paths
    )
    assert done.returncode == 0, done.stderr
    assert "pipe" in done.stdout and "25.00 % of 10000 draws" in done.stdout
    assert Image.open(sheet).size == (4 * 192 + 2 * 4, 5 * 192 + 4 * 4)


def test_rows_of_one_source_and_its_bad_ones(tmp_path: Path) -> None:
    folder = miniature.write_pipe(tmp_path / "pipe", 8, corrupt=(1,))
    others = [f"~data.sources.{n}" for n in ("multigen_depth", "multigen_canny", "cocostuff", "seed_unsplash")]
    settings = ["data=editar", "data.heldout_samples=1", f"data.sources.pipe.path={folder}", *others]
    options = ["--source", "pipe", "--rows", "0:4", "--out", str(tmp_path / "sheets")]
    done = run_module("scripts/inspect_data.py", *options, *settings)
    assert done.returncode == 0, done.stderr
    assert "bad row pipe/1: " in done.stderr
    assert f"3 examples: {tmp_path / 'sheets' / 'inspect_data.png'}" in done.stdout
    assert Image.open(tmp_path / "sheets" / "inspect_data.png").size[1] == 3 * 192 + 2 * 4


def test_an_unknown_source_is_named(tmp_path: Path) -> None:
    done = run_module("scripts/inspect_data.py", "--source", "tarot", "data=nano")
    assert done.returncode == 2
    assert "tarot" in done.stderr and "nano" in done.stderr
