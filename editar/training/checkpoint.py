"""Checkpoints of a training run: everything needed to go on exactly, written atomically.

`resume` continues with weights, optimiser, step and RNG of the same run; `init_from` takes weights
only. A checkpoint is a folder `checkpoints/step_0001000/` that appears by one rename; the newest
weights are also put at `model.safetensors`, where `editar.edit` and `editar.eval` look.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import nn

from editar.runtime.files import CheckpointError, load_state, load_weights, save_weights


def save_checkpoint(
    folder: Path,
    step: int,
    model: nn.Module,
    optimizers: list[torch.optim.Optimizer],
    rng: list[torch.Tensor],
    keep: int,
) -> None:
    """Write step's checkpoint and the current weights, then drop all but the newest `keep`."""
    root = folder / "checkpoints"
    final = root / f"step_{step:07d}"
    partial = root / f".step_{step:07d}.part"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    save_weights(model.state_dict(), partial / "model.safetensors")
    state = {"step": step, "optimizers": [o.state_dict() for o in optimizers], "rng": rng}
    torch.save(state, partial / "state.pt")
    shutil.rmtree(final, ignore_errors=True)
    os.replace(partial, final)
    save_weights(model.state_dict(), folder / "model.safetensors", {"step": str(step)})
    for old in sorted(root.glob("step_*"))[:-keep]:
        shutil.rmtree(old)


def latest_checkpoint(folder: Path) -> Path | None:
    found = sorted((folder / "checkpoints").glob("step_*"))
    return found[-1] if found else None


def load_checkpoint(path: Path, model: nn.Module, optimizers: list[torch.optim.Optimizer]) -> dict[str, Any]:
    """Restore model and optimisers; returns the state with `step` and `rng` (one per old rank)."""
    load_state(model, load_weights(path / "model.safetensors"), path)
    try:
        state = torch.load(path / "state.pt", map_location="cpu", weights_only=True)
    except Exception as error:  # damaged zip, wrong pickle: many types, one meaning
        raise CheckpointError(
            f"{path}/state.pt: not readable ({error}); remove that folder to resume earlier"
        ) from None
    for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
        optimizer.load_state_dict(saved)
    return state
