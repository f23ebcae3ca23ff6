"""The nano world in the layouts of the public benchmarks, so that their evaluators run on it unchanged.

Pictures are enlarged to 512x512. Only the world is toy-sized; files, schemas and evaluators are the real ones.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from editar.data.nano import scene as ns
from editar.data.nano.world import EDITS, TASKS, NanoWorld, Plan, draw_source, render
from editar.data.tables import IMAGE
from editar.evaluation.pie_bench.dataset import MAPPING, PICTURES, SIZE
from editar.images import encode_image, resize_and_crop, save_image
from editar.runtime.files import write_json

# nano task -> editing_type_id and folder of PIE-Bench
PIE_TYPES = {
    "replace": (1, "1_change_object_80"),
    "add": (2, "2_add_object_80"),
    "remove": (3, "3_delete_object_80"),
    "recolour": (6, "6_change_attribute_color_40"),
    "background": (8, "8_change_background_80"),
}
# What an instruction looks like in the nano world; EditAR's own sentences are not in its vocabulary.
PROMPTS = {
    "depth": "given the depth, generate {}",
    "canny": "given the canny edges, generate {}",
    "cocostuff": "given the segmentation mask, generate {}",
}
NANO_TASKS = {"depth": "depth", "canny": "canny", "cocostuff": "segmentation"}


def export_pie_bench(folder: Path, count: int, seed: int = 0) -> Path:
    """`count` held-out edits as PIE-Bench: mapping_file.json and annotation_images/. Returns the folder."""
    entries: dict[str, Any] = {}
    for number, plan in zip(range(count), heldout_plans(EDITS, count, seed), strict=False):
        sample, (type_id, type_folder) = render(plan), PIE_TYPES[plan.task]
        id = f"{type_id}1{number:010d}"
        path = f"{type_folder}/1_artificial/{id}.png"
        save_image(enlarge(sample.source), folder / PICTURES / path)
        entries[id] = {
            "image_path": path,
            "original_prompt": sample.source_caption,
            "editing_prompt": sample.target_caption,
            "editing_instruction": sample.instruction,
            "editing_type_id": str(type_id),
            "blended_word": "",
            "mask": encode_mask(sample.mask),
        }
    write_json(folder / MAPPING, entries)
    return folder


def export_translation(benchmark: str, folder: Path, count: int, seed: int = 0) -> Path:
    """`count` held-out translations in the columns of MultiGen-20M (depth, canny) or Captioned_COCOStuff."""
    rows = [_row(benchmark, plan) for plan in heldout_plans((NANO_TASKS[benchmark],), count, seed)]
    kinds = {"text": pa.string(), "prompt": pa.string(), "panoptic_seg_map": pa.list_(pa.list_(pa.uint8()))}
    schema = pa.schema([(name, kinds.get(name, IMAGE)) for name in rows[0]])
    file = folder / "data" / "validation-00000-of-00001.parquet"
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows, schema), file, row_group_size=16)
    return folder


def heldout_plans(tasks: tuple[str, ...], count: int, seed: int) -> Iterator[Plan]:
    """The first `count` held-out samples of these tasks."""
    rounds = -(-count // len(tasks))
    world = NanoWorld("heldout", rounds * len(TASKS), seed)
    wanted = [index for index in range(len(world)) if TASKS[index % len(TASKS)] in tasks]
    return (world.plan(index) for index in wanted[:count])


def _row(benchmark: str, plan: Plan) -> dict[str, Any]:
    image = _png(enlarge(ns.draw(plan.target)))
    if benchmark == "canny":
        return {"image": image, "text": plan.target.caption}
    condition = _png(enlarge(draw_source(plan)))
    if benchmark == "depth":
        return {"image": image, "control_depth": condition, "text": plan.target.caption}
    labels = ns.draw_labels(plan.target).repeat(SIZE // ns.SIZE, 0).repeat(SIZE // ns.SIZE, 1).tolist()
    return {"image": image, "control_seg": condition, "panoptic_seg_map": labels, "prompt": plan.target.caption}


def enlarge(picture: np.ndarray) -> np.ndarray:
    """(64, 64, 3) uint8 -> (512, 512, 3), as results of a small model are enlarged."""
    return np.array(resize_and_crop(Image.fromarray(picture), SIZE))


def encode_mask(mask: np.ndarray) -> list[int]:
    """(64, 64) bool, True = edited -> start, length, start, length, ... over the row-major 512x512 picture."""
    flat = mask.repeat(SIZE // ns.SIZE, 0).repeat(SIZE // ns.SIZE, 1).ravel()
    edges = np.flatnonzero(np.diff(np.concatenate([[0], flat.astype(np.int8), [0]])))
    starts, ends = edges[::2], edges[1::2]
    return np.stack([starts, ends - starts], 1).ravel().tolist()


def _png(picture: np.ndarray) -> dict[str, Any]:
    return {"bytes": encode_image(picture), "path": None}
