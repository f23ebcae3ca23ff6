"""The ablation script: which runs a grid has, and a small one from training to the page."""

from __future__ import annotations

from pathlib import Path

import pytest

from editar.errors import ConfigError
from editar.tables.scores import Column, Evaluation, MethodScores, load_evaluation
from scripts import ablate
from tests.helpers.tiny import TINY_GPT, TINY_TOKENIZER


def test_a_grid_is_every_combination_once() -> None:
    runs = ablate.grid(["teacher=none,hog", "loss.distill_weight=0.1,0.5", "steps=3", "data.shape_counts=[1,2]"])
    fixed = ["steps=3", "data.shape_counts=[1,2]"]
    assert runs == {
        "teacher_none": [*fixed, "teacher=none"],  # its weight would change nothing
        "teacher_hog-distill_weight_0.1": [*fixed, "teacher=hog", "loss.distill_weight=0.1"],
        "teacher_hog-distill_weight_0.5": [*fixed, "teacher=hog", "loss.distill_weight=0.5"],
    }
    assert list(ablate.grid(["seed=0,1"])) == ["seed_0", "seed_1"]
    assert list(ablate.grid(["data.seed=0,1"])) == ["data.seed_0", "data.seed_1"]  # other data, not only another seed
    with pytest.raises(ConfigError, match="no axis among steps=3"):
        ablate.grid(["steps=3"])


def test_mistakes_stop_before_the_first_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        ablate.main([str(tmp_path / "out"), "teacher=none,hogg"])
    assert "hogg" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_runs_are_trained_scored_and_put_on_one_page(tmp_path: Path, tiny_tokenizer: Path) -> None:
    out = tmp_path / "out"
    tiny = [*TINY_TOKENIZER, *TINY_GPT, f"tokenizer.weights={tiny_tokenizer}", "steps=2", "eval_every=2"]
    ablate.main([str(out), "teacher=none,hog", *tiny, "--eval", "samples=8"])
    assert {path.name for path in out.iterdir()} == {
        "teacher_none", "teacher_hog", "scores", "codes_none", "codes_hog", "report.html",
    }  # fmt: skip
    page = (out / "report.html").read_text()
    assert "Ablation" in page and "teacher_none" in page and "teacher_hog" in page
    for name in ("teacher_none", "teacher_hog"):
        assert len(load_evaluation(out / "scores" / name).methods[0].rows) == 8


def scored(*rows: float) -> Evaluation:
    method = MethodScores("ours", "", [{"id": str(i), "success": row} for i, row in enumerate(rows)])
    return Evaluation("nano", "nano-v1", "", [Column("success", "Success", "%", "higher", rate=True)], [method])


def test_seeds_are_shown_together() -> None:
    runs = {
        "seed_0-teacher_hog": scored(100, 0),
        "seed_1-teacher_hog": scored(100, 100),
        "seed_0-teacher_none": scored(0),
    }
    assert ablate.over_seeds(runs) == "teacher_hog, 2 seeds: Success 75.0 [50.0, 100.0] %"
    assert ablate.over_seeds({"teacher_none": scored(0)}) == ""
