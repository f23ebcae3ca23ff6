"""The nano world: deterministic, disjoint, exact, and with counterfactuals that bite."""

from __future__ import annotations

import numpy as np
import pytest

from editar.data.nano import scene as ns
from editar.data.nano.world import EDITS, TASKS, NanoWorld, counterfactuals, render
from editar.models.text import WordTokenizer


def test_a_sample_is_a_function_of_seed_and_index() -> None:
    first, second = NanoWorld("train", 64, seed=3), NanoWorld("train", 1000, seed=3)
    for i in (0, 5, 63):
        a, b = first[i], second[i]
        assert (a.id, a.instruction) == (b.id, b.instruction)
        assert np.array_equal(a.source, b.source)
        assert np.array_equal(a.target, b.target)
    assert any(NanoWorld("train", 8, seed=4)[i].instruction != first[i].instruction for i in range(8))


def test_splits_share_no_scene() -> None:
    def keys(split: str) -> set[str]:
        scenes = [s for i in range(400) for p in [NanoWorld(split, 400).plan(i)] for s in (p.source, p.target)]
        assert all(scene.heldout == (split == "heldout") for scene in scenes)
        return {repr(scene) for scene in scenes}

    assert not keys("train") & keys("heldout")


def test_a_pixel_of_jitter_does_not_change_the_split() -> None:
    scene = NanoWorld("heldout", 8).plan(0).source
    shape = scene.shapes[0]
    moved = scene.with_shape(0, x=shape.x + (1 if shape.x < 32 else -1), near=0.5, radius=shape.radius + 1)
    assert moved.heldout == scene.heldout


@pytest.mark.parametrize("name", list(ns.PHOTOS))
def test_splits_share_no_photograph_pixel(name: str) -> None:
    train, heldout = (ns.photo_corners(name, split) for split in (False, True))
    assert max(train[0]) + ns.SIZE <= min(heldout[0])
    assert max(heldout[0]) + ns.SIZE <= ns.photo(name).shape[1]


def test_tasks_cycle_and_masks_are_exact() -> None:
    world = NanoWorld("heldout", 80)
    for i in range(80):
        sample = world[i]
        assert sample.task == TASKS[i % len(TASKS)]
        assert sample.source.shape == sample.target.shape == (64, 64, 3)
        changed = (sample.source != sample.target).any(2)
        if sample.task in EDITS:
            assert np.array_equal(sample.mask, changed)
            assert 0 < changed.mean() < 1
            assert sample.source_caption
        else:
            assert sample.mask.all()
        assert sample.target_caption


def test_conditions_show_the_scene() -> None:
    world = NanoWorld("train", 80)
    canny, depth, labels = (world[i] for i in (5, 6, 7))
    assert set(np.unique(canny.source)) == {0, 255}
    shape = world.plan(6).target.shapes[0]
    assert depth.source[shape.y, shape.x, 0] == round(shape.near * 255)
    shape = world.plan(7).target.shapes[0]
    assert labels.source[shape.y, shape.x].tolist() == ns.PALETTE[ns.KINDS.index(shape.kind) + 1].tolist()


def test_every_instruction_is_known_and_fits() -> None:
    tokenizer = WordTokenizer(24)
    world = NanoWorld("train", 2000)
    tokens, cut = tokenizer([world.plan(i).instruction for i in range(2000)])
    assert cut == 0
    assert not (tokens.ids == 2).any()


def test_shapes_of_a_scene_differ_and_do_not_touch() -> None:
    world = NanoWorld("train", 200)
    for i in range(200):
        for scene in (world.plan(i).source, world.plan(i).target):
            shapes = scene.shapes
            assert len({s.kind for s in shapes}) == len({s.colour for s in shapes}) == len(shapes)
            assert not any(a.overlaps(b) for k, a in enumerate(shapes) for b in shapes[k + 1 :])


@pytest.mark.parametrize(
    ("task", "needed"),
    [
        ("recolour", {"unchanged", "half done", "wrong colour", "wrong shape", "missing object"}),
        ("replace", {"unchanged", "half done", "wrong colour", "wrong shape", "missing object"}),
        ("remove", {"unchanged", "half done", "wrong colour", "wrong shape"}),
        ("add", {"unchanged", "half done", "wrong colour", "wrong shape", "wrong place", "damage"}),
        ("background", {"unchanged", "half done", "wrong background", "damage"}),
        ("canny", {"unchanged", "wrong colour", "wrong shape", "wrong place", "wrong background", "missing object"}),
        ("depth", {"unchanged", "wrong colour", "wrong shape", "wrong place", "wrong background", "missing object"}),
        ("segmentation", {"unchanged", "wrong colour", "wrong shape", "wrong place", "wrong background"}),
    ],
)
def test_counterfactuals_cover_the_mistakes(task: str, needed: set[str]) -> None:
    plan = NanoWorld("heldout", 80).plan(TASKS.index(task) + 8)
    sample = render(plan)
    found = counterfactuals(plan)
    assert needed <= {name for name, _ in found}
    assert all(not np.array_equal(picture, sample.target) for _, picture in found)


def test_bystanders_and_wrong_objects_where_there_are_several() -> None:
    world = NanoWorld("heldout", 400)
    plan = next(p for i in range(0, 400, 8) for p in [world.plan(i)] if len(p.source.shapes) > 1)
    assert {"wrong object", "damage"} <= {name for name, _ in counterfactuals(plan)}


def test_how_many_shapes_a_scene_has_can_be_chosen() -> None:
    easy = NanoWorld("train", 80, counts=[1])
    assert {len(easy.plan(i).source.shapes) for i in range(80)} == {1}
    hard = NanoWorld("train", 80, counts=[2, 3, 3])
    assert {len(hard.plan(i).source.shapes) for i in range(80)} == {2, 3}
    assert {len(NanoWorld("train", 80).plan(i).source.shapes) for i in range(80)} == {1, 2, 3}
