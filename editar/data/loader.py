"""Batches of the training stream, from pixels or from the codes cache, in worker processes.

Workers get whole micro-batches of draw numbers; what a draw is, they look up themselves. So nothing
depends on how many workers, processes or restarts there are. A bad row is replaced by the row of the
next draw of its source, and reported.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any, Protocol

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from editar.data import codes, stream
from editar.data.codes import CodesCache, unpack_picture
from editar.data.mixture import Mixture
from editar.data.sample import BadRow, resize_pair
from editar.data.sources import Source
from editar.errors import DataError
from editar.runtime.device import usable_workers
from editar.runtime.log import say
from editar.runtime.stop import SIGNALS

RETRIES = 50  # bad rows in a row before a source counts as broken
DIRECTION, WORDING = 1, 2  # streams of `stream.uniform`; 0 belongs to the condition dropout


@dataclass(frozen=True)
class Item:
    """One training example: codes, source (K N,) and target (N,) int64, or pictures (K, H, W, 3) and (H, W, 3) uint8
    still to be encoded. `images` of the K sources are there, the others zeros."""

    task: str
    id: str
    instruction: str
    source: np.ndarray
    target: np.ndarray
    picture: np.ndarray | None = None  # (h, w, 3) uint8, the target as the teacher's `prepare` makes it
    features: np.ndarray | None = None  # (T, C) float16
    images: int = 1
    replaced: tuple[tuple[str, str], ...] = ()  # (row, reason) of the bad rows this one stands in for


@dataclass
class Batch:
    """B items, in draw order. source, target: codes (B, K N) and (B, N) int64 or pictures (B, K, H, W, 3) and
    (B, H, W, 3) uint8; picture (B, h, w, 3) uint8 or None; features (B, T, C) float32 or None; absent (B, K) bool,
    True where a source image is missing, None with one source image."""

    draws: np.ndarray
    tasks: list[str]
    ids: list[str]
    instructions: list[str]
    source: torch.Tensor
    target: torch.Tensor
    picture: torch.Tensor | None
    features: torch.Tensor | None
    absent: torch.Tensor | None
    replaced: list[tuple[str, str]]

    def __len__(self) -> int:
        return len(self.ids)

    def pin_memory(self) -> Batch:
        return self._each(torch.Tensor.pin_memory)

    def to(self, device: torch.device) -> Batch:
        return self._each(lambda tensor: tensor.to(device, non_blocking=True))

    def _each(self, change: Any) -> Batch:
        tensors = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(self, **{k: change(v) for k, v in tensors.items() if isinstance(v, torch.Tensor)})


def collate(pairs: list[tuple[int, Item]], images: int = 1) -> Batch:
    if not pairs:
        raise DataError("a whole batch of held-out rows is unreadable; check the source with scripts/inspect_data.py")
    draws, items = [draw for draw, _ in pairs], [item for _, item in pairs]

    def stack(name: str) -> torch.Tensor | None:
        values = [getattr(item, name) for item in items]
        return None if any(value is None for value in values) else torch.from_numpy(np.stack(values))

    source, target, features = stack("source"), stack("target"), stack("features")
    assert source is not None and target is not None
    there = torch.tensor([item.images for item in items])
    return Batch(
        draws=np.array(draws, np.uint64),
        tasks=[item.task for item in items],
        ids=[item.id for item in items],
        instructions=[item.instruction for item in items],
        source=source,
        target=target,
        picture=stack("picture"),
        features=None if features is None else features.float(),
        absent=None if images == 1 else torch.arange(images) >= there[:, None],
        replaced=[pair for item in items for pair in item.replaced],
    )


class Reader:
    """A source, read as codes or as pixels: `item(row, direction, wording)`, or BadRow. `prepare` is the teacher's,
    None without one."""

    def __init__(
        self,
        source: Source,
        cache: CodesCache | None,
        size: int,
        prepare: Callable[[np.ndarray], np.ndarray] | None = None,
        images: int = 1,
    ) -> None:
        self.source, self.cache, self.size, self.prepare, self.images = source, cache, size, prepare, images

    def item(self, row: int, direction: float, wording: float) -> Item:
        if self.cache is None:
            pair = self.source.pair(row)
            source, target = resize_pair(pair, self.size)
            reverse, instruction = pair.texts.choose(direction, wording)
            if reverse:
                source, target = target[None], source[0]
            seen = self.prepare(target) if self.prepare else None
            padded = np.concatenate([source, np.zeros((self.images - len(source), *target.shape), np.uint8)])
            return Item(pair.task, pair.id, instruction, padded, target, seen, images=len(source))
        found = self.cache[row]
        if found.id != self.source.row_id(row):
            where = f"{self.cache.folder}: in the place of {self.source.row_id(row)}"
            raise DataError(f"{where} are the codes of {found.id}; remove that folder and make the cache anew")
        reverse, instruction = found.texts.choose(direction, wording)
        both = (found.target, found.source) if reverse else (found.source, found.target)
        source, target = (value.astype(np.int64) for value in both)
        if (images := len(source) // len(target)) > self.images:
            raise DataError(f"{found.id} has {images} source pictures, this run reads data.images={self.images}")
        source = np.pad(source, (0, self.images * len(target) - len(source)))
        stored, picture = found.source_picture if reverse else found.target_picture, None
        if self.prepare and found.features is None and stored is not None:
            picture = unpack_picture(stored)
            picture = self.prepare(picture) if self.cache.manifest.pictures == codes.JPEG else picture
        features = found.features if self.prepare else None
        return Item(found.task, found.id, instruction, source, target, picture, features, images)


class TrainStream(Dataset[tuple[int, Item]]):
    """`stream.__getitems__(draws)` -> items of those draws."""

    def __init__(self, readers: Sequence[Reader], mixture: Mixture, seed: int) -> None:
        self.readers, self.mixture, self.seed = readers, mixture, seed

    def __getitems__(self, draws: list[int]) -> list[tuple[int, Item]]:
        numbers = np.array(draws, np.uint64)
        located = self.mixture.locate(numbers)
        direction, wording = (stream.uniform(numbers, self.seed, s) for s in (DIRECTION, WORDING))
        return [
            (draw, self._item(draw, int(located[0][k]), int(located[1][k]), float(direction[k]), float(wording[k])))
            for k, draw in enumerate(draws)
        ]

    def _item(self, draw: int, source: int, row: int, direction: float, wording: float) -> Item:
        reader = self.readers[source]
        replaced: list[tuple[str, str]] = []
        for retry in range(1, RETRIES + 2):
            try:
                return replace(reader.item(row, direction, wording), replaced=tuple(replaced))
            except BadRow as error:
                replaced.append((reader.source.row_id(row), str(error)))
                row = int(self.mixture.locate(np.array([draw], np.uint64), retry)[1][0])
        name, reason = replaced[-1]
        raise DataError(f"{reader.source.name}: {RETRIES} bad rows one after the other, the last {name} ({reason})")


class HeldoutRows(Dataset[tuple[int, Item]]):
    """The held-out rows of all sources in turn, forwards, first wording; bad ones are left out."""

    def __init__(self, readers: Sequence[Reader]) -> None:
        self.readers = readers
        most = max(reader.source.heldout for reader in readers)
        self.places = [(reader, k) for k in range(most) for reader in readers if k < reader.source.heldout]

    def __len__(self) -> int:
        return len(self.places)

    def __getitems__(self, indices: list[int]) -> list[tuple[int, Item]]:
        found = []
        for index in indices:
            reader, k = self.places[index]
            try:
                found.append((index, reader.item(len(reader.source) + k, 1.0, 0.0)))
            except BadRow:
                continue
        return found


class DrawBatchSampler:
    """Micro-batches of draw numbers of one rank: steps [start, stop), `share` draws of each step."""

    def __init__(self, start: int, stop: int, rank: int, size: int, global_batch: int, micro_batch: int) -> None:
        self.start, self.stop, self.rank = start, stop, rank
        self.share, self.global_batch, self.micro_batch = global_batch // size, global_batch, micro_batch

    def __iter__(self) -> Iterator[list[int]]:
        for step in range(self.start, self.stop):
            first = step * self.global_batch + self.rank * self.share
            for at in range(first, first + self.share, self.micro_batch):
                yield list(range(at, at + self.micro_batch))

    def __len__(self) -> int:
        return max(0, self.stop - self.start) * (self.share // self.micro_batch)


class Counted(Protocol):
    """A batch that knows which unreadable rows it has others for."""

    @property
    def replaced(self) -> Sequence[tuple[str, str]]: ...

    def __len__(self) -> int: ...


class BadRows:
    """Counts replaced rows; says each once, and stops the run when they are too many."""

    def __init__(self, max_share: float) -> None:
        self.max_share, self.draws, self.bad = max_share, 0, 0
        self.known: set[str] = set()

    def check(self, batch: Counted) -> None:
        self.draws += len(batch)
        self.bad += len(batch.replaced)
        for name, reason in batch.replaced:
            if name not in self.known:
                self.known.add(name)
                say(f"warning: row {name} is replaced by the next one: {reason}")
        allowed = max(10.0, self.max_share * self.draws)  # a few bad rows at the start say nothing yet
        if self.bad > allowed:
            raise DataError(
                f"{self.bad} bad rows in the first {self.draws} draws, more than data.max_bad_share="
                f"{self.max_share:g} allows (examples: {', '.join(sorted(self.known)[:3])})"
            )


def ignore_stop_signals(worker: int) -> None:
    """Slurm and `timeout` signal whole process groups; a worker that dies of it would end the training before
    that has saved. Workers leave when their parent does."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def batches(dataset: TrainStream | HeldoutRows, sampler: Any, workers: int, device: torch.device) -> Iterator[Batch]:
    """Iterate in order, read ahead by `workers` processes (0: in this one)."""
    workers = usable_workers(workers)
    loader: DataLoader[Any] = DataLoader(
        dataset,
        batch_sampler=sampler,
        collate_fn=partial(collate, images=dataset.readers[0].images),
        num_workers=workers,
        pin_memory=device.type == "cuda",
        prefetch_factor=4 if workers else None,
        worker_init_fn=ignore_stop_signals,
        generator=torch.Generator(),  # else every start of a loader would draw from the training's own RNG
    )
    return iter(loader)
