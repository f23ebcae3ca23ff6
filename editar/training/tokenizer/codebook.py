"""Codebook health when a tokenizer is trained from scratch: k-means start, dead-code restarts.

Without both, a plain VQ collapsed to 59 of 512 codes in our trial (docs/log.md).
"""

from __future__ import annotations

import torch

from editar.models.vq import VectorQuantizer


@torch.no_grad()
def kmeans_init(quantizer: VectorQuantizer, latents: torch.Tensor, generator: torch.Generator, rounds: int) -> None:
    """Set the codebook by k-means on latents (M, C), started from points that lie far apart.

    Far-apart starts with few `rounds` cover the latents evenly. Many rounds (or a random start)
    follow their density instead, and spend most codes on near copies of flat background, between
    which rounding then chooses: of 1024 codes the code entropy was 5.4 nats against 6.5.
    """
    points = quantizer.normalise(latents)
    size = quantizer.embedding.num_embeddings
    if len(points) < size:
        raise ValueError(f"k-means needs at least {size} latents for {size} codes, got {len(points)}")
    centres = far_apart(points, size, int(torch.randint(len(points), (1,), generator=generator)))
    for _ in range(rounds):
        nearest = torch.cdist(points, centres).argmin(1)
        sums = torch.zeros_like(centres).index_add_(0, nearest, points)
        counts = torch.bincount(nearest, minlength=size)
        filled = counts > 0
        centres[filled] = sums[filled] / counts[filled, None]
        centres = quantizer.normalise(centres)
    quantizer.embedding.weight.copy_(centres)


def far_apart(points: torch.Tensor, count: int, first: int) -> torch.Tensor:
    """`count` of the points (M, C), each the farthest from all chosen before."""
    chosen = [first]
    distance = (points - points[first]).square().sum(1)
    for _ in range(count - 1):
        chosen.append(int(distance.argmax()))
        distance = torch.minimum(distance, (points - points[chosen[-1]]).square().sum(1))
    return points[chosen].clone()


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
