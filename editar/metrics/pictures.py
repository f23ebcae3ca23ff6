"""What the public benchmarks share: their error, and how a result picture is found and opened."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from editar.errors import BenchmarkError
from editar.images import load_image

SIZE = 512  # of every public benchmark here
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".PNG", ".JPG", ".JPEG")


def find_picture(folder: Path, relative: str) -> Path:
    """`folder/relative`, or the same name with another suffix (results are often kept as PNG).

    Raises BenchmarkError when there is none.
    """
    path = folder / relative
    for candidate in (path, *(path.with_suffix(suffix) for suffix in SUFFIXES)):
        if candidate.is_file():
            return candidate
    raise BenchmarkError(f"{path}: no such result, nor one with {', '.join(SUFFIXES[:4])}")


def load_square(path: Path, size: int) -> np.ndarray:
    """An RGB picture that must be size x size -> (size, size, 3) uint8.

    Raises BenchmarkError for another size and ImageError for a file that is no picture.
    """
    image = load_image(path)
    if image.size != (size, size):
        raise BenchmarkError(f"{path}: {image.size[0]}x{image.size[1]}, this benchmark is scored at {size}x{size}")
    return np.array(image)
