"""Scenes of the nano world: a few coloured shapes on a background, and how they are drawn.

A scene is pure data, so edits, ground truth and counterfactuals are scenes too and every picture,
depth map and label map of them is exact.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw

SIZE = 64
COLOURS = {
    "red": (220, 40, 40),
    "green": (40, 170, 70),
    "blue": (45, 80, 220),
    "yellow": (245, 215, 60),
    "purple": (150, 60, 180),
    "cyan": (50, 205, 215),
}
KINDS = ("circle", "square", "triangle", "star")
BACKGROUNDS = {
    "white": (238, 238, 238),
    "gray": (128, 128, 128),
    "black": (25, 25, 25),
    "brown": (120, 85, 60),
    "navy": (25, 35, 95),
    "pink": (245, 190, 205),
}
PHOTOS = {
    "cat": "chelsea",
    "coffee": "coffee",
    "astronaut": "astronaut",
    "rocket": "rocket",
    "motorcycle": "motorcycle",
}
PLACES = (
    "top left", "top", "top right",
    "left", "center", "right",
    "bottom left", "bottom", "bottom right",
)  # fmt: skip
CENTRES = (12, 32, 52)
# Where shapes may stand and how large they are. Multiples of 4 keep the ways in which an outline can
# cross an 8 x 8 patch few enough for a small codebook; free positions need many more codes.
POSITIONS = tuple(range(12, 53, 4))
RADII = (9, 11)
# Label 0 is the background; label k + 1 is KINDS[k].
PALETTE = np.array([[40, 40, 40], [230, 120, 50], [70, 200, 120], [90, 110, 240], [220, 80, 200]], np.uint8)
PHOTO_SIDE = 160  # photographs are shrunk to this height, then cut


@dataclass(frozen=True, order=True)
class Shape:
    """One object: centre (x, y) and radius in pixels, `near` in [0, 1] for the depth map."""

    kind: str
    colour: str
    x: int
    y: int
    radius: int
    near: float

    @property
    def cell(self) -> int:
        """Index into PLACES of the nearest place."""
        column, row = (min(range(3), key=lambda i: abs(CENTRES[i] - at)) for at in (self.x, self.y))
        return row * 3 + column

    def overlaps(self, other: Shape) -> bool:
        reach = self.radius + other.radius + 1
        return (self.x - other.x) ** 2 + (self.y - other.y) ** 2 < reach**2


@dataclass(frozen=True)
class Background:
    """kind plain (one name), gradient (top and bottom name) or photo (name and crop corner)."""

    kind: str
    names: tuple[str, ...]
    corner: tuple[int, int] = (0, 0)

    @property
    def phrase(self) -> str:
        if self.kind == "plain":
            return self.names[0]
        if self.kind == "gradient":
            return f"a {self.names[0]} to {self.names[1]} gradient"
        return f"a photo of a {self.names[0]}"


@dataclass(frozen=True)
class Scene:
    shapes: tuple[Shape, ...]
    background: Background

    def with_shape(self, index: int, **changes: object) -> Scene:
        shapes = list(self.shapes)
        shapes[index] = replace(shapes[index], **changes)  # type: ignore[arg-type]
        return replace(self, shapes=tuple(shapes))

    def without(self, index: int) -> Scene:
        return replace(self, shapes=self.shapes[:index] + self.shapes[index + 1 :])

    @property
    def caption(self) -> str:
        names = [f"a {shape.colour} {shape.kind}" for shape in self.shapes]
        listed = ", ".join(names[:-1]) + " and " + names[-1] if len(names) > 1 else "".join(names) or "nothing"
        tail = self.background.phrase + (" background" if self.background.kind == "plain" else "")
        return f"{listed} on {'a ' if self.background.kind == 'plain' else ''}{tail}"

    @property
    def heldout(self) -> bool:
        """One scene in five is never trained on. What, in which colour, where and on which
        background decides, so a near copy (a pixel of jitter) always falls on the same side."""
        parts = sorted(f"{shape.kind} {shape.colour} {shape.cell}" for shape in self.shapes)
        parts.append(f"{self.background.kind} {self.background.names}")
        return zlib.crc32("|".join(parts).encode()) % 5 == 0


@lru_cache(maxsize=20000)
def coverage(kind: str, x: int, y: int, radius: int) -> np.ndarray:
    """How much of each pixel a shape covers, (64, 64) float32 in [0, 1]; drawn 4x, averaged."""
    scale = 4
    canvas = Image.new("L", (SIZE * scale, SIZE * scale), 0)
    draw = ImageDraw.Draw(canvas)
    cx, cy, r = (x + 0.5) * scale, (y + 0.5) * scale, radius * scale
    if kind == "circle":
        draw.ellipse((cx - r, cy - r, cx + r, cy + r), fill=255)
    elif kind == "square":
        half = r * 0.87
        draw.rectangle((cx - half, cy - half, cx + half, cy + half), fill=255)
    elif kind == "triangle":
        draw.polygon([(cx, cy - r), (cx + r, cy + r * 0.8), (cx - r, cy + r * 0.8)], fill=255)
    elif kind == "star":
        angles = [np.pi * (i / 4) for i in range(8)]
        reach = [r * 1.1 if i % 2 == 0 else r * 0.42 for i in range(8)]
        draw.polygon([(cx + d * np.sin(a), cy - d * np.cos(a)) for a, d in zip(angles, reach, strict=True)], fill=255)
    else:
        raise ValueError(f"unknown shape {kind!r}; known: {', '.join(KINDS)}")
    small = canvas.resize((SIZE, SIZE), Image.Resampling.BOX)
    return np.asarray(small, np.float32) / 255


@lru_cache(maxsize=len(PHOTOS))
def photo(name: str) -> np.ndarray:
    """A photograph carried by scikit-image, short side PHOTO_SIDE, (H, W, 3) uint8."""
    from skimage import data  # slow import, needed only where a photograph is drawn

    picture = data.stereo_motorcycle()[0] if name == "motorcycle" else getattr(data, PHOTOS[name])()
    image = Image.fromarray(picture)
    scale = PHOTO_SIDE / min(image.size)
    return np.asarray(image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.LANCZOS))


def photo_corners(name: str, heldout: bool) -> tuple[range, range]:
    """Allowed (x, y) crop corners: training uses the left part of a photograph, held-out the right."""
    height, width = photo(name).shape[:2]
    split = width - SIZE - 8  # no pixel is shared: training crops end where held-out crops begin
    xs = range(split, width - SIZE + 1) if heldout else range(0, split - SIZE + 1)
    return xs, range(0, height - SIZE + 1)


@lru_cache(maxsize=256)
def _plain(names: tuple[str, ...]) -> np.ndarray:
    top, bottom = (np.array(BACKGROUNDS[name], np.float32) for name in (names[0], names[-1]))
    mix = np.linspace(0, 1, SIZE, dtype=np.float32)[:, None, None]
    return np.broadcast_to(top * (1 - mix) + bottom * mix, (SIZE, SIZE, 3)).copy()


def draw_background(background: Background) -> np.ndarray:
    """(64, 64, 3) float32 in [0, 255]."""
    if background.kind == "photo":
        x, y = background.corner
        return photo(background.names[0])[y : y + SIZE, x : x + SIZE].astype(np.float32)
    return _plain(background.names).copy()


def draw(scene: Scene) -> np.ndarray:
    """The picture, (64, 64, 3) uint8."""
    canvas = draw_background(scene.background)
    for shape in scene.shapes:
        cover = coverage(shape.kind, shape.x, shape.y, shape.radius)[..., None]
        canvas += cover * (np.array(COLOURS[shape.colour], np.float32) - canvas)
    return np.rint(canvas).astype(np.uint8)


def draw_depth(scene: Scene) -> np.ndarray:
    """Nearness (64, 64) float32 in [0, 1]: a floor that comes nearer downwards, shapes in front."""
    canvas = np.repeat(np.linspace(0.05, 0.3, SIZE, dtype=np.float32)[:, None], SIZE, axis=1)
    for shape in scene.shapes:
        canvas[coverage(shape.kind, shape.x, shape.y, shape.radius) > 0.5] = shape.near
    return canvas


def draw_labels(scene: Scene) -> np.ndarray:
    """Class ids (64, 64) uint8: 0 background, k + 1 for KINDS[k]."""
    canvas = np.zeros((SIZE, SIZE), np.uint8)
    for shape in scene.shapes:
        canvas[coverage(shape.kind, shape.x, shape.y, shape.radius) > 0.5] = KINDS.index(shape.kind) + 1
    return canvas
