"""Rows of the validation sets of Table 2 -> what a model is given and what its picture is compared with.

  depth     limingcv/MultiGen-20M_depth_eval      image, control_depth, text
  canny     the pictures of the depth set (EditAR) or limingcv/MultiGen-20M_canny_eval      image, text
  cocostuff limingcv/Captioned_COCOStuff validation      image, control_seg, panoptic_seg_map, prompt

`editar.data.tables.open_table` opens such folders. Pictures are only converted to RGB, as officially. Picture,
condition and class ids may have different sizes; each gets to 512x512 by itself (`fit`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image

from editar.data.sample import BadRow
from editar.data.sources import Row, picture, text
from editar.data.tables import label_map
from editar.errors import BenchmarkError, DataError
from editar.evaluation.translation.protocol import SIZE, TranslationProtocol, depth_label, edge_maps
from editar.images import resize_and_crop

COLUMNS = {
    "depth": ["image", "control_depth", "text"],
    "canny": ["image", "text"],
    "cocostuff": ["image", "control_seg", "panoptic_seg_map", "prompt"],
}
EXPECTED_ROWS = 5000  # of each set


@dataclass(frozen=True)
class TranslationCase:
    """image, condition: (512, 512, 3) uint8. label: (512, 512) uint8 - grey depth, edges 0 / 255, or
    class ids with 255 = ignore. caption: the row's own text, without the task's sentence."""

    id: str
    caption: str
    image: np.ndarray
    condition: np.ndarray
    label: np.ndarray


def read_case(task: str, row: Row, id: str, rules: TranslationProtocol) -> TranslationCase:
    """One row, columns COLUMNS[task]. Raises BenchmarkError naming `id` for a row that cannot be used."""
    if task not in READERS:
        raise BenchmarkError(f"task={task} is not one of {', '.join(READERS)}")
    try:
        image = np.array(fit(picture(row, "image", "official"), rules.geometry))
        condition, label = READERS[task](row, image, rules)
        caption = text(row, "prompt" if task == "cocostuff" else "text")
    except (BadRow, DataError) as error:
        raise BenchmarkError(f"{task} row {id}: {error}") from None
    return TranslationCase(id, caption, image, condition, label)


def fit(image: Image.Image, geometry: str, labels: bool = False) -> Image.Image:
    """To 512x512: `crop` scales the short side and cuts the centre (Lanczos), `stretch` is ControlNet++'s (bicubic).
    `labels` are never interpolated."""
    if geometry == "crop":
        return resize_and_crop(image, SIZE, Image.Resampling.NEAREST if labels else Image.Resampling.LANCZOS)
    return image.resize((SIZE, SIZE), Image.Resampling.NEAREST if labels else Image.Resampling.BICUBIC)


def _depth(row: Row, image: np.ndarray, rules: TranslationProtocol) -> tuple[np.ndarray, np.ndarray]:
    """Near is bright. The label is read as 8-bit grey ("L"), whatever the file's mode."""
    condition = fit(picture(row, "control_depth", "official"), rules.geometry)
    return np.array(condition), depth_label(np.asarray(condition.convert("L")))


def _canny(row: Row, image: np.ndarray, rules: TranslationProtocol) -> tuple[np.ndarray, np.ndarray]:
    """Edges of the resized picture; the condition shows them white on black."""
    label = (edge_maps(image[None], rules, torch.device("cpu"))[0, 0] * 255).to(torch.uint8).numpy()
    return np.repeat(label[..., None], 3, axis=2), label


def _cocostuff(row: Row, image: np.ndarray, rules: TranslationProtocol) -> tuple[np.ndarray, np.ndarray]:
    """`panoptic_seg_map` holds the 171 class ids themselves, 255 = ignore, no zero label to shift."""
    condition, labels = picture(row, "control_seg", "official"), Image.fromarray(label_map(row["panoptic_seg_map"]))
    return np.array(fit(condition, rules.geometry)), np.array(fit(labels, rules.labels, labels=True))


READERS: dict[str, Callable[[Row, np.ndarray, TranslationProtocol], tuple[np.ndarray, np.ndarray]]] = {
    "depth": _depth,
    "canny": _canny,
    "cocostuff": _cocostuff,
}
