"""Conditions and instructions of the translation tasks for a single picture (`editar.edit task=...`)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import numpy as np
import torch
from PIL import Image

from editar.conditions import canny_condition, colour_labels, depth_condition
from editar.config import TrainConfig
from editar.config.data import CONDITION_SOURCES
from editar.config.evaluation import ConditionNetworks
from editar.data.nano.world import WORDING
from editar.data.sources import label_palette, official_prompt
from editar.errors import ConfigError
from editar.evaluation.translation.networks import DepthNetwork, load_segmenter
from editar.evaluation.translation.protocol import SIZE
from editar.images import batch_to_tensor, resize_and_crop, to_uint8
from editar.metrics.networks import load_or_leave
from editar.runtime.log import say

T = TypeVar("T")


def sentence(task: str, cfg: TrainConfig) -> str:
    """The instruction of a task with {} for the caption: as the checkpoint was trained, else EditAR's."""
    if task == "edit":
        return "{}"
    sources = cfg.data.sources.values()
    own = [source.prompt for source in sources if source.kind == CONDITION_SOURCES[task]]
    nano = [WORDING[task][0].replace("{caption}", "{}") for source in sources if source.kind == "nano"]
    return [*own, *nano, official_prompt(CONDITION_SOURCES[task])][0]


def prompted(task: str, caption: str | None, cfg: TrainConfig) -> str | None:
    """The instruction that asks for a picture of `caption` under the task's condition; None stays None."""
    return caption and sentence(task, cfg).replace("{}", caption)


def condition_of(
    task: str, photo: Image.Image, cfg: TrainConfig, networks: ConditionNetworks, device: torch.device
) -> Image.Image:
    """The task's condition of a photograph, a square of the checkpoint's size, by the networks that score Table 2;
    edges by the operator that the checkpoint was trained with. Raises ConfigError for a network that is not here."""
    size = cfg.image_size
    if task == "segmentation":
        say("segmentation: coloured as with data.sources.cocostuff.condition=labels; the official set's colours differ")
        segmenter = use(task, "segmenter", networks.segmenter, lambda source: load_segmenter(source, device))
        labels = segmenter(np.array(resize_and_crop(photo, SIZE))[None])[0]
        return Image.fromarray(colour_labels(labels, label_palette())).resize((size, size), Image.Resampling.NEAREST)
    square = np.array(resize_and_crop(photo, size))
    if task == "canny":
        own = [source.canny.operator for source in cfg.data.sources.values() if source.kind == CONDITION_SOURCES[task]]
        return Image.fromarray(to_uint8(canny_condition(batch_to_tensor(square[None]), [*own, "kornia"][0]))[0])
    network = use(task, "depth", networks.depth, lambda source: DepthNetwork.load(source, device))
    depth = network(square[None])[0]  # nearness
    span = depth.max() - depth.min()
    grey = Image.fromarray(depth_condition((depth - depth.min()) / (span if span > 0 else 1)))  # MultiGen-20M's look
    return grey.resize((size, size), Image.Resampling.BILINEAR)


def use(task: str, name: str, source: str | None, load: Callable[[str], T]) -> T:
    """`load(source)`. Raises ConfigError for a network that is not here."""
    network, missing = load_or_leave(name, source, (), load)
    if missing is not None or network is None:
        reason = missing.reason if missing else ""
        raise ConfigError(f"task={task} from a photograph: {reason}; or give the condition itself and from_photo=false")
    return network
