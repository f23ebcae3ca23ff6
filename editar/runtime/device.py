"""Where tensors live."""

from __future__ import annotations

import os

import torch

from editar.errors import ConfigError


def pick_device(name: str, index: int = 0) -> torch.device:
    """`auto` takes the GPU of this local rank when there is one. Raises ConfigError if absent."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda":
        if not torch.cuda.is_available():
            raise ConfigError("device=cuda but torch sees no GPU; use device=cpu or device=auto")
        return torch.device("cuda", index)
    if name != "cpu":
        raise ConfigError(f"device={name} is not one of auto, cpu, cuda")
    return torch.device("cpu")


def send(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A CPU tensor on `device`, without waiting for what a GPU still has to do (a copy from ordinary memory waits)."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor


def usable_workers(wanted: int) -> int:
    """Of the worker processes that are asked for, as many as there are CPUs for this process: more of them would only
    wait for each other, of which PyTorch warns."""
    return min(wanted, len(os.sched_getaffinity(0)))


def has_fast_bfloat16() -> bool:
    """Whether this CPU multiplies bfloat16 matrices in hardware (AMX): training then gains from precision=bf16."""
    return getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)()


DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def pick_dtype(name: str, device: torch.device) -> torch.dtype:
    """The named dtype; on a CPU always float32, where half precision is slower in inference."""
    if name not in DTYPES:
        raise ConfigError(f"dtype={name} is not one of {', '.join(DTYPES)}")
    return torch.float32 if device.type == "cpu" else DTYPES[name]
