"""The automatic window against machines and inputs of known behaviour; no clock is involved."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from editar.sampling.engine.window import AutoWindow, FixedWindow

WIDTHS = (1, 2, 4, 8, 16, 24, 32, 48, 63)

MACHINES: dict[str, Callable[[int], float]] = {
    "overhead": lambda codes: 1.0,
    "overhead and work": lambda codes: 1.0 + 0.02 * codes,
    "work": lambda codes: float(codes),
    "small batches cost the same": lambda codes: max(1.0, codes / 40),
}


def decode(
    auto: AutoWindow | FixedWindow,
    cost: Callable[[int], float],
    right: float,
    results: int = 1,
    tokens: int = 64,
    seed: int = 0,
) -> float:
    """Seconds of one generation whose guesses are right with probability `right`, as the engine would run it."""
    draw = np.random.default_rng(seed)
    auto.begin(tokens)
    left, seconds = [tokens - 1] * results, 0.0
    while any(left):
        most = max(left)
        width = min(auto.choose(2 * results, most), -(-most // 8) * 8)
        unfinished = [n for n in left if n]
        agreed = [int(np.append(draw.random(width) < right, False).argmin()) for _ in unfinished]
        advances = [min(1 + a, width, n) for a, n in zip(agreed, unfinished, strict=True)]
        auto.observe(2 * results, width, advances, unfinished, cost(2 * results * width))
        seconds += cost(2 * results * width)
        moved = iter(advances)
        left = [n and n - next(moved) for n in left]
    return seconds


@pytest.mark.parametrize("results", [1, 16])
@pytest.mark.parametrize("machine", MACHINES)
def test_nothing_accepted_costs_at_most_five_percent(machine: str, results: int) -> None:
    cost = MACHINES[machine]
    for tokens in (64, 1024):
        auto = AutoWindow(WIDTHS)
        for _ in range(4):  # new, used to it, and after an image where everything was right
            assert decode(auto, cost, 0.0, results, tokens) <= 1.05 * (tokens - 1) * cost(2 * results)
        for _ in range(3):
            decode(auto, cost, 1.0, results, tokens)
        assert decode(auto, cost, 0.0, results, tokens) <= 1.05 * (tokens - 1) * cost(2 * results)


@pytest.mark.parametrize("right", [0.6, 0.8, 0.95])
@pytest.mark.parametrize("machine", MACHINES)
def test_right_guesses_are_used_where_wide_passes_are_cheap(machine: str, right: float) -> None:
    """After a few images nearly as fast as the best fixed window."""
    cost, auto = MACHINES[machine], AutoWindow(WIDTHS)
    seconds = [decode(auto, cost, right, seed=seed) for seed in range(12)]
    fixed = [np.mean([decode(FixedWindow(width), cost, right, seed=seed) for seed in range(12)]) for width in WIDTHS]
    assert np.mean(seconds[2:]) <= 1.2 * min(fixed)


def test_a_change_of_inputs_is_noticed() -> None:
    cost, auto = MACHINES["overhead and work"], AutoWindow(WIDTHS)
    for _ in range(20):
        alone = decode(auto, cost, 0.0)
    for _ in range(5):
        accepted = decode(auto, cost, 0.9)
    assert accepted < 0.5 * alone


def test_an_interrupted_pass_counts_little() -> None:
    auto = AutoWindow(WIDTHS)
    auto.begin(64)
    for seconds in (1.0, 1.0, 500.0):
        auto.measure(2, seconds, trust=True)
    assert auto.time(2) == pytest.approx(1.2)
    assert auto.time(4) == pytest.approx(1.2)  # nothing is known of wider passes yet: they are tried
    assert auto.choose(2, 60) == 2
