"""Condition images (canny edges, depth, segmentation colours), shared by training data and scoring."""

from __future__ import annotations

import numpy as np
import torch

# Operator -> thresholds. EditAR's and ControlNet++'s scripts take kornia's; (100, 200) is what EditAR's text says,
# on the scale of OpenCV's operator, which ControlNet++ has as a task of its own (`canny_cv2`).
CANNY = {"kornia": (0.1, 0.2), "cv2": (100, 200)}
TAN_22 = 13573  # tan 22.5 degrees in units of 2**-15, as OpenCV rounds it


def canny(images: torch.Tensor, operator: str = "kornia") -> torch.Tensor:
    """Edges of (B, 3, H, W) float images in [0, 1] -> (B, 1, H, W) float, exactly 0 or 1.

    kornia reads the floats; cv2 reads bytes, to which they are rounded.
    """
    low, high = CANNY[operator]
    if operator == "cv2":
        pictures = (images * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
        edges = torch.from_numpy(np.stack([cv2_canny(picture, int(low), int(high)) for picture in pictures]))
        return edges[:, None].to(images)
    from kornia.filters import canny as kornia_canny  # heavy import, needed by few

    # kornia's own hysteresis repeats a convolution until nothing changes, for the same edges
    found = kornia_canny(images, low_threshold=low, high_threshold=high, hysteresis=False)[1][:, 0].cpu().numpy()
    edges = torch.from_numpy(np.stack([_touching(one > 0, one == 1) for one in found]))
    return edges[:, None].to(images)


def cv2_canny(picture: np.ndarray, low: int, high: int) -> np.ndarray:
    """Edges (H, W) bool of (H, W, 3) RGB bytes: the pixels of cv2.Canny(picture[..., ::-1], low, high).

    3x3 Sobel of each channel, of which the strongest |dx| + |dy| counts (blue first where two are equal); thinned
    along the gradient in four directions; weak edges stay where they touch a strong one. No blur comes before.
    """
    padded = np.pad(picture[..., ::-1].astype(np.int32), ((1, 1), (1, 1), (0, 0)), mode="edge")
    across = padded[:-2] + 2 * padded[1:-1] + padded[2:]
    down = padded[:, :-2] + 2 * padded[:, 1:-1] + padded[:, 2:]
    slopes = np.stack([across[:, 2:] - across[:, :-2], down[2:] - down[:-2]])  # dx, dy of each channel
    channel = np.abs(slopes).sum(0).argmax(-1)
    dx, dy = np.take_along_axis(slopes, channel[None, ..., None], -1)[..., 0]
    strength = np.abs(dx) + np.abs(dy)
    around = np.pad(strength, 1)

    def over(row: int, column: int, equal: bool = False) -> np.ndarray:
        """Whether a pixel is stronger than its neighbour at this offset, or as strong."""
        rows, columns = (slice(1 + at, at - 1 or None) for at in (row, column))
        return (np.greater_equal if equal else np.greater)(strength, around[rows, columns])

    x, y = np.abs(dx), np.abs(dy) << 15
    falling = over(-1, -1) & over(1, 1)
    rising = over(-1, 1) & over(1, -1)
    peaks = np.where((dx ^ dy) < 0, rising, falling)
    peaks = np.where(y > x * TAN_22 + (x << 16), over(-1, 0) & over(1, 0, equal=True), peaks)
    peaks = np.where(y < x * TAN_22, over(0, -1) & over(0, 1, equal=True), peaks)
    return _touching(peaks & (strength > low), peaks & (strength > high))


def _touching(weak: np.ndarray, strong: np.ndarray) -> np.ndarray:
    """The 8-connected parts of `weak` that hold a pixel of `strong`."""
    from scipy.ndimage import label

    parts, count = label(weak, np.ones((3, 3)))
    kept = np.zeros(count + 1, bool)
    kept[parts[strong]] = True
    return kept[parts]


def canny_condition(images: torch.Tensor, operator: str = "kornia") -> torch.Tensor:
    """Pictures (B, 3, H, W) in [-1, 1] -> three-channel edge pictures in {-1, 1}, as the model reads them."""
    return canny((images + 1) / 2, operator).repeat(1, 3, 1, 1) * 2 - 1


def depth_condition(depth: np.ndarray) -> np.ndarray:
    """Nearness in [0, 1], (H, W) -> grey picture (H, W, 3) uint8, near is bright (MultiGen-20M)."""
    grey = np.clip(np.rint(depth * 255), 0, 255).astype(np.uint8)
    return np.repeat(grey[..., None], 3, axis=2)


def colour_labels(labels: np.ndarray, palette: np.ndarray) -> np.ndarray:
    """Class ids (H, W) and palette (K, 3) uint8 -> colour map (H, W, 3) uint8; ids >= K are black."""
    table = np.zeros((256, 3), np.uint8)
    table[: len(palette)] = palette
    return table[labels.astype(np.uint8)]
