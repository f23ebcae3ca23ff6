"""Draw i is a pure function of (seed, i)."""

from __future__ import annotations

import numpy as np
import pytest

from editar.data import stream


@pytest.mark.parametrize("size", [1, 2, 3, 7, 64, 1000])
def test_every_epoch_visits_every_row_once(size: int) -> None:
    rows = stream.rows(np.arange(3 * size), size, seed=5).reshape(3, size)
    for epoch in rows:
        assert sorted(epoch) == list(range(size))
    if size > 7:
        assert not np.array_equal(rows[0], rows[1])


def test_draws_do_not_depend_on_how_they_are_grouped() -> None:
    whole = stream.rows(np.arange(96), 40, seed=1), stream.uniform(np.arange(96), 1, 0)
    for group in (1, 5, 32):
        for start in range(0, 96, group):
            part = np.arange(start, min(start + group, 96))
            assert np.array_equal(stream.rows(part, 40, seed=1), whole[0][part])
            assert np.array_equal(stream.uniform(part, 1, 0), whole[1][part])


def test_seeds_and_streams_are_independent() -> None:
    draws = np.arange(20000)
    a, b, c = stream.uniform(draws, 0, 0), stream.uniform(draws, 1, 0), stream.uniform(draws, 0, 1)
    for x in (a, b, c):
        assert x.dtype == np.float32
        assert x.min() >= 0
        assert x.max() < 1
        assert abs(x.mean() - 0.5) < 0.01
    assert abs(np.corrcoef(a, b)[0, 1]) < 0.03
    assert abs(np.corrcoef(a, c)[0, 1]) < 0.03
    assert abs(np.corrcoef(a[1:], a[:-1])[0, 1]) < 0.03


def test_known_values_never_change() -> None:
    """A new version must replay an old run's stream."""
    assert stream.rows(np.arange(8), 1000, seed=5).tolist() == [239, 359, 890, 230, 224, 739, 696, 493]


def test_three_million_rows_cost_no_table() -> None:
    draws = np.array([0, 1, 2_999_999, 3_000_000, 10**12])
    rows = stream.rows(draws, 3_000_000, seed=0)
    assert ((rows >= 0) & (rows < 3_000_000)).all()
