"""The nano scorer: true targets succeed, lazy and wrong answers do not."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from editar.data.nano.scene import Shape, draw
from editar.data.nano.world import NanoWorld, counterfactuals, render
from editar.evaluation.nano.scoring import in_memory, masked_psnr, mistakes, score_edit, score_method, shuffled
from editar.tables.scores import breakdown

PLANS = [NanoWorld("heldout", 48).plan(i) for i in range(48)]


def test_targets_succeed_and_sources_fail() -> None:
    samples = [render(plan) for plan in PLANS]
    assert all(score_edit(plan, sample.target).success for plan, sample in zip(PLANS, samples, strict=True))
    assert not any(score_edit(plan, sample.source).success for plan, sample in zip(PLANS, samples, strict=True))


def test_every_counterfactual_fails_under_its_own_name() -> None:
    for plan in PLANS[:8]:  # one of each task
        wrong = counterfactuals(plan)
        for name, picture in wrong[:: max(1, len(wrong) // 8)]:
            found = score_edit(plan, picture)
            assert not found.success
            assert found.outcome in {n for n, p in wrong if np.array_equal(p, picture)}, name


def test_moderate_noise_is_forgiven() -> None:
    rng = np.random.default_rng(0)
    noisy = [render(p).target + rng.normal(0, 8, (64, 64, 3)) for p in PLANS]
    scores = [score_edit(p, np.clip(n, 0, 255).astype(np.uint8)) for p, n in zip(PLANS, noisy, strict=True)]
    assert all(found.success for found in scores)


def test_background_psnr_is_measured_outside_the_mask() -> None:
    a, b = np.zeros((4, 4, 3), np.uint8), np.zeros((4, 4, 3), np.uint8)
    where = np.zeros((4, 4), bool)
    where[0] = True
    b[1:] = 200
    assert masked_psnr(a, b, where) == 100.0
    b[0] = 1
    assert masked_psnr(a, b, where) == pytest.approx(10 * math.log10(255**2))
    assert math.isnan(masked_psnr(a, b, np.zeros((4, 4), bool)))
    assert math.isnan(score_edit(PLANS[5], render(PLANS[5]).target).background_psnr)  # a translation


def test_a_method_is_summed_up_by_task() -> None:
    """The untouched sources: nothing succeeds, and the text table says of how many."""
    method = score_method("source", PLANS, [render(plan).source for plan in PLANS])
    evaluation = in_memory([method])
    assert evaluation.means(method)["success"].mean == 0
    assert sum(int(part.rsplit(" ", 1)[1]) for part in mistakes(method).split(", ")) == 48
    assert [found["success"].count for found in evaluation.means_by(method, "task").values()] == [6] * 8
    text = breakdown(evaluation, ["success"])
    assert text.splitlines()[-1].startswith("all") and "0.0 [0.0, 7.4] n=48" in text


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
        assert score_edit(plan, picture).outcome in ("extra object", "damage"), plan.instruction
        judged += 1
    assert judged > 10
