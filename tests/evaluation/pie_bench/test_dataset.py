"""PIE-Bench's files: masks, entries, results, and what is refused in one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from editar.errors import BenchmarkError, ImageError, UserError
from editar.evaluation.pie_bench.dataset import (
    decode_mask,
    incomplete,
    load_items,
    load_result,
    load_source,
    plain_caption,
)
from tests.helpers import tiny

GOLDEN = tiny.GOLDEN / "pie"
PATH = "2_add_object_80/2_natural/1_animal/221000000002.jpg"


def entry(**changes: Any) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "image_path": PATH,
        "original_prompt": "a [cat]",
        "editing_prompt": "a [dog]",
        "editing_instruction": "Make it a dog",
        "editing_type_id": "2",
        "blended_word": "",
        "mask": [600, 20],
    }
    fields |= changes
    return {key: value for key, value in fields.items() if value is not None}


def write_benchmark(root: Path, **changes: Any) -> Path:
    (root / "annotation_images").mkdir(parents=True, exist_ok=True)
    (root / "mapping_file.json").write_text(json.dumps({"221000000002": entry(**changes)}))
    return root


def write_picture(path: Path, size: tuple[int, int] = (512, 512), colour: int = 90) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (colour, colour, colour)).save(path)


# --- entries and masks ----------------------------------------------------------------------------


def test_entries_of_the_public_layout() -> None:
    items = {item.id: item for item in load_items(GOLDEN / "data")}
    assert len(items) == 6
    assert (items["000000000000"].edit_name, items["000000000000"].subject) == ("random", "")
    delete = items["324000000001"]
    assert (delete.edit_type, delete.edit_name, delete.origin, delete.subject) == (
        3, "delete object", "natural", "outdoor",
    )  # fmt: skip
    assert delete.instruction == "Remove the rocket"
    assert plain_caption(delete.source_caption) == "a rocket on a launch pad"
    assert load_source(GOLDEN / "data", delete).shape == (512, 512, 3)
    message = incomplete(list(items.values()))
    assert message is not None
    assert message.startswith("6 pictures instead of 700 (type 0 has 1 of 140")


def test_mask_equals_the_plain_loop() -> None:
    runs, size = [0, 3, 70, 15, 80, 2, 84, 1, 95, 30], 10
    runs += [33, 4, 35, 9]  # overlapping
    flat = np.zeros(size * size, bool)
    for start, length in zip(runs[::2], runs[1::2], strict=True):
        for position in range(start, min(start + length, size * size)):
            flat[position] = True
    expected = flat.reshape(size, size)
    expected[0] = expected[-1] = True
    expected[:, 0] = expected[:, -1] = True
    np.testing.assert_array_equal(decode_mask(runs, size), expected)


def test_even_an_empty_run_marks_the_frame() -> None:
    mask = decode_mask([0, 0])
    assert mask.sum() == 4 * 511
    assert not mask[1:-1, 1:-1].any()


# --- results --------------------------------------------------------------------------------------


def test_of_a_strip_the_bottom_right_counts(tmp_path: Path) -> None:
    strip = Image.new("RGB", (1536, 512))
    strip.paste((200, 10, 10), (1024, 0, 1536, 512))
    strip.save(tmp_path / "strip.png")
    assert (load_result(tmp_path / "strip.png") == (200, 10, 10)).all()


def test_bad_results(tmp_path: Path) -> None:
    file = tmp_path / "result.jpg"
    write_picture(file, (256, 256))
    with pytest.raises(BenchmarkError, match="256x256, this benchmark is scored at 512x512"):
        load_result(file)
    for size in ((300, 900), (640, 512), (512, 640), (600, 700), (1024, 1024)):
        write_picture(file, size)
        with pytest.raises(BenchmarkError, match=rf"result.jpg: {size[0]}x{size[1]}, this benchmark is scored at 512"):
            load_result(file)
    file.write_bytes(file.read_bytes()[:200])
    with pytest.raises(ImageError, match="not a readable image"):
        load_result(file)


# --- what is not PIE-Bench ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mask": None}, "has no mask"),
        ({"mask": []}, "the mask is empty"),
        ({"mask": [1, 2, 3]}, "pairs of start and length"),
        ({"mask": [1, -2]}, "pairs of start and length"),
        ({"mask": [1, 2**63]}, "pairs of start and length"),
        ({"mask": [2**70, 1]}, "pairs of start and length"),
        ({"mask": ["1", "2"]}, "pairs of start and length"),
        ({"mask": [262144, 1]}, "starts outside"),
        ({"editing_type_id": "10"}, "not one of 0 to 9"),
        ({"editing_instruction": 3}, "editing_instruction must be text"),
        ({"editing_instruction": " "}, "entry 221000000002: editing_instruction is empty"),
        ({"image_path": "../../secret.jpg"}, "must lie inside"),
        ({"editing_instruction": None, "aspect_mapping": {}}, r"PIE-Bench\+\+"),
    ],
)
def test_bad_entries(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(BenchmarkError, match=message) as caught:
        load_items(write_benchmark(tmp_path, **changes))
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value, UserError)


def test_other_folders_are_recognised(tmp_path: Path) -> None:
    with pytest.raises(BenchmarkError, match="give the folder that holds"):
        load_items(tmp_path)
    write_benchmark(tmp_path / "data")
    with pytest.raises(BenchmarkError, match=r"give .*data instead"):
        load_items(tmp_path)
    (tmp_path / "mirror" / "0_random_140").mkdir(parents=True)
    (tmp_path / "mirror" / "0_random_140" / "V1-00000-of-00001.parquet").write_bytes(b"PAR1")
    with pytest.raises(BenchmarkError, match="no editing instructions"):
        load_items(tmp_path / "mirror")
    (tmp_path / "ti2i").mkdir()
    (tmp_path / "ti2i" / "mapping_file_ti2i_benchmark.json").write_text("{}")
    with pytest.raises(BenchmarkError, match="55 pictures"):
        load_items(tmp_path / "ti2i")


def test_one_picture_under_two_ids(tmp_path: Path) -> None:
    write_benchmark(tmp_path)
    entries = {"1": entry(), "2": entry(image_path=PATH.replace("/", "//./"))}
    (tmp_path / "mapping_file.json").write_text(json.dumps(entries))
    with pytest.raises(BenchmarkError, match=rf"ids 1 and 2 both point to .*{PATH}; each needs its own picture"):
        load_items(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not readable JSON"),
        ("[" * 100_000, "not readable JSON"),
        ("9" * 5000, "not readable JSON"),
        ("[]", "must map"),
        ('{"a": 1}', "object"),
    ],
)
def test_damaged_mapping(tmp_path: Path, text: str, message: str) -> None:
    write_benchmark(tmp_path)
    (tmp_path / "mapping_file.json").write_text(text)
    with pytest.raises(BenchmarkError, match=message):
        load_items(tmp_path)
