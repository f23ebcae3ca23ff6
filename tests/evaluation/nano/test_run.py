"""The nano world through `editar.eval`: edit, go on, score, show, and refuse what does not fit."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from PIL import Image

from editar.config import EvalConfig
from editar.errors import BenchmarkError, ConfigError
from editar.evaluation.run import evaluate
from editar.runtime.entry import load_config
from editar.tables.scores import load_evaluation


def config(run: Path, out: Path, *more: str) -> EvalConfig:
    return load_config(EvalConfig, "eval", [f"checkpoint={run}", f"output_dir={out}", "samples=8", *more])


@pytest.fixture(scope="module")
def out(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("nano") / "eval"
    evaluate(config(tiny_run, folder))
    return folder


def test_scores_pictures_and_ceiling(out: Path) -> None:
    evaluation = load_evaluation(out)
    [method] = evaluation.methods
    assert (evaluation.benchmark, evaluation.protocol, len(method.rows)) == ("nano", "nano-v1", 8)
    assert [column.name for column in evaluation.columns] == ["success", "background_psnr", "ceiling"]
    assert set(evaluation.means_by(method, "task")) == set(method.groups["task"])
    means = evaluation.means(method)
    assert means["success"].count == means["ceiling"].count == 8 and means["background_psnr"].excluded == 3
    assert means["success"].high > means["success"].mean  # Wilson: eight samples never give certainty
    for row in method.rows:
        assert Image.open(row["source"]).size == Image.open(row["result"]).size == Image.open(row["mask"]).size
    assert Image.open(out / "grid.png").size[0] > 64
    [cost] = method.cost
    assert cost["images"] == 8 and 1 <= cost["passes_per_image"] <= 64 and cost["codes_per_pass"] >= 1
    assert method.generated_with is not None and len(method.generated_with["tokenizer_sha256"]) == 64


def test_it_goes_on_where_it_stopped(tiny_run: Path, out: Path) -> None:
    first = load_evaluation(out)
    images = sorted((out / "images").iterdir())
    times = [image.stat().st_mtime_ns for image in images]
    images[3].unlink()
    again = evaluate(config(tiny_run, out))
    assert again is not None
    assert [r["outcome"] for r in again.methods[0].rows] == [r["outcome"] for r in first.methods[0].rows]
    after = [image.stat().st_mtime_ns for image in images]
    assert [a == b for a, b in zip(times, after, strict=True)].count(False) == 1


def test_other_settings_and_samples_are_refused(tiny_run: Path, out: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="holds results made with other sampling"):
        evaluate(config(tiny_run, out, "+sampling.seed=5"))
    with pytest.raises(BenchmarkError, match=r"made from other held-out samples; give their data_seed"):
        evaluate(config(tiny_run, out, "stage=score", "data_seed=9"))
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match=r"is in use and holds no manifest\.json"):
        evaluate(config(tiny_run, tmp_path))


def test_a_start_that_failed_before_its_first_picture_keeps_no_folder(tiny_run: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="2 pictures for one edit, the model reads 1"):
        evaluate(config(tiny_run, tmp_path / "out", "benchmark=nano_pairs", "stage=generate"))
    evaluate(config(tiny_run, tmp_path / "out", "stage=generate"))
    assert len(list((tmp_path / "out/images").iterdir())) == 8


def test_anybodys_pictures_are_scored_without_a_checkpoint(out: Path, tmp_path: Path) -> None:
    """The sources themselves as results: every edit fails, nothing is known of a tokenizer."""
    base = [f"output_dir={tmp_path}", "samples=8", "stage=score", f"results={out / 'sources'}", "method=sources"]
    evaluation = evaluate(load_config(EvalConfig, "eval", base))
    assert evaluation is not None
    means = evaluation.means(evaluation.methods[0])
    assert means["success"].mean == 0 and means["ceiling"].count == 0


def test_pictures_of_an_unknown_making_are_somebody_elses(tiny_run: Path, out: Path, tmp_path: Path) -> None:
    shutil.copytree(out / "images", tmp_path / "images")
    with pytest.raises(BenchmarkError, match=r"holds no manifest\.json that says what made its pictures"):
        evaluate(config(tiny_run, tmp_path, "stage=score"))
    assert evaluate(config(tiny_run, tmp_path, "stage=score", f"results={tmp_path / 'images'}")) is not None


def test_shuffled_instructions_belong_to_the_manifest(tiny_run: Path, out: Path, tmp_path: Path) -> None:
    evaluate(config(tiny_run, tmp_path / "shuffled", "shuffle_instructions=true", "stage=generate"))
    plain, moved = (json.loads((f / "manifest.json").read_text())["instructions"] for f in (out, tmp_path / "shuffled"))
    assert sorted(plain.values()) == sorted(moved.values()) and plain != moved
