"""Edits with two pictures: exact truth, counterfactuals, and second pictures that ask for something else."""

from __future__ import annotations

import numpy as np
import pytest

from editar.data.nano.pairs import TASKS, NanoPairs, asked_of, other_references
from editar.data.nano.scene import draw
from editar.data.nano.world import counterfactuals, render, vocabulary
from editar.evaluation.nano.scoring import score_edit


@pytest.fixture(scope="module")
def world() -> NanoPairs:
    return NanoPairs("heldout", 60)


def test_samples_are_functions_of_their_number(world: NanoPairs) -> None:
    again = NanoPairs("heldout", 60)
    for i in range(6):
        assert again.plan(i) == world.plan(i)
        assert np.array_equal(world[i].more[0], draw(world.plan(i).reference))
    assert [world.plan(i).task for i in range(3)] == list(TASKS)
    assert NanoPairs("train", 60).plan(0) != world.plan(0)
    assert all(world.plan(i).source.heldout and world.plan(i).target.heldout for i in range(60))


def test_the_second_picture_decides_the_target(world: NanoPairs) -> None:
    for i in range(60):
        plan = world.plan(i)
        assert plan.reference is not None
        shown = plan.reference.shapes[0]
        if plan.task == "backdrop":
            assert plan.target.background == plan.reference.background != plan.source.background
            assert plan.target.shapes == plan.source.shapes
        elif plan.task == "match":
            assert plan.target.shapes[plan.index].colour == shown.colour
        else:
            assert (plan.target.shapes[-1].kind, plan.target.shapes[-1].colour) == (shown.kind, shown.colour)


def test_words_are_known_to_the_nano_text_encoder(world: NanoPairs) -> None:
    assert {word for i in range(60) for word in world.plan(i).instruction.split()} <= set(vocabulary())


def test_every_mistake_is_a_mistake(world: NanoPairs) -> None:
    for i in range(6):
        plan, sample = world.plan(i), world[i]
        assert score_edit(plan, sample.target).success
        found = counterfactuals(plan)
        assert {"unchanged", "second picture", "half done"} <= {name for name, _ in found}
        for name, picture in found:
            assert score_edit(plan, picture).outcome == name or not score_edit(plan, picture).success
        assert not score_edit(plan, sample.more[0]).success


def test_wrong_second_pictures_ask_for_something_else(world: NanoPairs) -> None:
    plans = [world.plan(i) for i in range(60)]
    for plan, other in zip(plans, other_references(plans), strict=True):
        wrong = type(plan)(plan.id, plan.task, plan.source, plan.target, plan.instruction, plan.index, other)
        assert not set(asked_of(wrong)) & set(asked_of(plan))
        assert not np.array_equal(render(wrong).more[0], render(plan).more[0])
    with pytest.raises(ValueError, match=r"shows something else than .*; take more samples"):
        other_references(plans[:3])
