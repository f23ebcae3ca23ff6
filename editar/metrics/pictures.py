"""Pictures to be scored: of the right size, decoded in workers, with errors that stay one line."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import DataLoader, Dataset

from editar.errors import BenchmarkError, UserError
from editar.images import load_image
from editar.runtime.device import usable_workers

SIZE = 512  # of every public benchmark here


def load_square(path: Path, size: int) -> np.ndarray:
    """An RGB picture that must be size x size -> (size, size, 3) uint8.

    Raises BenchmarkError for another size and ImageError for a file that is no picture.
    """
    image = load_image(path)
    if image.size != (size, size):
        raise BenchmarkError(f"{path}: {image.size[0]}x{image.size[1]}, this benchmark is scored at {size}x{size}")
    return np.array(image)


class Mapped(Dataset[Any]):
    """`load(item)` of each of `items`, in their order."""

    def __init__(self, load: Callable[[Any], Any], items: Sequence[Any]) -> None:
        self.load, self.items = load, items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Any:
        return self.load(self.items[index])


def load_in_batches(
    pictures: Mapped, size: int, workers: int, collate: Callable[[list[Any]], Any] = list
) -> Iterator[Any]:
    """Iterates over batches in order. Raises what `pictures` raise for the user: ImageError, BenchmarkError, ...

    A DataLoader raises a worker's error anew with the worker's traceback as its text; here a user's error comes
    back as a value and is raised by the process that asked.
    """
    guarded = Mapped(partial(_load_or_error, pictures.load), pictures.items)
    for batch in DataLoader(guarded, size, num_workers=usable_workers(workers), collate_fn=partial(_collate, collate)):
        if isinstance(batch, Exception):
            raise batch
        yield batch


def _load_or_error(load: Callable[[Any], Any], item: Any) -> Any:
    try:
        return load(item)
    except UserError as error:
        return error


def _collate(collate: Callable[[list[Any]], Any], items: list[Any]) -> Any:
    return next((item for item in items if isinstance(item, Exception)), None) or collate(items)
