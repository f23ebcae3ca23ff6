"""The training stream: draw i is a pure function of (seed, i).

World size, micro-batch, workers and restarts only decide who computes which draw, never what it is.
Rows are visited without repetition within an epoch, in an order that costs O(1) memory per draw.
"""

from __future__ import annotations

import numpy as np


def mix(values: np.ndarray, key: int) -> np.ndarray:
    """Hash uint64 values with a key (splitmix64's finaliser): uniform, stateless, vectorised."""
    with np.errstate(over="ignore"):
        x = values.astype(np.uint64) + np.uint64(key & 0xFFFFFFFFFFFFFFFF) * np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return x ^ (x >> np.uint64(31))


def uniform(draws: np.ndarray, seed: int, stream: int) -> np.ndarray:
    """One float32 in [0, 1) per draw; `stream` separates independent uses."""
    bits = mix(draws, (seed << 8) + 2 * stream + 1)
    return ((bits >> np.uint64(40)).astype(np.float64) / (1 << 24)).astype(np.float32)


def rows(draws: np.ndarray, size: int, seed: int) -> np.ndarray:
    """Row of each draw, int64 in [0, size): epoch e = draw // size visits every row once."""
    draws = draws.astype(np.int64)
    return permute(draws % size, size, seed, draws // size)


def permute(index: np.ndarray, size: int, seed: int, epoch: np.ndarray) -> np.ndarray:
    """A pseudo-random permutation of range(size) per (seed, epoch), evaluated at `index`.

    Four-round Feistel network on the smallest even number of bits that covers `size`; results
    outside the range walk on until they fall inside.
    """
    half = max(1, (max(size - 1, 1).bit_length() + 1) // 2)
    low = np.uint64((1 << half) - 1)
    keys = mix(epoch.astype(np.uint64), (seed << 8) + 200)

    def once(x: np.ndarray, keys: np.ndarray) -> np.ndarray:
        left, right = x >> np.uint64(half), x & low
        for turn in range(4):
            left, right = right, left ^ (mix(right ^ keys, turn + 1) & low)
        return (left << np.uint64(half)) | right

    result = once(index.astype(np.uint64), keys)
    outside = result >= np.uint64(size)
    while outside.any():
        result[outside] = once(result[outside], keys[outside])
        outside = result >= np.uint64(size)
    return result.astype(np.int64)
