"""The training stream: exact shares, whole epochs, and nothing but (seed, draw) decides."""

from __future__ import annotations

import numpy as np
import pytest

from editar.data.mixture import Mixture, spread, whole_units

PAPER = {"depth": 15.0, "canny": 15.0, "segmentation": 15.0, "pipe": 25.0, "seed": 30.0}
SIZES = {"depth": 500, "canny": 500, "segmentation": 77, "pipe": 300, "seed": 100}


def draws(count: int, first: int = 0) -> np.ndarray:
    return np.arange(first, first + count, dtype=np.uint64)


def test_shares_are_exact_in_every_window() -> None:
    mixture = Mixture(PAPER, SIZES, seed=0)
    source, _ = mixture.locate(draws(10_000))
    share = np.array(list(PAPER.values())) / 100
    assert np.array_equal(np.bincount(source) / 10_000, share)
    counts = np.cumsum(np.eye(5, dtype=int)[source], axis=0)
    window = counts[300:] - counts[:-300]
    assert np.abs(window - 300 * share).max() <= 6


def test_every_epoch_visits_every_row_once_and_in_another_order() -> None:
    mixture = Mixture(PAPER, SIZES, seed=0)
    source, rows = mixture.locate(draws(10_000))
    seen = rows[source == 4]
    epochs = seen[: len(seen) // 100 * 100].reshape(-1, 100)
    assert all(sorted(epoch) == list(range(100)) for epoch in epochs)
    assert not np.array_equal(epochs[0], epochs[1])


def test_a_draw_is_found_alone_as_among_others() -> None:
    mixture = Mixture(PAPER, SIZES, seed=3)
    together = np.stack(mixture.locate(draws(500)))
    alone = np.concatenate([np.stack(Mixture(PAPER, SIZES, seed=3).locate(draws(1, i))) for i in range(500)], axis=1)
    assert np.array_equal(together, alone)
    late = mixture.locate(np.array([2_560_000, 10**12], np.uint64))
    assert all(0 <= row < list(SIZES.values())[source] for source, row in zip(*late, strict=True))


def test_a_retry_takes_the_next_draw_of_the_source() -> None:
    mixture = Mixture(PAPER, SIZES, seed=0)
    source, rows = mixture.locate(draws(400))
    _, retried = mixture.locate(draws(400), retry=1)
    for index in range(5):
        mine = source == index
        assert np.array_equal(retried[mine][:-1], rows[mine][1:])


def test_dropping_a_source_keeps_the_order_of_the_others() -> None:
    less = {name: weight for name, weight in PAPER.items() if name != "pipe"}
    whole, part = Mixture(PAPER, SIZES, seed=0), Mixture(less, SIZES, seed=0)
    a, b = whole.locate(draws(2000)), part.locate(draws(2000))
    assert list(a[1][a[0] == 4][:300]) == list(b[1][b[0] == 3][:300])
    assert part.shares["seed"] == pytest.approx(30 / 75)


@pytest.mark.parametrize(
    ("weights", "units"),
    [
        ([15, 15, 15, 25, 30], [3, 3, 3, 5, 6]),
        ([0.15, 0.85], [3, 17]),
        ([1.0], [1]),
        ([1 / 3, 1e-7], [1000, 1]),
    ],
)
def test_weights_become_small_whole_numbers(weights: list[float], units: list[int]) -> None:
    assert whole_units(weights) == units


def test_spread_is_even() -> None:
    places = np.flatnonzero(spread([3, 3, 3, 5, 6]) == 4)
    assert set(np.diff(places)) <= {2, 3, 4, 5}
