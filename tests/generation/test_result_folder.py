"""Where a method's pictures are looked for, and what is said when they do not fit."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from editar.errors import BenchmarkError
from editar.generation.result_folder import ResultFolder

NAMES = {"1": "kind/one.jpg", "2": "two.jpg"}


def write(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(folder / name)


@pytest.mark.parametrize("inner", ["", "images", "annotation_images"])
def test_folders_with_any_suffix(tmp_path: Path, inner: str) -> None:
    write(tmp_path / inner, "kind/one.png", "two.webp")
    results = ResultFolder(tmp_path)
    assert results.path("1", NAMES["1"]) == tmp_path / inner / "kind/one.png"
    results.check(NAMES)


def test_a_json_map_points_anywhere(tmp_path: Path) -> None:
    write(tmp_path / "somewhere", "a.png", "b.png")
    map = tmp_path / "map.json"
    map.write_text(json.dumps({"1": "somewhere/a.png", "2": str(tmp_path / "somewhere" / "b.png")}))
    results = ResultFolder(map)
    assert results.path("2", NAMES["2"]).name == "b.png"
    results.check(NAMES)
    with pytest.raises(BenchmarkError, match="1 files belong to no picture of the benchmark, first 2"):
        results.check({"1": NAMES["1"]})
    with pytest.raises(BenchmarkError, match=r"1 of 3 results are missing, first three.jpg .*no picture for id 3"):
        results.check(NAMES | {"3": "three.jpg"})
    map.write_text(json.dumps({"1": "somewhere/a.png", "2": "somewhere/../somewhere/a.png"}))
    with pytest.raises(BenchmarkError, match=r"ids 1 and 2 both point to .*a.png; each needs its own picture"):
        ResultFolder(map)
    (tmp_path / "somewhere" / "a.png").unlink()
    with pytest.raises(BenchmarkError, match=r"id 1 points to .*a.png, which is not there"):
        results.path("1", NAMES["1"])


def test_missing_and_extra_files_are_counted(tmp_path: Path) -> None:
    write(tmp_path, "two.png")
    with pytest.raises(BenchmarkError, match=r"1 of 2 results are missing, first kind/one.jpg") as caught:
        ResultFolder(tmp_path).check(NAMES)
    assert "stage=generate" not in str(caught.value)  # which makes nobody else's
    write(tmp_path, "kind/one.png", "kind/three.png", ".hidden.png")
    with pytest.raises(BenchmarkError, match=r"1 files belong to no picture of the benchmark, first .*three.png"):
        ResultFolder(tmp_path).check(NAMES)


def test_what_is_no_result_set(tmp_path: Path) -> None:
    with pytest.raises(BenchmarkError, match="no such folder; make it with stage=generate"):
        ResultFolder(tmp_path / "nowhere")
    (tmp_path / "bad.json").write_text("[1]")
    with pytest.raises(BenchmarkError, match="must map ids to paths"):
        ResultFolder(tmp_path / "bad.json")
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(BenchmarkError, match="neither a folder nor readable JSON"):
        ResultFolder(tmp_path / "bad.json")
