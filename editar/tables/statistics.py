"""Means with what they leave out, their intervals, and two systems compared picture by picture."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from editar.errors import BenchmarkError

DRAWS, LEVEL = 2000, 0.95


@dataclass(frozen=True)
class Mean:
    """Mean of `count` values with its bootstrap interval; `excluded` values were NaN and are left out.

    All NaN where nothing is left. An infinite value (PSNR of an untouched picture) makes the mean
    infinite, as it does in the official evaluators.
    """

    mean: float
    low: float
    high: float
    count: int
    excluded: int


def mean_of(values: Sequence[float], seed: int = 0, draws: int = DRAWS) -> Mean:
    """Mean and 95 % percentile bootstrap interval over pictures; the same seed gives the same interval."""
    array = np.asarray(values, np.float64)
    kept = array[~np.isnan(array)]
    if not len(kept):
        return Mean(math.nan, math.nan, math.nan, 0, len(array))
    low, high = bootstrap(kept, seed, draws)
    return Mean(float(kept.mean()), low, high, len(kept), len(array) - len(kept))


def rate_of(values: Sequence[float]) -> Mean:
    """Mean of values that are 0 or 100 (per cent) with Wilson's 95 % interval: a bootstrap of 3 successes in 3
    tries would claim certainty."""
    array = np.asarray(values, np.float64)
    kept = array[~np.isnan(array)]
    if not len(kept):
        return Mean(math.nan, math.nan, math.nan, 0, len(array))
    z, n, share = 1.959964, len(kept), float(kept.mean()) / 100
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return Mean(100 * share, 100 * (centre - half), 100 * (centre + half), n, len(array) - n)


def bootstrap(values: np.ndarray, seed: int = 0, draws: int = DRAWS) -> tuple[float, float]:
    """95 % interval of the mean of (N,) values by resampling them `draws` times."""
    random = np.random.default_rng(seed)
    rows = max(1, min(draws, 4_000_000 // len(values)))  # at most 32 MB of indices at a time
    means = np.concatenate(
        [
            values[random.integers(len(values), size=(min(rows, draws - start), len(values)))].mean(1)
            for start in range(0, draws, rows)
        ]
    )
    # A drawn mean itself, not a point between two of them, which is NaN when one is infinite.
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], method="nearest")
    return float(low), float(high)


Row = Mapping[str, float]


def means(rows: Sequence[Row], rates: Collection[str] = ()) -> dict[str, Mean]:
    """Column -> mean over the rows; every row has the same columns. `rates` are 0 or 100 in each row."""
    columns = list(rows[0]) if rows else []
    return {name: (rate_of if name in rates else mean_of)([row[name] for row in rows]) for name in columns}


def means_by(rows: Sequence[Row], groups: Sequence[str], rates: Collection[str] = ()) -> dict[str, dict[str, Mean]]:
    """Group -> column -> mean, groups in order of first appearance; groups[i] belongs to rows[i]."""
    gathered: dict[str, list[Row]] = {}
    for row, group in zip(rows, groups, strict=True):
        gathered.setdefault(group, []).append(row)
    return {group: means(members, rates) for group, members in gathered.items()}


@dataclass(frozen=True)
class Comparison:
    """Second minus first over the pictures where both are defined.

    `p` is two-sided: how often the bootstrap's mean difference has the other sign, doubled, at least
    1 / draws; NaN when nothing can be compared.
    """

    difference: Mean
    wins: int  # pictures on which the second is better
    ties: int
    losses: int
    p: float


def compare(
    first: Mapping[str, float], second: Mapping[str, float], better: str, seed: int = 0, draws: int = DRAWS
) -> Comparison:
    """One column of two result folders, {picture id: value} each; `better` is lower or higher.

    Raises BenchmarkError when the pictures are not the same ones.
    """
    if better not in ("lower", "higher"):
        raise ValueError(f"better={better} is not one of lower, higher")
    alone = sorted(set(first) ^ set(second))
    if alone:
        raise BenchmarkError(f"the two results differ in {len(alone)} pictures, first {alone[0]}; score the same set")
    ids = sorted(first)
    # Two infinite PSNRs (both untouched) are a tie.
    pairs = [(first[id], second[id]) for id in ids]
    gaps = [0.0 if a == b else b - a for a, b in pairs]
    difference = mean_of(gaps, seed, draws)
    kept = np.asarray([gap for gap in gaps if not math.isnan(gap)])
    sign = 1 if better == "higher" else -1
    return Comparison(
        difference,
        wins=int((kept * sign > 0).sum()),
        ties=int((kept == 0).sum()),
        losses=int((kept * sign < 0).sum()),
        p=_p_value(kept, seed, draws) if len(kept) else math.nan,
    )


def _p_value(gaps: np.ndarray, seed: int, draws: int) -> float:
    random = np.random.default_rng(seed)
    drawn = np.asarray([gaps[random.integers(len(gaps), size=len(gaps))].mean() for _ in range(draws)])
    other = min((drawn <= 0).mean(), (drawn >= 0).mean())
    return float(min(1.0, max(2 * other, 1 / draws)))
