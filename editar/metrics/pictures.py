"""Pictures to be scored: of the right size, decoded in workers, with errors that stay one line."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import DataLoader, Dataset

from editar.errors import BenchmarkError, UserError
from editar.images import load_image

SIZE = 512  # of every public benchmark here


def load_square(path: Path, size: int) -> np.ndarray:
    """An RGB picture that must be size x size -> (size, size, 3) uint8.

    Raises BenchmarkError for another size and ImageError for a file that is no picture.
    """
    image = load_image(path)
    if image.size != (size, size):
        raise BenchmarkError(f"{path}: {image.size[0]}x{image.size[1]}, this benchmark is scored at {size}x{size}")
    return np.array(image)


class _Guarded(Dataset[Any]):
    """The item, or the user's error that reading it raised."""

    def __init__(self, dataset: Dataset[Any]) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]

    def __getitem__(self, index: int) -> Any:
        try:
            return self.dataset[index]
        except UserError as error:
            return error


class _Collate:
    """`collate` of the items, or the first error among them."""

    def __init__(self, collate: Callable[[list[Any]], Any]) -> None:
        self.collate = collate

    def __call__(self, items: list[Any]) -> Any:
        return next((item for item in items if isinstance(item, Exception)), None) or self.collate(items)


def load_in_batches(
    dataset: Dataset[Any], size: int, workers: int, collate: Callable[[list[Any]], Any] = list
) -> Iterator[Any]:
    """Batches in order. Raises what the data set raises for the user: ImageError, BenchmarkError, ...

    A DataLoader raises a worker's error anew with the worker's traceback as its text; here a user's error comes
    back as a value and is raised by the process that asked.
    """
    loader: DataLoader[Any] = DataLoader(
        _Guarded(dataset), batch_size=size, num_workers=workers, collate_fn=_Collate(collate)
    )
    for batch in loader:
        if isinstance(batch, Exception):
            raise batch
        yield batch
