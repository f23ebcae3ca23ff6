"""The nano world as a public benchmark: the real readers open it and find what was drawn."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from editar.config import EvalConfig
from editar.data.nano.scene import draw
from editar.data.nano.world import EDITS, NanoWorld, render
from editar.evaluation.nano.export import PROMPTS, encode_mask, export_pie_bench, export_translation, heldout_plans
from editar.evaluation.pie_bench.dataset import decode_mask, load_items, load_source
from editar.evaluation.registry import benchmark_class
from editar.images import resize_and_crop
from editar.runtime.entry import load_config
from tests.helpers.tiny import run_module


def test_pie_bench(tmp_path: Path) -> None:
    items = load_items(export_pie_bench(tmp_path, 7))
    plans = list(heldout_plans(EDITS, 7, 0))
    assert [item.instruction for item in items] == [plan.instruction for plan in plans]
    assert [item.edit_name for item in items][:5] == [
        "change color", "change object", "delete object", "add object", "change background",
    ]  # fmt: skip
    for item, plan in zip(items, plans, strict=True):
        small = np.asarray(resize_and_crop(Image.fromarray(load_source(tmp_path, item)), 64)).astype(float)
        assert np.square(small - render(plan).source).mean() < 60
        assert item.origin == "artificial"


def test_masks_go_there_and_back() -> None:
    mask = np.zeros((64, 64), bool)
    mask[3:9, 60:] = mask[20, 5] = True
    large = mask.repeat(8, 0).repeat(8, 1)
    large[[0, -1]] = large[:, [0, -1]] = True  # the evaluator's frame
    np.testing.assert_array_equal(decode_mask(encode_mask(mask)), large)
    assert encode_mask(np.ones((64, 64), bool)) == [0, 512 * 512]


@pytest.mark.parametrize("benchmark", list(PROMPTS))
def test_translation_sets(tmp_path: Path, benchmark: str) -> None:
    root = export_translation(benchmark, tmp_path / benchmark, 2)
    cases = benchmark_class(benchmark)(
        load_config(
            EvalConfig, "eval", [f"output_dir={tmp_path}", f"benchmark={benchmark}", f"root={root}", "stage=score"]
        )
    )
    world = NanoWorld("heldout", 8)
    plan = world.plan({"canny": 5, "depth": 6, "cocostuff": 7}[benchmark])
    case = cases.case(0)
    assert cases.captions[0] == case.caption == plan.target.caption
    small = np.asarray(resize_and_crop(Image.fromarray(case.image), 64)).astype(float)
    assert np.square(small - draw(plan.target)).mean() < 60
    if benchmark == "cocostuff":
        assert len(np.unique(case.label)) == len(plan.target.shapes) + 1


def test_command(tmp_path: Path) -> None:
    done = run_module("scripts/export_nano.py", "depth", str(tmp_path / "set"), "--count", "1")
    assert done.returncode == 0 and "1 samples" in done.stdout
    again = run_module("scripts/export_nano.py", "depth", str(tmp_path / "set"))
    assert again.returncode == 2 and "exists already" in again.stderr
