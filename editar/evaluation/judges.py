"""The networks that score: which file each one needs, and what is left out without it.

A judge is loaded from a local path (the files that `scripts/fetch_weights.py evaluate` gets) or from
a hub id. Where a file is missing the columns that need it are left out and named; everything else is
still scored.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from editar.config import ConfigError
from editar.model.weights import read_file
from editar.runtime.fetch import hub_file
from editar.runtime.files import CheckpointError

T = TypeVar("T")
State = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Missing:
    """Columns that cannot be scored here, and the one-line reason with what to fetch."""

    columns: tuple[str, ...]
    reason: str

    def __str__(self) -> str:
        return f"without {', '.join(self.columns)}: {self.reason}"


# field of JudgeSources -> name in third_party/weights.yaml
FETCH_NAMES = {
    "structure": "dino_vitb8",
    "lpips": "lpips_squeeze",
    "clip": "clip_l14",
    "depth": "dpt_large",
    "segmenter": "deeplabv3_r101_cocostuff",
    "inception": "inception_fid",
}


def try_judge(
    name: str, source: str | None, columns: tuple[str, ...], load: Callable[[str], T]
) -> tuple[T | None, Missing | None]:
    """`load(source)`, or None and what is missing. A damaged or wrong file still raises.

    `name` is a field of JudgeSources. A source that looks like a local path (it begins with
    checkpoints/ or ends in .pt or .pth) is never asked from the hub.
    """
    if source is None:
        return None, Missing(columns, f"judges.{name} is null")
    local = Path(source).exists()
    if not local and (source.startswith("checkpoints/") or Path(source).suffix in (".pt", ".pth")):
        hint = f"no {source}; get it with `python scripts/fetch_weights.py {FETCH_NAMES[name]}`"
        return None, Missing(columns, hint)
    try:
        return load(source), None
    except (CheckpointError, ConfigError) as error:
        if local:
            raise
        return None, Missing(columns, str(error))


def read_state(source: str | Path) -> State:
    """The tensors of a file or hub id, whether bare or under "state_dict" / "model"; safe loading only.

    Raises CheckpointError.
    """
    path = Path(source)
    if not path.is_file():
        path = hub_file(str(source))
    raw = read_file(path)
    for key in ("state_dict", "model"):
        if isinstance(raw, dict) and isinstance(raw.get(key), dict):
            raw = raw[key]
    if not isinstance(raw, dict) or not all(isinstance(value, torch.Tensor) for value in raw.values()):
        raise CheckpointError(f"{source}: holds no plain dictionary of tensors")
    return raw


def frozen(module: nn.Module, device: torch.device) -> Any:
    """The module itself, in evaluation mode, without gradients, on the device."""
    return module.to(device).eval().requires_grad_(False)
