"""Edit a picture: `python -m editar.edit image=photo.jpg instruction="add a red circle at the top left"`.

With task=depth, canny or segmentation the picture is a condition and the instruction a caption; image=null draws from
the text alone.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from omegaconf import OmegaConf
from PIL import Image
from tqdm import tqdm

from editar.conditions import canny_condition, colour_labels, depth_condition
from editar.config import CONFIG_DIR, EditConfig, TrainConfig
from editar.config.data import CONDITION_SOURCES
from editar.config.evaluation import ConditionNetworks
from editar.data.nano.world import WORDING
from editar.data.sources import label_palette
from editar.errors import ConfigError
from editar.evaluation.translation.networks import DepthNetwork, load_segmenter
from editar.images import (
    batch_to_tensor,
    load_image,
    picture_format,
    resize_and_crop,
    save_image,
    side_by_side,
    to_uint8,
)
from editar.metrics.networks import load_or_leave
from editar.runtime.device import pick_device
from editar.runtime.entry import run
from editar.runtime.log import say
from editar.sampling.pipeline import EditPipeline
from editar.sampling.stats import copy_bandwidth

T = TypeVar("T")


def edit(cfg: EditConfig) -> list[Path]:
    """Write the picture(s) and, where there are several or a source, all of them in one row. Returns the files."""
    output = Path(cfg.output)
    if output.is_dir():
        raise ConfigError(f"output={output} is a folder; give the name of a picture, like {output / 'edit.png'}")
    stem, suffix = output.stem, output.suffix or ".png"
    names = [output.with_name(stem + (f"_{i}" if cfg.num_samples > 1 else "") + suffix) for i in range(cfg.num_samples)]
    comparison, made = (output.with_name(f"{stem}_{what}{suffix}") for what in ("side_by_side", "condition"))
    picture_format(comparison)
    also = [made] * cfg.from_photo + [comparison] * (cfg.image is not None or cfg.num_samples > 1)
    taken = [name for name in (*names, *also) if name.exists()]
    if taken and not cfg.overwrite:
        raise ConfigError(f"{taken[0]} exists; give another output=... or overwrite=true")
    picture = None if cfg.image is None else load_image(cfg.image)
    if cfg.instruction is not None and not cfg.instruction.strip():
        raise ConfigError("instruction is empty; say what to change, or give instruction=null for none")
    maker = condition_maker(cfg.task, cfg.networks, pick_device(cfg.device)) if cfg.from_photo else None
    pipeline = EditPipeline.from_pretrained(
        cfg.checkpoint, cfg.device, cfg.sampling, cfg.compile, cfg.int8, cfg.dtype, cfg.text.name
    )
    instruction = cfg.instruction and sentence(cfg.task, pipeline.cfg).replace("{}", cfg.instruction)
    if picture is not None and maker is not None:
        picture = Image.fromarray(maker(np.asarray(resize_and_crop(picture, pipeline.cfg.image_size))))
        save_image(picture, made)
    tokens = pipeline.gpt.cfg.image_tokens
    with tqdm(total=cfg.num_samples * tokens, desc="editing", unit="token") as bar:
        edits = pipeline(
            picture,
            instruction,
            num_samples=cfg.num_samples,
            mask=cfg.mask,
            mask_dilate=cfg.mask_dilate,
            progress=bar.update,
        )
    say(pipeline.stats.line(tokens, copy_bandwidth(pipeline.device)))
    for name, image in zip(names, edits, strict=True):
        save_image(image, name)
    row = [np.asarray(image) for image in edits]
    if picture is not None:
        row.insert(0, np.asarray(resize_and_crop(picture, pipeline.cfg.image_size)))
    if comparison in also:
        save_image(side_by_side(row), comparison)
    print("\n".join(str(name) for name in (*names, *also)))
    return [*names, *also]


def sentence(task: str, cfg: TrainConfig) -> str:
    """The instruction of a task with {} for the caption: as the checkpoint was trained, else EditAR's."""
    if task == "edit":
        return "{}"
    sources = cfg.data.sources.values()
    own = [source.prompt for source in sources if source.kind == CONDITION_SOURCES[task]]
    nano = [WORDING[task][0].replace("{caption}", "{}") for source in sources if source.kind == "nano"]
    official = OmegaConf.load(CONFIG_DIR / "source" / f"{CONDITION_SOURCES[task]}.yaml").prompt
    return [*own, *nano, official][0]


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


def main() -> None:
    run(EditConfig, "edit", edit)


if __name__ == "__main__":
    main()
