"""Which square of a picture the model edits, and how the result goes back into the picture.

The model reads and writes squares of one size. `fit=restore` puts the edited square back into the picture at its full
size, through a soft mask of the codes that changed; `fit=square` returns the square itself, as benchmarks need it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from editar.errors import ConfigError
from editar.images import load_image, resize_and_crop, to_rgb
from editar.runtime.log import say
from editar.sampling.masks import crop_mask, load_mask

Picture = Image.Image | np.ndarray | str | Path
LEAST_SHARE = 0.5  # of the picture; a square that covers less is worth a line


@dataclass(frozen=True)
class Region:
    """A square of a picture, in its pixels from the top left corner."""

    x: int
    y: int
    side: int

    @property
    def box(self) -> tuple[int, int, int, int]:
        return self.x, self.y, self.x + self.side, self.y + self.side

    def __str__(self) -> str:
        return f"{self.x},{self.y},{self.side}"


@dataclass(frozen=True)
class Fitted:
    """A picture and what the model sees of it: `source` (S, S, 3) uint8 and, with a mask, `mask` (S, S) bool, True
    where the edit may change something. Without `region` the result stays a square."""

    picture: Image.Image
    region: Region | None
    source: np.ndarray
    mask: np.ndarray | None

    def result(self, edited: np.ndarray, changed: np.ndarray) -> Image.Image:
        """The edited square (S, S, 3) uint8 with the codes (g, g) bool that differ from the source's -> the picture.

        Codes that changed are taken whole; over the width of one code around them, and inwards where the square ends
        within the picture, the edit fades out. All other pixels stay the picture's own.
        """
        square = Image.fromarray(edited)
        if self.region is None:
            return square
        side = (self.region.side, self.region.side)
        restored = self.picture.copy()
        mask = soft_mask(changed, self.region, self.picture.size)
        restored.paste(square.resize(side, Image.Resampling.LANCZOS), self.region.box, mask)
        return restored


def fit_picture(
    picture: Image.Image,
    size: int,
    fit: str,
    region: Sequence[int] | None = None,
    mask: Picture | None = None,
) -> Fitted:
    """The square of an RGB picture that a model of `size` pixels edits. Raises ConfigError for an unfit region or mask.

    `region` is (x, y, side). Without it the square surrounds the mask, twice as long as the mask and at least `size`
    pixels, or else it is the middle of the picture, of its short side.
    """
    bright = None if mask is None else load_mask(mask, picture.size, size)
    of_square = bright is not None and bright.size != picture.size  # wherever the square lies
    if region is not None:
        chosen = check_region(region, picture.size)
    elif bright is not None and not of_square and fit == "restore":
        chosen = surround(bright.getbbox() or (0, 0, *picture.size), size, picture.size)
    else:
        chosen = middle(picture.size)
    if fit == "square" and region is None:
        source = np.asarray(resize_and_crop(picture, size))  # to the pixel as in training
    else:
        source = np.asarray(picture.resize((size, size), Image.Resampling.LANCZOS, box=chosen.box))
    small = None if bright is None else crop_mask(bright, size, (0, 0, size, size) if of_square else chosen.box)
    return Fitted(picture, chosen if fit == "restore" else None, source, small)


def read_picture(picture: Picture) -> Image.Image:
    """A file, a PIL picture of any mode or an array, (H, W), (H, W, 3) or (H, W, 4) uint8 -> RGB."""
    if isinstance(picture, np.ndarray):
        if picture.dtype != np.uint8 or picture.ndim not in (2, 3) or picture.shape[2:] not in ((), (3,), (4,)):
            raise ConfigError(
                f"a picture as an array is (height, width, 3) uint8, found {picture.shape} {picture.dtype}"
            )
        picture = Image.fromarray(picture)
    return to_rgb(picture) if isinstance(picture, Image.Image) else load_image(picture)


def middle(picture: tuple[int, int]) -> Region:
    """The middle of a picture (width, height), of its short side; says so when most of the picture is outside."""
    side = min(picture)
    chosen = Region((picture[0] - side) // 2, (picture[1] - side) // 2, side)
    share = side / max(picture)
    if share < LEAST_SHARE:
        say(
            f"the model sees {100 * share:.0f} % of the {picture[0]}x{picture[1]} picture, the square "
            f"region={chosen} in the middle; region=x,y,side chooses another"
        )
    return chosen


def surround(around: tuple[int, int, int, int], size: int, picture: tuple[int, int]) -> Region:
    """A square about the box (left, top, right, bottom), twice its longer side and at least `size`, within the
    picture (width, height)."""
    left, top, right, bottom = around
    side = min(max(2 * (right - left), 2 * (bottom - top), size), *picture)
    x, y = (left + right - side) // 2, (top + bottom - side) // 2
    return Region(min(max(x, 0), picture[0] - side), min(max(y, 0), picture[1] - side), side)


def check_region(region: Sequence[int], picture: tuple[int, int]) -> Region:
    """Raises ConfigError for anything but a square within the picture (width, height)."""
    if len(region) != 3 or not all(isinstance(value, (int, np.integer)) for value in region):
        raise ConfigError(f"region={region} is not x,y,side in whole pixels")
    chosen = Region(*(int(value) for value in region))
    left, top, right, bottom = chosen.box
    if chosen.side < 1 or left < 0 or top < 0 or right > picture[0] or bottom > picture[1]:
        raise ConfigError(
            f"region={chosen} is no square within the {picture[0]}x{picture[1]} picture; give x,y,side in its pixels"
        )
    return chosen


def soft_mask(changed: np.ndarray, region: Region, picture: tuple[int, int]) -> Image.Image:
    """Codes (g, g) bool -> grey picture of region.side: 255 on changed codes, falling to 0 over one code beside them.

    Corners of the codes' grid are bright where a changed code touches them, and dark on a side of the square that
    lies within the picture, where the edit has to end; bilinear in between.
    """
    touching = np.pad(changed, 1)
    corners = touching[1:, 1:] | touching[1:, :-1] | touching[:-1, 1:] | touching[:-1, :-1]
    left, top, right, bottom = region.box
    corners[:, 0] &= left == 0
    corners[0] &= top == 0
    corners[:, -1] &= right == picture[0]
    corners[-1] &= bottom == picture[1]
    levels = Image.fromarray(corners.astype(np.uint8) * 255)
    edge = len(corners) - 0.5
    return levels.resize((region.side, region.side), Image.Resampling.BILINEAR, box=(0.5, 0.5, edge, edge))
