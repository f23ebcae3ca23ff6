"""Means that say what they leave out, intervals that cover, comparisons picture by picture."""

from __future__ import annotations

import math

import numpy as np
import pytest

from editar.errors import BenchmarkError
from editar.tables.statistics import compare, mean_of, means, means_by, rate_of

NAN, INF = math.nan, math.inf


def test_undefined_values_are_counted() -> None:
    mean = mean_of([1.0, NAN, 3.0])
    assert (mean.mean, mean.count, mean.excluded) == (2.0, 2, 1)
    assert 1 <= mean.low <= mean.high <= 3
    empty = mean_of([NAN, NAN])
    assert (math.isnan(empty.mean), empty.count, empty.excluded) == (True, 0, 2)


def test_an_infinite_value_makes_the_mean_infinite() -> None:
    mean = mean_of([20.0, INF, 22.0])
    assert mean.mean == INF
    assert not math.isnan(mean.low) and mean.high == INF


def test_interval_agrees_with_theory_and_repeats() -> None:
    values = np.random.default_rng(1).normal(5, 2, 700)
    mean = mean_of(values)
    half = 1.96 * values.std(ddof=1) / math.sqrt(700)
    assert mean.low == pytest.approx(mean.mean - half, abs=0.15 * half)
    assert mean.high == pytest.approx(mean.mean + half, abs=0.15 * half)
    assert mean_of(values) == mean
    assert mean_of(values, seed=1) != mean


def test_groups_keep_their_order() -> None:
    rows = [{"psnr": 10.0, "mse": 1.0}, {"psnr": 20.0, "mse": NAN}, {"psnr": 30.0, "mse": 3.0}]
    groups = means_by(rows, ["style", "object", "style"])
    assert list(groups) == ["style", "object"]
    assert (groups["style"]["psnr"].mean, groups["object"]["mse"].excluded) == (20.0, 1)
    assert means(rows)["mse"].count == 2
    assert means([]) == {}


def test_comparison() -> None:
    random = np.random.default_rng(0)
    first = {str(i): value for i, value in enumerate(random.normal(20, 3, 60))}
    second = {id: value + random.normal(0.5, 0.5) for id, value in first.items()}
    result = compare(first, second, "higher")
    assert result.difference.low > 0
    assert result.p < 0.01
    assert (result.wins + result.losses, result.ties) == (60, 0)
    assert result.wins > result.losses
    swapped = compare(first, second, "lower")
    assert (swapped.wins, swapped.losses) == (result.losses, result.wins)


def test_comparison_of_equals_and_of_undefined() -> None:
    values = {"a": INF, "b": NAN, "c": 1.0}
    result = compare(values, values, "higher")
    assert (result.wins, result.ties, result.losses) == (0, 2, 0)
    assert (result.difference.mean, result.difference.excluded, result.p) == (0.0, 1, 1.0)
    assert math.isnan(compare({"b": NAN}, {"b": 1.0}, "lower").p)


def test_comparison_needs_the_same_pictures() -> None:
    with pytest.raises(BenchmarkError, match="differ in 2 pictures, first a"):
        compare({"a": 1.0, "b": 1.0}, {"b": 1.0, "c": 1.0}, "lower")
    with pytest.raises(ValueError, match="lower, higher"):
        compare({}, {}, "best")


def test_a_rate_has_wilsons_interval() -> None:
    found = rate_of([100.0] * 8 + [0.0] * 2 + [NAN])
    assert (found.mean, found.count, found.excluded) == (80, 10, 1)
    assert (round(found.low, 1), round(found.high, 1)) == (49.0, 94.3)
    assert rate_of([0.0] * 30).low == pytest.approx(0) and rate_of([100.0] * 30).high == pytest.approx(100)
    assert math.isnan(rate_of([NAN]).mean)
