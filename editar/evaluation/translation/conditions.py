"""Conditions and instructions of the translation tasks for a single picture (`editar.edit task=...`)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
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
from editar.images import batch_to_tensor, to_uint8
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


def condition_maker(task: str, networks: ConditionNetworks, device: torch.device) -> Callable[[np.ndarray], np.ndarray]:
    """From a square photograph (S, S, 3) uint8 to the task's condition of the same shape, with the networks that
    score Table 2. Raises ConfigError for a network that is not here."""
    if task == "canny":
        return lambda photo: to_uint8(canny_condition(batch_to_tensor(photo[None])))[0]
    if task == "depth":
        return partial(depth_of, use(task, "depth", networks.depth, lambda source: DepthNetwork.load(source, device)))
    say(
        "segmentation: coloured as with data.sources.cocostuff.condition=labels; the colours of the official set differ"
    )
    segmenter = use(task, "segmenter", networks.segmenter, lambda source: load_segmenter(source, device))
    return lambda photo: colour_labels(segmenter(photo[None])[0], label_palette())


def depth_of(network: DepthNetwork, photo: np.ndarray) -> np.ndarray:
    """Predicted nearness, stretched to 0..255 (MultiGen-20M's look)."""
    depth = network(photo[None])[0]
    span = depth.max() - depth.min()
    grey = Image.fromarray(depth_condition((depth - depth.min()) / (span if span > 0 else 1)))
    return np.asarray(grey.resize(photo.shape[:2], Image.Resampling.BILINEAR))


def use(task: str, name: str, source: str | None, load: Callable[[str], T]) -> T:
    """`load(source)`. Raises ConfigError for a network that is not here."""
    network, missing = load_or_leave(name, source, (), load)
    if missing is not None or network is None:
        reason = missing.reason if missing else ""
        raise ConfigError(f"task={task} from a photograph: {reason}; or give the condition itself and from_photo=false")
    return network
