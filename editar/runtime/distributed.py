"""One or several processes under torchrun: gloo on the CPU, nccl on GPUs."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from editar.errors import ConfigError, LostProcess, one_line
from editar.runtime.device import pick_device

T = TypeVar("T")


@dataclass(frozen=True)
class Ranks:
    rank: int
    size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def barrier(self) -> None:
        if self.size > 1:
            dist.barrier()

    def mean(self, values: dict[str, torch.Tensor | float]) -> dict[str, float]:
        """Average of each scalar over ranks; one transfer from the device for all of them."""
        packed = torch.stack([torch.as_tensor(v, dtype=torch.float64, device=self.device) for v in values.values()])
        if self.size > 1:
            dist.all_reduce(packed)
        return dict(zip(values, (packed / self.size).tolist(), strict=True))

    def sum_(self, tensor: torch.Tensor) -> torch.Tensor:
        """The sum over ranks, in place."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def share(self, tensor: torch.Tensor) -> None:
        """The first process's values for all of them, in place."""
        if self.size > 1:
            dist.broadcast(tensor, 0)

    def gather(self, value: T) -> list[T]:
        """The small CPU `value` of every rank, in rank order."""
        if self.size == 1:
            return [value]
        gathered: list[Any] = [None] * self.size
        dist.all_gather_object(gathered, value)
        return gathered


@contextmanager
def distributed(device: str, timeout_s: int = 1800) -> Iterator[Ranks]:
    """Join the job that torchrun describes in the environment, leave it at the end.

    A process that waits for the others longer than `timeout_s` raises.
    """
    size, rank, local = (whole_number(*pair) for pair in (("WORLD_SIZE", "1"), ("RANK", "0"), ("LOCAL_RANK", "0")))
    if not 0 <= rank < size or local < 0:
        raise ConfigError(f"RANK={rank} of WORLD_SIZE={size} in the environment is no process; start with torchrun")
    place = pick_device(device, local)
    if place.type == "cuda":
        torch.cuda.set_device(place)
    if size == 1:
        yield Ranks(0, 1, place)
        return
    backend = "cpu:gloo,cuda:nccl" if place.type == "cuda" else "gloo"  # checkpoints are gathered on the CPU
    try:
        dist.init_process_group(backend, **rendezvous(timedelta(seconds=timeout_s)))
    except (ValueError, RuntimeError, KeyError) as error:  # an address or port that is missing or impossible
        raise ConfigError(
            f"process {rank} of {size} finds no others ({one_line(error)}); start with torchrun"
        ) from None
    try:
        yield Ranks(rank, size, place)
    except RuntimeError as error:
        if lost_connection(error):
            raise LostProcess(f"process {rank} of {size} lost the others: {one_line(error)}") from error
        raise
    finally:
        dist.destroy_process_group()


def whole_number(name: str, default: str) -> int:
    """A number that torchrun puts into the environment. Raises ConfigError."""
    try:
        return int(os.environ.get(name, default))
    except ValueError:
        raise ConfigError(f"{name}={os.environ[name]} in the environment is no number; start with torchrun") from None


def rendezvous(timeout: timedelta) -> dict[str, Any]:
    """How the processes find each other, as arguments of init_process_group.

    torchrun's own store outlives its restarts, and with it the addresses of dead processes, which the
    restarted ones then wait for (pytorch issue 135712): each attempt gets a part of the store of its own.
    """
    store, rank, size = next(dist.rendezvous("env://", timeout=timeout))
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        store = dist.PrefixStore(f"attempt_{os.environ['TORCHELASTIC_RESTART_COUNT']}", store)
    return {"store": store, "rank": rank, "world_size": size, "timeout": timeout}


def lost_connection(error: BaseException) -> bool:
    """Whether a collective failed because another process is gone; gloo has no type of its own for it."""
    said = any(words in str(error).lower() for words in ("connection", "timed out waiting"))
    return isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and said)
