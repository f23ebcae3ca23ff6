"""Which source and which row draw i of the training stream is: a pure function of (seed, i).

Weights become whole units of a repeating pattern in which every source is spread evenly; the order
inside each stretch of SPAN draws is shuffled. So any window holds each source's exact share, give or
take a few draws, and draw i is found without visiting the draws before it.
"""

from __future__ import annotations

import math
import zlib
from fractions import Fraction

import numpy as np

from editar.data import stream

SPAN = 20
MAX_UNITS = 1000


class Mixture:
    """`weights` (any positive scale) and training `sizes` by source name."""

    def __init__(self, weights: dict[str, float], sizes: dict[str, int], seed: int) -> None:
        self.names, self.seed = list(weights), seed
        self.sizes = [sizes[name] for name in self.names]
        self.units = whole_units(list(weights.values()))
        self.pattern = spread(self.units)  # (U,) source of each place of a turn

    @property
    def shares(self) -> dict[str, float]:
        """Exact share of each source, summing to 1."""
        total = sum(self.units)
        return {name: units / total for name, units in zip(self.names, self.units, strict=True)}

    def locate(self, draws: np.ndarray, retry: int = 0) -> tuple[np.ndarray, np.ndarray]:
        """draws (n,) uint64 -> source index (n,) and row (n,), int64.

        `retry` k gives the row of the k-th next draw of the same source, for a row that proved bad.
        """
        draws = draws.astype(np.int64)
        turns, places = draws // len(self.pattern), draws % len(self.pattern)
        source, ordinal = np.empty_like(draws), np.empty_like(draws)
        for turn in np.unique(turns):
            order, rank = self._turn(int(turn))
            here = turns == turn
            source[here] = order[places[here]]
            ordinal[here] = turn * np.array(self.units)[source[here]] + rank[places[here]] + retry
        rows = np.empty_like(draws)
        for index, size in enumerate(self.sizes):
            chosen = source == index
            # Keyed by the name, so that a source keeps its order when another is dropped.
            key = self.seed ^ zlib.crc32(self.names[index].encode())
            rows[chosen] = stream.rows(ordinal[chosen].astype(np.uint64), size, key)
        return source, rows

    def _turn(self, turn: int) -> tuple[np.ndarray, np.ndarray]:
        """The pattern in its repetition number `turn`, shuffled within spans: source of each place, and
        how often that source came before in this turn, both (U,) int64."""
        units = len(self.pattern)
        order = np.empty(units, np.int64)
        for start in range(0, units, SPAN):
            size = min(SPAN, units - start)
            key = np.full(size, turn * units + start, np.uint64)
            order[start : start + size] = self.pattern[start + stream.permute(np.arange(size), size, self.seed, key)]
        rank = np.zeros(units, np.int64)
        for index in range(len(self.names)):
            places = np.flatnonzero(order == index)
            rank[places] = np.arange(len(places))
        return order, rank


def whole_units(weights: list[float]) -> list[int]:
    """Smallest whole numbers in the ratio of the weights; rounded to MAX_UNITS parts when they have no
    such small form (each source keeps at least one)."""
    exact = [Fraction(str(weight)) for weight in weights]
    scale = math.lcm(*(value.denominator for value in exact))
    units = [int(value * scale) for value in exact]
    units = [value // math.gcd(*units) for value in units]
    if sum(units) <= MAX_UNITS:
        return units
    return [max(1, round(MAX_UNITS * value / sum(units))) for value in units]


def spread(units: list[int]) -> np.ndarray:
    """Sources 0..n-1, each `units` times, as evenly as they go: by the middle of their intervals."""
    places = [((turn + 0.5) / count, source) for source, count in enumerate(units) for turn in range(count)]
    return np.array([source for _, source in sorted(places)], np.int64)
