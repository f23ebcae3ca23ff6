"""Condition images (canny edges, depth, segmentation colours), shared by training data and scoring."""

from __future__ import annotations

import numpy as np
import torch

CANNY_LOW, CANNY_HIGH = 0.1, 0.2  # EditAR's code; the paper's (100, 200) belongs to another operator


def canny(images: torch.Tensor, low: float = CANNY_LOW, high: float = CANNY_HIGH) -> torch.Tensor:
    """Edges of (B, 3, H, W) float images in [0, 1] -> (B, 1, H, W) float, exactly 0 or 1 (kornia)."""
    from kornia.filters import canny as kornia_canny  # heavy import, needed by few

    return kornia_canny(images, low_threshold=low, high_threshold=high)[1]


def canny_condition(images: torch.Tensor) -> torch.Tensor:
    """Pictures (B, 3, H, W) in [-1, 1] -> three-channel edge pictures in {-1, 1}, as the model reads them."""
    return canny((images + 1) / 2).repeat(1, 3, 1, 1) * 2 - 1


def depth_condition(depth: np.ndarray) -> np.ndarray:
    """Nearness in [0, 1], (H, W) -> grey picture (H, W, 3) uint8, near is bright (MultiGen-20M)."""
    grey = np.clip(np.rint(depth * 255), 0, 255).astype(np.uint8)
    return np.repeat(grey[..., None], 3, axis=2)


def colour_labels(labels: np.ndarray, palette: np.ndarray) -> np.ndarray:
    """Class ids (H, W) and palette (K, 3) uint8 -> colour map (H, W, 3) uint8; ids >= K are black."""
    table = np.zeros((256, 3), np.uint8)
    table[: len(palette)] = palette
    return table[labels.astype(np.uint8)]
