"""The nano scorer: true targets succeed, lazy and wrong answers do not."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from editar.data.nano.scene import Shape, draw
from editar.data.nano.world import NanoWorld, counterfactuals, render
from editar.evaluation.nano.scoring import Rate, judge, masked_psnr, shuffled, summarise, table

PLANS = [NanoWorld("heldout", 48).plan(i) for i in range(48)]


def test_targets_succeed_and_sources_fail() -> None:
    samples = [render(plan) for plan in PLANS]
    assert all(judge(plan, sample.target).success for plan, sample in zip(PLANS, samples, strict=True))
    assert not any(judge(plan, sample.source).success for plan, sample in zip(PLANS, samples, strict=True))


def test_every_counterfactual_fails_under_its_own_name() -> None:
    for plan in PLANS[:16]:
        for name, picture in counterfactuals(plan):
            verdict = judge(plan, picture)
            assert not verdict.success
            twins = {n for n, p in counterfactuals(plan) if np.array_equal(p, picture)}
            assert verdict.outcome in twins, name


def test_moderate_noise_is_forgiven() -> None:
    rng = np.random.default_rng(0)
    noisy = [render(p).target + rng.normal(0, 8, (64, 64, 3)) for p in PLANS]
    verdicts = [judge(p, np.clip(n, 0, 255).astype(np.uint8)) for p, n in zip(PLANS, noisy, strict=True)]
    assert all(verdict.success for verdict in verdicts)


def test_background_psnr_is_measured_outside_the_mask() -> None:
    a, b = np.zeros((4, 4, 3), np.uint8), np.zeros((4, 4, 3), np.uint8)
    where = np.zeros((4, 4), bool)
    where[0] = True
    b[1:] = 200
    assert masked_psnr(a, b, where) == 100.0
    b[0] = 1
    assert masked_psnr(a, b, where) == pytest.approx(10 * math.log10(255**2))
    assert masked_psnr(a, b, np.zeros((4, 4), bool)) is None
    assert judge(PLANS[5], render(PLANS[5]).target).background_psnr is None  # a translation


def test_wilson_interval() -> None:
    low, high = Rate(8, 10).interval
    assert (round(low, 1), round(high, 1)) == (49.0, 94.3)
    assert Rate(0, 30).interval[0] == pytest.approx(0)
    assert Rate(30, 30).interval[1] == pytest.approx(100)


def test_summary_counts_and_table() -> None:
    verdicts = [judge(plan, render(plan).source) for plan in PLANS]
    summary = summarise(verdicts)
    assert summary.overall == Rate(0, 48)
    assert sum(summary.mistakes.values()) == 48
    assert [rate.count for rate in summary.tasks.values()] == [6] * 8
    text = table({"source": summary})
    assert "all tasks" in text
    assert "0.0 % [0, 7] n=48" in text


def test_shuffling_moves_everybody() -> None:
    names = [str(i) for i in range(50)]
    moved = shuffled(names)
    assert sorted(moved) == sorted(names)
    assert all(a != b for a, b in zip(names, moved, strict=True))
    assert moved == shuffled(names)


@pytest.mark.parametrize("kind", ["circle", "square", "triangle", "star"])
def test_an_object_nobody_asked_for_is_a_mistake(kind: str) -> None:
    world = NanoWorld("heldout", 64)
    judged = 0
    for index in range(64):
        plan = world.plan(index)
        extra = Shape(kind, "cyan", 52, 52, 9, 0.5)
        if any(extra.overlaps(shape) for shape in plan.target.shapes):
            continue
        picture = draw(replace(plan.target, shapes=(*plan.target.shapes, extra)))
        assert judge(plan, picture).outcome in ("extra object", "damage"), plan.instruction
        judged += 1
    assert judged > 10
