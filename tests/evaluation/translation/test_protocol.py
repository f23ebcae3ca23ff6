"""Table 2's metrics and the rows they are measured on."""

from __future__ import annotations

import io
import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchmetrics.functional.classification import binary_f1_score

from editar.errors import BenchmarkError
from editar.evaluation.translation.dataset import read_case
from editar.evaluation.translation.protocol import (
    PROTOCOLS,
    Confusion,
    depth_label,
    depth_map,
    depth_rmse,
    edge_maps,
    edge_scores,
    protocol,
    renderings,
)
from editar.parity.checks import Check
from editar.parity.groups import run_all
from tests.helpers import tiny

GOLDEN = tiny.GOLDEN / "translation"
CPU = torch.device("cpu")


# --- depth ----------------------------------------------------------------------------------------


def test_depth_is_scaled_by_the_protocol() -> None:
    predicted = np.linspace(2, 4, 384 * 384, dtype=np.float32).reshape(384, 384)
    spread, divided = (depth_map(predicted, PROTOCOLS[name].depth) for name in ("editar", "controlnet++"))
    assert spread.shape == divided.shape == (512, 512)
    assert (spread.min(), spread.max()) == (0, 255)
    assert (divided.min(), divided.max()) == (127, 255)  # 2 / 4 * 255 = 127.5, truncated


def test_depth_label_is_always_spread() -> None:
    np.testing.assert_array_equal(depth_label(np.array([[10, 20, 30]], np.uint8)), [[0, 127, 255]])
    np.testing.assert_array_equal(depth_label(np.array([[9, 9]], np.uint8)), [[0, 0]])


def test_rmse_is_per_picture() -> None:
    a, b = np.zeros((2, 4, 4), np.uint8), np.zeros((2, 4, 4), np.uint8)
    b[0], b[1, :2] = 3, 200
    np.testing.assert_allclose(depth_rmse(a, b), [3, 200 / math.sqrt(2)])
    np.testing.assert_allclose(depth_rmse(b, a), depth_rmse(a, b))  # bytes do not wrap around
    with pytest.raises(BenchmarkError, match="its label"):
        depth_rmse(a, b[:1])


# --- edges ----------------------------------------------------------------------------------------


def test_edge_scores_of_one_and_of_four() -> None:
    label = (torch.rand(2, 192, 192) > 0.7).float()
    found = label[:, None].repeat(1, 4, 1, 1)
    found[1] = (torch.rand(4, 192, 192) > 0.7).float()
    scores = edge_scores(found, label, psnr_cap=100.0)
    assert [scores[name][0].item() for name in ("ms_ssim", "ssim", "f1", "psnr")] == pytest.approx([1, 1, 1, 100])
    together = binary_f1_score(found[1].int().flatten(), label[1].int().repeat(4, 1, 1).flatten())
    assert scores["f1"][1].item() == pytest.approx(together.item(), abs=1e-6)
    alone = [edge_scores(found[1:, i : i + 1], label[1:]) for i in range(4)]
    assert scores["ms_ssim"][1].item() == pytest.approx(np.mean([one["ms_ssim"].item() for one in alone]))
    assert edge_scores(found[:1, :1], label[:1])["psnr"].isinf()  # editar does not cap


def test_no_edges_anywhere_score_zero_f1() -> None:
    nothing = torch.zeros(1, 1, 192, 192)
    assert edge_scores(nothing, nothing[0])["f1"].item() == 0
    assert binary_f1_score(nothing.int().flatten(), nothing.int().flatten()).item() == 0


def test_edges_must_be_binary() -> None:
    with pytest.raises(BenchmarkError, match="0 and 1"):
        edge_scores(torch.full((1, 1, 192, 192), 255.0), torch.zeros(1, 192, 192))
    with pytest.raises(BenchmarkError, match="their labels"):
        edge_scores(torch.zeros(2, 1, 192, 192), torch.zeros(1, 192, 192))


# --- segmentation ---------------------------------------------------------------------------------


def test_confusion_counts_what_is_defined() -> None:
    confusion = Confusion(classes=4)
    confusion.update(np.array([[0, 0, 1, 2]]), np.array([[0, 1, 1, 255]]))
    scores = confusion.scores()
    np.testing.assert_allclose(scores.iou, [0.5, 0.5, math.nan, math.nan])  # the ignored pixel's 2 is not seen
    confusion.update(np.array([[2]]), np.array([[0]]))
    assert confusion.scores().iou[2] == 0  # predicted, never true: counts as 0
    assert confusion.scores().miou == pytest.approx((1 / 3 + 1 / 2 + 0) / 3)
    assert confusion.scores().aacc == pytest.approx(2 / 4)


def test_confusion_refuses() -> None:
    confusion = Confusion(classes=171)
    with pytest.raises(BenchmarkError, match="no labelled pixel"):
        confusion.scores()
    with pytest.raises(BenchmarkError, match="a label holds class 181; there are 171"):
        confusion.update(np.zeros((1, 1)), np.full((1, 1), 181))  # raw COCO-Stuff ids go to 181
    with pytest.raises(BenchmarkError, match="a prediction holds class 255"):
        confusion.update(np.full((1, 1), 255), np.zeros((1, 1)))


# --- rows -----------------------------------------------------------------------------------------


def png(array: np.ndarray) -> dict[str, Any]:
    """An undecoded image column."""
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG")
    return {"bytes": buffer.getvalue(), "path": None}


def photo(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height // 8, width // 8, 3), np.uint8).repeat(8, 0).repeat(8, 1)


@pytest.mark.parametrize("name", PROTOCOLS)
def test_depth_row(name: str) -> None:
    depth = np.linspace(40, 200, 512, dtype=np.uint8)[None].repeat(512, 0)
    row = {"image": png(photo(512, 512)), "control_depth": png(depth), "text": "a barn"}
    case = read_case("depth", row, "3", protocol(name))
    assert (case.id, case.caption) == ("3", "a barn")
    np.testing.assert_array_equal(case.condition[..., 1], depth)
    assert (case.label.min(), case.label.max(), case.label.dtype) == (0, 255, np.uint8)


@pytest.mark.parametrize("name", PROTOCOLS)
def test_canny_row(name: str) -> None:
    case = read_case("canny", {"image": png(photo(512, 768)), "text": "a barn"}, "0", protocol(name))
    assert case.image.shape == case.condition.shape == (512, 512, 3)
    np.testing.assert_array_equal(case.condition[..., 0], case.label)
    np.testing.assert_array_equal(edge_maps(case.image[None], protocol(name), CPU)[0, 0].numpy() * 255, case.label)
    assert set(np.unique(case.label)) == {0, 255}


def coco_row() -> dict[str, Any]:
    """A label map whose coloured picture is its class id, wider than high."""
    labels = np.zeros((64, 128), np.uint8)
    labels[:, :32], labels[:, 32:64], labels[:, 64:] = 255, 5, 170
    colours = np.repeat(labels[..., None], 3, axis=2)
    return {
        "image": png(colours), "control_seg": png(colours), "panoptic_seg_map": labels.tolist(), "prompt": "a road",
    }  # fmt: skip


def test_editar_stretches_the_labels_alone() -> None:
    """So the true classes of the cropped picture lose mIoU: of the bands 5, 7, 170 (a quarter, a quarter, a half) the
    picture shows 7 and 170, half each. IoU is 0, 1/2 and 1."""
    row = coco_row()
    labels = np.array(row["panoptic_seg_map"], np.uint8)
    labels[:, :32], labels[:, 32:64] = 5, 7
    row["panoptic_seg_map"] = labels.tolist()
    official, aligned = (read_case("cocostuff", row, "0", protocol(name)) for name in ("editar", "editar-aligned"))
    np.testing.assert_array_equal(official.condition, aligned.condition)
    assert np.unique(official.label[0], return_counts=True)[1].tolist() == [128, 128, 256]
    assert np.unique(aligned.label[0], return_counts=True)[1].tolist() == [256, 256]
    for case, miou in ((official, 0.5), (aligned, 1.0)):
        confusion = Confusion()
        confusion.update(aligned.label, case.label)
        assert confusion.scores().miou == pytest.approx(miou)


def test_aligned_labels_are_cropped_as_their_picture_is() -> None:
    case = read_case("cocostuff", coco_row(), "0", protocol("editar-aligned"))
    assert set(np.unique(case.label)) == {5, 170}  # the ignored left quarter is cut away
    columns = np.arange(512)
    inner = (np.abs(columns - 256) > 24) & (columns > 24)  # Lanczos rings at the boundaries
    np.testing.assert_array_equal(case.condition[:, inner, 0], case.label[:, inner])


def test_label_condition_and_picture_of_different_sizes() -> None:
    """As in EditAR's loader each is brought to 512x512 by itself."""
    row = coco_row() | {"image": png(photo(64, 96)), "panoptic_seg_map": np.full((30, 20), 7).tolist()}
    case = read_case("cocostuff", row, "0", protocol("editar"))
    assert case.image.shape == case.condition.shape == (512, 512, 3)
    assert case.label.shape == (512, 512) and set(np.unique(case.label)) == {7}


def test_alpha_is_dropped_as_officially() -> None:
    picture = np.zeros((512, 512, 4), np.uint8)
    picture[..., 0] = 90  # dark red, wholly transparent
    case = read_case("canny", {"image": png(picture), "text": "a barn"}, "0", protocol("editar"))
    assert case.image.reshape(-1, 3).max(0).tolist() == [90, 0, 0]


def test_what_is_kept_of_an_output() -> None:
    """Grey levels 10.4 and 10.6: truncated to 10 and 10, rounded to 10 and 11."""
    output = torch.full((3, 512, 512), 10.4 / 255 * 2 - 1)
    output[:, :, 256:] = 10.6 / 255 * 2 - 1
    rules = protocol("editar")
    kept = {task: renderings(task, rules) for task in ("depth", "canny", "cocostuff")}
    assert {task: list(found) for task, found in kept.items()} == {
        "depth": ["truncated", "images"], "canny": ["edges", "images"], "cocostuff": ["images"],
    }  # fmt: skip
    assert np.unique(kept["depth"]["truncated"](output)).tolist() == [10]
    assert np.unique(kept["depth"]["images"](output)).tolist() == [10, 11]
    output[:, :, 256:] = 1
    edges = kept["canny"]["edges"](output)
    assert edges.shape == (512, 512) and set(np.unique(edges)) == {0, 255}
    assert list(renderings("canny", protocol("controlnet++"))) == ["images"]


def test_edges_of_floats_are_not_those_of_bytes() -> None:
    """What `editar` scores: the same output before and after rounding."""
    output = torch.nn.functional.interpolate(torch.rand(1, 3, 32, 32), (512, 512), mode="bicubic").clamp(0, 1) * 2 - 1
    kept = renderings("canny", protocol("editar"))
    floats, bytes = kept["edges"](output[0]) > 0, kept["images"](output[0])
    rounded = edge_maps(bytes[None], protocol("editar"), CPU)[0, 0].bool().numpy()
    assert 0 < (floats != rounded).mean() < 0.05


def test_controlnet_stretches() -> None:
    case = read_case("cocostuff", coco_row(), "0", protocol("controlnet++"))
    assert np.unique(case.label[0], return_counts=True)[1].tolist() == [128, 256, 128]  # 5, 170, 255
    assert case.caption == "a road"


@pytest.mark.parametrize(
    ("task", "change", "message"),
    [
        ("depth", {"control_depth": {"bytes": b"", "path": None}}, "depth row 7: control_depth holds no image"),
        ("depth", {"image": {"bytes": b"\x89PNG\r\n", "path": None}}, "depth row 7: .*image"),
        ("depth", {"text": " "}, "depth row 7: text is empty"),
        ("cocostuff", {"panoptic_seg_map": [[300]]}, "cocostuff row 7: not a label map"),
        ("tarot", {}, "task=tarot is not one of depth, canny, cocostuff"),
    ],
)
def test_bad_rows(task: str, change: dict[str, Any], message: str) -> None:
    depth = {"image": png(photo(512, 512)), "control_depth": png(photo(512, 512)), "text": "a barn"}
    row = (coco_row() if task == "cocostuff" else depth) | change
    with pytest.raises(BenchmarkError, match=message):
        read_case(task, row, "7", protocol("editar"))


def test_protocols() -> None:
    assert [rules.images_per_prompt for rules in PROTOCOLS.values()] == [1, 1, 4]
    with pytest.raises(BenchmarkError, match="protocol=mine is not one of editar, editar-aligned, controlnet"):
        protocol("mine")


# --- stored numbers -------------------------------------------------------------------------------


def test_a_changed_golden_value_fails(tmp_path: Path) -> None:
    shutil.copytree(GOLDEN, tmp_path / "translation")
    file = tmp_path / "translation" / "expected.json"
    stored = json.loads(file.read_text())
    stored["depth"]["mean_rmse_all_groups"] += 0.01
    stored["seg"]["confusion_rows_label_cols_pred"][0][0] += 1
    stored["edge"]["mean"]["ssim"] += 1e-3
    file.write_text(json.dumps(stored))
    failed = [line for line in run_all(tmp_path, CPU, torch.float32) if isinstance(line, Check) and not line.ok]
    assert [check.name for check in failed] == [
        "translation: depth, all pictures",
        "translation: edges mean ssim",
        "translation: segmentation confusion",
    ]
