"""PIE-Bench through `editar.eval`: edit, go on, score, print, and refuse what does not fit."""

from __future__ import annotations

import csv
import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import run_module
from PIL import Image

from editar.config import ConfigError, EvalConfig
from editar.evaluation.benchmark import BenchmarkError
from editar.evaluation.paper_rows import paper_tables
from editar.evaluation.run import evaluate
from editar.evaluation.tables import OurRow, latex_table, layout, markdown_table, text_table
from editar.runtime.entry import load_config

GOLDEN = Path(__file__).parent / "golden" / "pie"
RESULTS = GOLDEN / "output" / "tiny-editor"


def config(out: Path, *overrides: str) -> EvalConfig:
    judges = ["judges.structure=null", "judges.lpips=null", "judges.clip=null", "num_workers=0"]
    base = [f"output_dir={out}", "benchmark=pie_bench", f"root={GOLDEN / 'data'}", *judges]
    return load_config(EvalConfig, "eval", [*base, *overrides])


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("pie") / "scores"
    evaluate(config(out, "stage=score", f"results={RESULTS}", "method=tiny-editor"))
    return out


def test_anybodys_folder_gives_the_official_numbers(scored: Path) -> None:
    scores = json.loads((scored / "scores.json").read_text())
    expected = json.loads((GOLDEN / "expected.json").read_text())["per_image"]
    units = {"psnr": 1.0, "mse": 1e4, "ssim": 1e2}
    for row in scores["rows"]:
        official = expected[row["id"]]["metrics_raw"]
        for name in units:
            value = official[f"{name}_unedit_part"]
            assert math.isnan(row[name]) if value == "nan" else row[name] == pytest.approx(value, rel=1e-4)
    for name, scale in units.items():
        known = [row[name] for row in scores["rows"] if not math.isnan(row[name])]
        assert scores["mean"][name]["mean"] == pytest.approx(scale * np.mean(known))
        assert scores["mean"][name]["excluded"] == 6 - len(known)
    assert scores["protocol"] == "pnpinversion-v1"
    assert set(scores["missing_columns"]) == {"structure", "lpips", "clip_whole", "clip_edited"}
    assert "add object" in scores["by_edit_type"]
    assert "natural animal" in scores["by_category"]


def test_six_pictures_are_not_called_the_papers_table(scored: Path) -> None:
    text = (scored / "table1.txt").read_text()
    assert "tiny-editor *" in text
    assert "not comparable with the paper's rows: 6 pictures instead of 700" in text
    rows = list(csv.DictReader((scored / "table3.csv").open()))
    assert [row["comparable"] for row in rows] == ["paper"] * 11 + ["no"]
    assert rows[-1]["method"] == "tiny-editor" and float(rows[-1]["psnr"]) > 10


def test_tables_mark_the_best_and_the_distance_to_the_paper() -> None:
    paper = paper_tables()["table1"]
    good = OurRow("ours", {"structure": 39.43, "psnr": 30.0})
    cells = layout(paper, [good], lambda value: f"<{value}>")
    by_name = {row[0]: row for row, _ in cells.rows}
    assert by_name["ours"][1:4] == ["39.43", "<30.00>", "-"]
    assert by_name["PnPInversion"][1:3] == ["<11.65>", "27.22"]
    assert by_name["  minus the paper's EditAR"][1:4] == ["+0.00", "+8.68", "-"]
    assert cells.header[1] == "structure ↓ (x1e3)"
    apart = layout(paper, [OurRow("ours", good.values, "6 pictures")], lambda value: f"<{value}>")
    assert {row[0]: row for row, _ in apart.rows}["PnPInversion"][2] == "<27.22>"
    assert markdown_table(paper, [good]).count("\n") == len(paper.rows) + 3
    assert r"\textbf{30.00}" in latex_table(paper, [good])
    assert len({len(line) for line in text_table(paper, [good]).splitlines()}) == 1


def test_editing_goes_on_where_it_stopped(tiny_run: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    evaluate(config(out, f"checkpoint={tiny_run}"))
    scores = json.loads((out / "scores.json").read_text())
    assert scores["why_not"][1] == "edited at 64 px, enlarged to 512"
    assert len(scores["generated_with"]["weights_sha256"]) == 64
    files = sorted(path for path in (out / "images").rglob("*.png"))
    before = {path: path.read_bytes() for path in files}
    assert len(files) == 6 and Image.open(files[0]).size == (512, 512)
    files[2].unlink()
    kept = {path: path.stat().st_mtime_ns for path in files if path.exists()}
    evaluate(config(out, f"checkpoint={tiny_run}", "stage=generate"))
    assert {path: path.read_bytes() for path in files} == before
    assert all(path.stat().st_mtime_ns == time for path, time in kept.items())


@pytest.mark.multiprocess
def test_two_processes_share_the_editing(tiny_run: Path, tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    evaluate(config(one, f"checkpoint={tiny_run}", "stage=generate"))
    settings = ["benchmark=pie_bench", f"root={GOLDEN / 'data'}", f"checkpoint={tiny_run}", "stage=generate"]
    done = run_module("editar.eval", f"output_dir={two}", *settings, processes=2)
    assert done.returncode == 0, done.stderr[-2000:]
    files = sorted(path.relative_to(one) for path in (one / "images").rglob("*.png"))
    assert files == sorted(path.relative_to(two) for path in (two / "images").rglob("*.png"))
    for file in files:  # the same codes; decoded in other batches, a grey level may round the other way
        a, b = (np.asarray(Image.open(folder / file)).astype(int) for folder in (one, two))
        assert np.abs(a - b).max() <= 2


def test_missing_and_extra_results_are_counted(tmp_path: Path) -> None:
    copy = tmp_path / "results"
    shutil.copytree(RESULTS, copy)
    victim = next(copy.rglob("221000000002.jpg"))
    victim.rename(tmp_path / "kept.jpg")
    with pytest.raises(BenchmarkError, match=r"1 of 6 results are missing, first 2_add_object_80.*221000000002"):
        evaluate(config(tmp_path / "a", "stage=score", f"results={copy}"))
    (tmp_path / "kept.jpg").rename(victim)
    shutil.copy(victim, victim.with_name("999.jpg"))
    with pytest.raises(BenchmarkError, match=r"1 files belong to no picture of the benchmark, first .*999\.jpg"):
        evaluate(config(tmp_path / "b", "stage=score", f"results={copy}"))
    with pytest.raises(BenchmarkError, match="no such folder; make it with stage=generate"):
        evaluate(config(tmp_path / "c", "stage=score"))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["root=null"], "benchmark=pie_bench needs root=FOLDER"),
        (["stage=all"], "stage=all needs checkpoint=FOLDER"),
        (["results=x", "checkpoint=y"], "results=x is scored, not generated: give stage=score"),
        (["stage=paint"], "stage=paint is not one of all, generate, score"),
        (["benchmark=nano", "stage=score", "root=null"], "benchmark=nano runs as a whole"),
    ],
)
def test_settings_that_cannot_work(tmp_path: Path, overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config(tmp_path, *overrides)
