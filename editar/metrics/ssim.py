"""Squared error, PSNR, SSIM and multi-scale SSIM of batches of pictures, one number per picture.

The definitions are torchmetrics' (since 1.4.2 the mean of SSIM runs over the whole picture, before it left
out five pixels at each border, as that of the contrast term still does), float32. SSIM is written anew
because its Gaussian is separable: torchmetrics convolves with 11x11 taps, here two banded matrices do it, about
five times faster on a CPU (benchmarks/scoring.py) and equal to 1e-5.

Pictures are (B, C, H, W) float32 in [0, 1]; results are (B,) float32 on the same device.
"""

from __future__ import annotations

from functools import lru_cache

import torch
import torch.nn.functional as F

RADIUS, SIGMA = 5, 1.5
C1, C2 = 0.01**2, 0.03**2
MS_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
MAX_TILE = 32  # rows or columns per product with a band matrix; larger ones waste their zeros


def mse(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Mean squared error over all pixels and channels."""
    return (a - b).square().flatten(1).mean(1)


def psnr(error: torch.Tensor) -> torch.Tensor:
    """Mean squared error -> dB for a range of 1; infinite where the error is 0."""
    return -10 * torch.log10(error)


def ssim(a: torch.Tensor, b: torch.Tensor, borders: bool = True) -> torch.Tensor:
    """11x11 Gaussian window of sigma 1.5, reflected borders, mean over pixels and channels; without `borders`
    over all but the five outermost rows and columns (torchmetrics before 1.4.2)."""
    maps = (_maps(x, y)[0] for x, y in zip(a, b, strict=True))
    return torch.stack([similarity.mean() if borders else _inner(similarity).mean() for similarity in maps])


def ms_ssim(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Multi-scale SSIM, five scales, negative terms counted as 0. Sides must have 176 pixels or more.

    Raises ValueError for smaller pictures, whose coarsest scale the window would not fit into.
    """
    if min(a.shape[-2:]) // 16 <= 2 * RADIUS:
        raise ValueError(f"multi-scale SSIM needs sides of 176 pixels or more, not {tuple(a.shape[-2:])}")
    product = torch.ones(len(a), device=a.device)
    for scale, weight in enumerate(MS_WEIGHTS):
        pairs = [_maps(x, y) for x, y in zip(a, b, strict=True)]
        if scale == len(MS_WEIGHTS) - 1:
            term = torch.stack([similarity.mean() for similarity, _ in pairs])
        else:
            term = torch.stack([_inner(contrast).mean() for _, contrast in pairs])
        product = product * term.relu() ** weight
        a, b = F.avg_pool2d(a, 2), F.avg_pool2d(b, 2)
    return product


def _inner(tiles: torch.Tensor) -> torch.Tensor:
    """A map in tiles (see `_blur`) -> (C, H - 10, W - 10)."""
    return tiles.permute(2, 1, 0, 3).flatten(2)[:, RADIUS:-RADIUS, RADIUS:-RADIUS]


def _maps(a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """SSIM and contrast term of each pixel of one pair (C, H, W), as tiles (see `_blur`).

    One picture at a time keeps the fifteen intermediate maps in a CPU's cache.
    """
    channels, height, width = a.shape
    pair = F.pad(torch.stack([a, b]), (RADIUS,) * 4, mode="reflect").permute(2, 0, 1, 3)
    moments = a.new_empty(pair.shape[0], 5, channels, pair.shape[3])  # rows, moment, channel, columns
    moments[:, :2] = pair
    torch.mul(pair, pair, out=moments[:, 2:4])
    torch.mul(pair[:, 0], pair[:, 1], out=moments[:, 4])
    # (column tile, rows, moment, channel, column in the tile)
    means = _blur(moments.flatten(1), height, 5 * channels, width)
    mean_a, mean_b, square_a, square_b, product = means.unflatten(2, (5, channels)).unbind(2)
    aa, bb, ab = mean_a * mean_a, mean_b * mean_b, mean_a * mean_b
    variance = (square_a - aa).clamp_(min=0).add_((square_b - bb).clamp_(min=0)).add_(C2)
    contrast = (product - ab).mul_(2).add_(C2).div_(variance)
    similarity = ab.mul_(2).add_(C1).div_(aa.add_(bb).add_(C1)).mul_(contrast)
    return similarity, contrast


def _blur(padded: torch.Tensor, height: int, maps: int, width: int) -> torch.Tensor:
    """Rows of `maps` pictures, (height + 10, maps * (width + 10)) -> (tiles, height, maps, columns).

    Overlapping strips of rows, then of columns, times a band matrix. The result stays in tiles of
    columns: putting it back together would copy everything once more.
    """
    rows = _band(_tile(height), padded.device)  # (t, t + 10)
    columns = _band(_tile(width), padded.device)
    strips = padded.unfold(0, rows.shape[1], rows.shape[0]).transpose(1, 2)
    blurred = torch.matmul(rows, strips).reshape(height * maps, width + 2 * RADIUS)
    strips = blurred.unfold(1, columns.shape[1], columns.shape[0]).transpose(0, 1)
    return torch.matmul(strips, columns.T).view(-1, height, maps, columns.shape[0])


def _tile(size: int) -> int:
    """The largest divisor of `size` up to MAX_TILE."""
    return max(divisor for divisor in range(1, MAX_TILE + 1) if size % divisor == 0)


@lru_cache(maxsize=64)
def _band(size: int, device: torch.device) -> torch.Tensor:
    """(size, size + 10): row i holds the Gaussian's eleven taps from column i on."""
    steps = torch.arange(-RADIUS, RADIUS + 1, dtype=torch.float32)
    taps = torch.exp(-((steps / SIGMA) ** 2) / 2)
    band = torch.zeros(size, size + 2 * RADIUS)
    for offset, tap in enumerate(taps / taps.sum()):
        band[torch.arange(size), torch.arange(size) + offset] = tap
    return band.to(device)
