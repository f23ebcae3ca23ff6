"""Which target codes an edit may choose: a mask over the picture becomes known codes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from editar.errors import ConfigError
from editar.images import load_image
from editar.runtime.log import say


def load_mask(mask: Image.Image | np.ndarray | str | Path, picture: tuple[int, int], size: int) -> Image.Image:
    """A mask as a grey picture, 255 where the edit may change something, else 0.

    `mask` is a file, a PIL picture or an array (H, W), bright (> 127, or True) where the edit goes. It has the width
    and height of `picture`, or is size x size and then belongs to the square that the model edits. Raises ConfigError
    for another shape, and for a mask without a bright pixel.
    """
    if isinstance(mask, np.ndarray):
        if mask.ndim != 2:
            raise ConfigError(f"a mask is (height, width), found {mask.shape}")
        bright = mask if mask.dtype == bool else mask > 127
    else:
        loaded = mask if isinstance(mask, Image.Image) else load_image(mask)
        bright = np.asarray(loaded.convert("L")) > 127
    if bright.shape[::-1] not in (picture, (size, size)):
        raise ConfigError(
            f"the mask is {bright.shape[1]}x{bright.shape[0]}, the picture {picture[0]}x{picture[1]}; "
            f"they must match (or the mask be {size}x{size})"
        )
    if not bright.any():
        raise ConfigError("the mask is empty: nothing may change; paint the place to edit white")
    return Image.fromarray(bright.astype(np.uint8) * 255)


def crop_mask(mask: Image.Image, size: int, box: tuple[int, int, int, int]) -> np.ndarray:
    """The square `box` of a mask of `load_mask` -> (size, size) bool; a pixel counts when any part of it is bright.

    Raises ConfigError for a mask outside of the square; says so where a part of it is.
    """
    small = np.asarray(mask.resize((size, size), Image.Resampling.BOX, box=box)) > 0
    if not small.any():
        raise ConfigError("the mask lies outside of the square that the model edits; choose it with region=x,y,side")
    if mask.crop(box).histogram()[255] < mask.histogram()[255]:
        say("the mask reaches beyond the square that the model edits; nothing changes outside of that")
    return small


def known_codes_outside(source_codes: torch.Tensor, masks: list[np.ndarray], dilate: int) -> torch.Tensor:
    """Source codes (I, N) and a (S, S) bool mask each -> (I, N) int64: the source's own code where it
    stays, -1 where a code touches the mask or lies within `dilate` codes of it.
    """
    grid = round(source_codes.shape[1] ** 0.5)
    pixels = torch.from_numpy(np.stack(masks)).float()[:, None]
    touched = F.adaptive_max_pool2d(pixels, grid)  # (I, 1, g, g)
    touched = F.max_pool2d(touched, 2 * dilate + 1, stride=1, padding=dilate).flatten(1) > 0
    return torch.where(touched.to(source_codes.device), -1, source_codes)
