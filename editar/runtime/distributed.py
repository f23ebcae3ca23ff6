"""One or several processes under torchrun: gloo on the CPU, nccl on GPUs."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from editar.runtime.device import pick_device

T = TypeVar("T")


@dataclass(frozen=True)
class World:
    rank: int
    size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def barrier(self) -> None:
        if self.size > 1:
            dist.barrier()

    def mean(self, values: dict[str, float]) -> dict[str, float]:
        """Average of each value over ranks."""
        if self.size == 1:
            return values
        packed = torch.tensor(list(values.values()), device=self.device, dtype=torch.float64)
        dist.all_reduce(packed)
        return dict(zip(values, (packed / self.size).tolist(), strict=True))

    def gather(self, value: T) -> list[T]:
        """The small CPU `value` of every rank, in rank order."""
        if self.size == 1:
            return [value]
        gathered: list[Any] = [None] * self.size
        dist.all_gather_object(gathered, value)
        return gathered


@contextmanager
def distributed(device: str) -> Iterator[World]:
    """Join the job that torchrun describes in the environment, leave it at the end."""
    size, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
    place = pick_device(device, int(os.environ.get("LOCAL_RANK", "0")))
    if place.type == "cuda":
        torch.cuda.set_device(place)
    if size == 1:
        yield World(0, 1, place)
        return
    dist.init_process_group("nccl" if place.type == "cuda" else "gloo")
    try:
        yield World(rank, size, place)
    finally:
        dist.destroy_process_group()
