"""Where tensors live."""

from __future__ import annotations

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


DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def pick_dtype(name: str, device: torch.device) -> torch.dtype:
    """The named dtype; on the CPU always float32, where half precision is slower and no smaller help."""
    if name not in DTYPES:
        raise ConfigError(f"dtype={name} is not one of {', '.join(DTYPES)}")
    return torch.float32 if device.type == "cpu" else DTYPES[name]
