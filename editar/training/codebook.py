"""Codebook health when a tokenizer is trained from scratch: k-means start, dead-code restarts.

Without both, a plain VQ collapsed to 59 of 512 codes in our trial (docs/log.md).
"""

from __future__ import annotations

import torch

from editar.encoders.vq import VectorQuantizer


@torch.no_grad()
def kmeans_init(
    quantizer: VectorQuantizer, latents: torch.Tensor, generator: torch.Generator, rounds: int = 10
) -> None:
    """Set the codebook to k-means centres of latents (M, C); empty clusters take random latents."""
    points = quantizer.normalise(latents)
    size = quantizer.embedding.num_embeddings
    if len(points) < size:
        raise ValueError(f"k-means needs at least {size} latents for {size} codes, got {len(points)}")
    centres = points[torch.randperm(len(points), generator=generator)[:size]].clone()
    for _ in range(rounds):
        nearest = torch.cdist(points, centres).argmin(1)
        sums = torch.zeros_like(centres).index_add_(0, nearest, points)
        counts = torch.bincount(nearest, minlength=size)
        filled = counts > 0
        centres[filled] = sums[filled] / counts[filled, None]
        empty = int((~filled).sum())
        centres[~filled] = points[torch.randint(len(points), (empty,), generator=generator)]
        centres = quantizer.normalise(centres)
    quantizer.embedding.weight.copy_(centres)


@torch.no_grad()
def restart_dead_codes(
    quantizer: VectorQuantizer, counts: torch.Tensor, latents: torch.Tensor, generator: torch.Generator
) -> int:
    """Move every code with no use in `counts` (K,) onto a random recent latent; returns how many."""
    dead = counts == 0
    number = int(dead.sum())
    chosen = torch.randint(len(latents), (number,), generator=generator)
    quantizer.embedding.weight[dead] = quantizer.normalise(latents)[chosen]
    return number
