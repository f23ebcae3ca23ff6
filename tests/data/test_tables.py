"""Rows by number from every layout people have."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from torch.utils.data import DataLoader

from editar.data import tables
from editar.data.tables import Table, label_map, open_table, stream_rows
from editar.errors import DataError
from tests.helpers import miniature


@pytest.fixture(scope="module")
def pipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return miniature.write_pipe(tmp_path_factory.mktemp("pipe"), 9, files=3, row_group=2)


def png(image: np.ndarray) -> bytes:
    return miniature.encode(image)


def test_parquet_rows_are_those_of_the_files_in_order(pipe: Path) -> None:
    table = open_table(pipe)
    files = sorted((pipe / "data").glob("*.parquet"))
    expected = [row for file in files for row in pq.read_table(file).to_pylist()]
    assert len(table) == 9
    assert [table[i] for i in range(9)] == expected
    assert [table[i] for i in (8, 0, 4, 4, 7)] == [expected[i] for i in (8, 0, 4, 4, 7)]
    assert [row["img_id"] for row in table] == [str(1000 + i) for i in range(9)]


def test_columns_and_what_is_out_of_range(pipe: Path) -> None:
    table = open_table(pipe, columns=["ann_id", "target_img"])
    assert table.columns == list(table[3]) == ["ann_id", "target_img"]
    for index in (-1, 9):
        with pytest.raises(IndexError):
            table[index]
    with pytest.raises(DataError, match=r"no column image, text; found source_img, target_img, Instruction_VLM-LLM"):
        open_table(pipe, columns=["image", "target_img", "text"])


def test_only_the_row_group_of_a_row_is_read(pipe: Path) -> None:
    table = open_table(pipe, columns=["img_id"])
    table[4]
    assert table._group is not None
    assert table._group[1].num_rows <= 2


def test_large_row_groups_give_one_hint(
    pipe: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tables, "LARGE_GROUP", 100)
    table = open_table(pipe)
    assert [table[i]["img_id"] for i in (0, 8, 3)] == ["1000", "1008", "1003"]
    assert capsys.readouterr().err.count("run scripts/prepare_data.py once") == 1


@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_workers_open_their_own_files(pipe: Path, context: str) -> None:
    table = open_table(pipe, columns=["img_id"])
    table[0]  # opened here before the workers start
    loader = DataLoader(table, batch_size=None, num_workers=1, multiprocessing_context=context)  # type: ignore[arg-type]
    assert [row["img_id"] for row in loader] == [str(1000 + i) for i in range(9)]
    assert len(pickle.dumps(table)) < 2000


def test_the_revision_follows_the_files(pipe: Path, tmp_path: Path) -> None:
    same = miniature.write_pipe(tmp_path / "same", 9, files=3, row_group=2)
    other = miniature.write_pipe(tmp_path / "other", 10, files=3, row_group=2)
    assert open_table(same).revision == open_table(pipe).revision
    assert open_table(other).revision != open_table(pipe).revision


def test_splits_of_a_download(tmp_path: Path) -> None:
    miniature.write_multigen_depth(tmp_path, 4)
    miniature.write_multigen_depth(tmp_path, 3, files=1, split="validation")
    assert (len(open_table(tmp_path)), len(open_table(tmp_path, split="validation"))) == (4, 3)
    with pytest.raises(DataError, match="no split test; it holds train, validation"):
        open_table(tmp_path, split="test")
    single = next((tmp_path / "data").glob("validation*"))
    assert len(open_table(single)) == 3


def test_nested_labels_are_arrays(tmp_path: Path) -> None:
    table = open_table(miniature.write_cocostuff(tmp_path, 4), columns=["panoptic_seg_map"])
    labels = [row["panoptic_seg_map"] for row in table]
    assert [value.shape for value in labels] == [(64, 64), (64, 64), (64, 64), (64, 85)]
    assert all(value.dtype == np.uint8 and value[0, 0] == 255 and value[1, 1] == 170 for value in labels)


def test_odd_nested_values_survive(tmp_path: Path) -> None:
    lists = [[[1, 2], [3]], None, [], [[1, 2], [3, 4], [5, 6]]]
    pq.write_table(pa.table({"x": pa.array(lists, pa.large_list(pa.list_(pa.uint8())))}), tmp_path / "a.parquet")
    values = [row["x"] for row in open_table(tmp_path)]
    assert values[:3] == lists[:3]
    assert values[3].tolist() == lists[3]


# --- save_to_disk ---------------------------------------------------------------------------------


def test_repacks_of_any_version(tmp_path: Path) -> None:
    raw = open_table(miniature.write_repack(tmp_path / "raw", 10))
    assert len(raw) == 10
    assert raw.columns == ["source_caption", "source_image", "instruction", "target_caption", "target_image"]
    assert raw[9]["source_image"].startswith(b"\x89PNG")
    structs = open_table(miniature.write_repack(tmp_path / "structs", 10, structs=True), ["control_depth", "text"])
    assert structs[7]["control_depth"]["bytes"].startswith(b"\x89PNG")
    assert pickle.loads(pickle.dumps(structs))[7] == structs[7]


def test_what_datasets_itself_saves_and_streams(tmp_path: Path) -> None:
    import datasets

    content = png(np.zeros((4, 4, 3), np.uint8))
    features = datasets.Features({"image": datasets.Image(), "ids": [[datasets.Value("uint8")]]})
    rows = [{"image": {"bytes": content, "path": None}, "ids": [[i, 2], [3, 4]]} for i in range(5)]
    saved = datasets.Dataset.from_list(rows, features=features)
    saved.save_to_disk(str(tmp_path / "one"), num_shards=2)
    datasets.DatasetDict({"train": saved, "odd": saved.select([1])}).save_to_disk(str(tmp_path / "many"))
    assert [row["ids"][0][0] for row in open_table(tmp_path / "one")] == [0, 1, 2, 3, 4]
    assert open_table(tmp_path / "many")[2]["image"] == {"bytes": content, "path": None}
    assert len(open_table(tmp_path / "many", split="odd")) == 1
    with pytest.raises(DataError, match="no split test; it holds odd, train"):
        open_table(tmp_path / "many", split="test")

    folder = miniature.write_multigen_depth(tmp_path / "depth", 6)  # with the metadata of datasets 2.x
    files = [str(path) for path in sorted((folder / "data").glob("*.parquet"))]
    streamed = list(stream_rows("parquet", "train", ["image", "text"], data_files=files))
    assert streamed == list(open_table(folder, ["image", "text"]))
    with pytest.raises(DataError, match="no column prompt; found image, control_depth, text"):
        next(stream_rows("parquet", "train", ["prompt"], data_files=files))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"_indices_data_files": [{"filename": "indices.arrow"}]}, "flatten_indices"),
        ({"_data_files": [{"filename": "gone.arrow"}]}, "1 of 1 files are missing, first gone.arrow"),
        ({"_data_files": None}, "not written by `datasets` save_to_disk"),
    ],
)
def test_unusable_saved_folders(tmp_path: Path, change: dict[str, object], message: str) -> None:
    miniature.write_repack(tmp_path, 4)
    state = json.loads((tmp_path / "state.json").read_text()) | change
    (tmp_path / "state.json").write_text(json.dumps(state))
    with pytest.raises(DataError, match=message):
        open_table(tmp_path)


# --- what is wrong --------------------------------------------------------------------------------


def test_missing_empty_and_damaged(tmp_path: Path, pipe: Path) -> None:
    with pytest.raises(DataError, match="no such folder"):
        open_table(tmp_path / "absent")
    with pytest.raises(DataError, match="is the download complete"):
        open_table(tmp_path)
    whole = next((pipe / "data").glob("*.parquet")).read_bytes()
    (tmp_path / "half.parquet").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"half\.parquet: not a readable \.parquet file"):
        open_table(tmp_path)
    (tmp_path / "unfinished.json").write_text("{}")
    with pytest.raises(DataError, match="not finished"):
        open_table(tmp_path)
    for text, message in (("{}", "not a manifest"), ('{"format": 99}', "prepared in format 99")):
        (tmp_path / "manifest.json").write_text(text)
        with pytest.raises(DataError, match=message):
            open_table(tmp_path)


def test_damage_inside_a_file_is_named(tmp_path: Path) -> None:
    folder = miniature.write_repack(tmp_path, 4)
    file = folder / "data-00001-of-00002.arrow"
    file.write_bytes(file.read_bytes()[:400])
    with pytest.raises(DataError, match=r"data-00001-of-00002\.arrow: not a readable"):
        open_table(folder)


def test_an_empty_list_of_files_is_refused() -> None:
    with pytest.raises(DataError, match="no files"):
        Table([], None, "")


def test_label_maps_of_every_form() -> None:
    labels = np.array([[0, 170, 255], [1, 2, 3]], np.uint8)
    content = miniature.encode(labels)
    for value in (labels, labels.tolist(), labels.astype(np.int64), content, {"bytes": content, "path": None}):
        assert label_map(value).dtype == np.uint8
        assert np.array_equal(label_map(value), labels)
    colours = png(np.zeros((2, 2, 3), np.uint8))
    for bad in ([[1, 2], [3]], [[1, 300]], [[0.5]], [], None, b"no png", {"bytes": None}, colours, labels[None]):
        with pytest.raises(DataError, match="not a label map"):
            label_map(bad)
    assert Image.fromarray(labels).mode == "L"
