"""What a data source yields: one edit, before any model has seen it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class EditSample:
    """source, target: (H, W, 3) uint8. mask: (H, W) bool, True where the edit may change pixels."""

    id: str
    task: str
    source: np.ndarray
    target: np.ndarray
    instruction: str
    mask: np.ndarray
    source_caption: str = ""
    target_caption: str = ""
