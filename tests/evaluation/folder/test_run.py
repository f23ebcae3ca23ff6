"""Own pairs through `editar.eval`, from pairs.jsonl to the report's page."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from editar.config import EvalConfig
from editar.data.nano.world import NanoWorld
from editar.errors import BenchmarkError, ConfigError
from editar.evaluation.run import evaluate
from editar.runtime.entry import load_config
from scripts import report
from tests.helpers.page import Page


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three edits of the nano world; the second is wider than high."""
    folder, lines = tmp_path_factory.mktemp("pairs"), []
    for index in range(3):
        sample = NanoWorld("train", 3)[index]
        for name, picture in (("a", sample.source), ("b", sample.target)):
            wide = np.pad(picture, ((0, 0), (16, 16), (0, 0)), "edge") if index == 1 else picture
            Image.fromarray(wide).save(folder / f"{index}{name}.png")
        lines.append({"source": f"{index}a.png", "target": f"{index}b.png", "instruction": sample.instruction})
    (folder / "pairs.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def config(root: Path, out: Path, *more: str) -> EvalConfig:
    return load_config(EvalConfig, "eval", ["benchmark=folder", f"root={root}", f"output_dir={out}", *more])


def test_a_checkpoint_is_scored_and_reported(pairs: Path, tiny_run: Path, tmp_path: Path) -> None:
    evaluation = evaluate(config(pairs, tmp_path / "out", f"checkpoint={tiny_run}"))
    assert evaluation is not None
    means = evaluation.means(evaluation.methods[0])
    assert list(means) == ["l1", "psnr", "ssim"] and all(np.isfinite(mean.mean) for mean in means.values())
    report.main([str(tmp_path / "out"), "--out", str(tmp_path / "report.html")])
    page = Page(tmp_path / "report.html")
    assert "Own pairs" in page.text and len(page.grids[0]["entries"]) == 3


def test_the_targets_themselves_are_perfect(pairs: Path, tmp_path: Path) -> None:
    results = tmp_path / "map.json"
    square = {0: pairs / "0b.png", 2: pairs / "2b.png", 1: tmp_path / "1.png"}
    Image.open(pairs / "1b.png").crop((16, 0, 80, 64)).save(square[1])  # the centre, as training crops it
    results.write_text(json.dumps({str(index): str(file) for index, file in square.items()}))
    evaluation = evaluate(config(pairs, tmp_path / "out", "stage=score", f"results={results}"))
    assert evaluation is not None
    for row in evaluation.methods[0].rows:
        assert (row["l1"], row["psnr"]) == (0, np.inf) and row["ssim"] == pytest.approx(100)


def test_what_does_not_fit_is_named(pairs: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="benchmark=folder needs root=FOLDER"):
        evaluate(load_config(EvalConfig, "eval", ["benchmark=folder", f"output_dir={tmp_path}", "stage=score"]))
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "pairs.jsonl").write_text('{"source": "a.png", "target": "b.png", "instruction": "x"}\n')
    with pytest.raises(BenchmarkError, match=r"pairs.jsonl line 1: .*a.png is missing or empty"):
        evaluate(config(broken, tmp_path / "out", "stage=score"))
