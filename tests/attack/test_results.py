"""Results folders, benchmark files and scores.json from somebody else."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from editar.config import EvalConfig
from editar.errors import BenchmarkError
from editar.evaluation.pie_bench.dataset import load_items
from editar.evaluation.run import evaluate
from editar.runtime.entry import load_config
from editar.tables.scores import load_evaluation
from tests.helpers.pie import GOLDEN


def changed_mapping(folder: Path, change: Callable[[dict[str, Any]], dict[str, Any]]) -> Path:
    """A small PIE-Bench with another mapping_file.json."""
    copy = Path(shutil.copytree(GOLDEN / "data", folder / "data"))
    entries = json.loads((copy / "mapping_file.json").read_text())
    (copy / "mapping_file.json").write_text(json.dumps(change(entries)))
    return copy


@pytest.mark.parametrize("id", ["../../precious", "/tmp/evil", "a/b", "..", "", "a\nb"])
def test_an_id_that_is_no_file_name(id: str, tmp_path: Path) -> None:
    """It would be written, and read, outside of the results folder."""
    with pytest.raises(BenchmarkError, match="an id has only letters, digits, - and _"):
        load_items(changed_mapping(tmp_path, lambda entries: entries | {id: entries.popitem()[1]}))


def test_a_picture_path_with_a_null_byte(tmp_path: Path) -> None:
    def change(entries: dict[str, Any]) -> dict[str, Any]:
        next(iter(entries.values()))["image_path"] += "\0.jpg"
        return entries

    with pytest.raises(BenchmarkError, match="a text in it holds a null character"):
        load_items(changed_mapping(tmp_path, change))


def test_a_result_of_one_pixel(tmp_path: Path) -> None:
    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    pair = {"source": "a.png", "target": "a.png", "instruction": "x"}
    (tmp_path / "pairs.jsonl").write_text(json.dumps(pair))
    (tmp_path / "made").mkdir()
    Image.new("RGB", (1, 1)).save(tmp_path / "made/0.png")
    given = ["benchmark=folder", f"root={tmp_path}", f"results={tmp_path / 'made'}", f"output_dir={tmp_path / 'out'}"]
    with pytest.raises(BenchmarkError, match=r"0\.png: 1 pixels wide; SSIM needs 11"):
        evaluate(load_config(EvalConfig, "eval", given))


ROW = {"id": "0", "instruction": "x", "source": "a.png", "result": "b.png", "l1": 1.0}
COST = {"images": 1, "passes_per_image": 1.0, "codes_per_pass": 1.0, "images_per_s": 1.0}
METHOD = {
    "results": "",
    "groups": {},
    "whole": {},
    "why_not": [],
    "generated_with": None,
    "rows": [ROW],
    "cost": [COST],
}
COLUMN = {"name": "l1", "title": "L1", "unit": "", "better": "lower"}
HEAD = {"benchmark": "b", "protocol": "p", "root": "", "missing_columns": {}, "judges": {}}


def method(**changes: object) -> dict[str, object]:
    return {"methods": {"ours": METHOD | {"cost": [COST]} | changes}}


@pytest.mark.parametrize(
    "wrong",
    [
        {"methods": {}},
        {"methods": [1]},
        {"methods": {"ours": 3}},
        {"columns": [COLUMN | {"better": "sideways"}]},
        {"columns": [COLUMN | {"title": []}]},
        {"protocol": []},
        {"missing_columns": {"l1": {}}},
        {"judges": "x"},
        {"judges": None},
        {"judges": {"lpips": {}}},
        method(rows=[]),
        method(rows=[{"instruction": "x"}]),
        method(rows=[{"id": "0", "l1": 1.0}]),
        method(rows=[{key: value for key, value in ROW.items() if key != "l1"}]),
        method(rows=[ROW | {"result": 5}]),
        method(cost=True),
        method(cost=[{"images": 1}]),
        method(cost=[COST | {"codes_per_pass": "x"}]),
        method(groups={"kind": None}),
        method(groups={"kind": []}),
        method(why_not="x"),
        method(generated_with={"sampling": {"cfg_scale": {}}}),
    ],
)
def test_scores_of_another_shape(wrong: dict[str, object], tmp_path: Path) -> None:
    good = HEAD | {"columns": [COLUMN]} | method()
    (tmp_path / "scores.json").write_text(json.dumps(good))
    assert load_evaluation(tmp_path).methods[0].rows == [ROW]
    (tmp_path / "scores.json").write_text(json.dumps(good | wrong))
    with pytest.raises(BenchmarkError, match=r"not a scores\.json of this version"):
        load_evaluation(tmp_path)


def test_an_error_does_not_quote_a_whole_file(tmp_path: Path) -> None:
    (tmp_path / "scores.json").write_bytes(b"\x89PNG\xff" * 1000)
    with pytest.raises(BenchmarkError) as told:
        load_evaluation(tmp_path)
    assert len(str(told.value)) < 500
