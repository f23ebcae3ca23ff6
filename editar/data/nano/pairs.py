"""Nano edits with two source pictures: the instruction's "this" is what the second picture shows.

transfer   its one object goes to a named place of the first picture
match      an object of the first picture takes the colour of its one object
backdrop   the first picture's objects stand on its background

Sample i of a split is a pure function of (seed, split, i); its task is i modulo three. Words are those of the nano
world, so that its text encoder knows them.
"""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np

from editar.data.nano import scene as ns
from editar.data.nano.scene import Scene, Shape
from editar.data.nano.world import NanoWorld, Plan, cell_centre, draw_scene, free_looks

TASKS = ("transfer", "match", "backdrop")
WORDING = {
    "transfer": (
        "add this at the {place}",
        "put this at the {place}",
        "draw this at the {place}",
        "insert this at the {place}",
    ),
    "match": (
        "make the {old} this color",
        "paint the {old} this color",
        "turn the {old} to this color",
        "recolor the {old} to this color",
    ),
    "backdrop": (
        "change the background to this",
        "make the background this",
        "replace the background with this",
        "set the background to this",
    ),
}


class NanoPairs(NanoWorld):
    """`world[i]` is EditSample i of a split, with one more picture; `world.plan(i)` is the scenes behind it."""

    tasks, salt = TASKS, "nano_pairs"

    def draw(self, rng: random.Random, task: str, id: str) -> Plan | None:
        heldout = self.split == "heldout"
        kinds = ("plain", "plain", "gradient") * 2
        scene = draw_scene(rng, heldout, (*kinds[:-1], "photo"), self.counts)
        if scene is None:
            return None
        colours, shapes = free_looks(scene)
        reference = draw_scene(rng, heldout, kinds, (1,))
        if reference is None or (task == "backdrop" and reference.background == scene.background):
            return None
        shown = replace(reference.shapes[0], colour=rng.choice(colours), kind=rng.choice(shapes))
        reference = replace(reference, shapes=(shown,))
        index, words = rng.randrange(len(scene.shapes)), {}
        if task == "transfer":
            cell, index = rng.randrange(9), len(scene.shapes)
            new = Shape(shown.kind, shown.colour, *cell_centre(cell), ns.RADII[0], 0.75)
            if any(new.overlaps(other) for other in scene.shapes):
                return None
            target, words["place"] = replace(scene, shapes=(*scene.shapes, new)), ns.PLACES[cell]
        elif task == "match":
            old = scene.shapes[index]
            target, words["old"] = scene.with_shape(index, colour=shown.colour), f"{old.colour} {old.kind}"
        else:
            target, index = replace(scene, background=reference.background), -1
        return Plan(id, task, scene, target, rng.choice(WORDING[task]).format(**words), index, reference)


def asked_of(plan: Plan) -> tuple[str, ...]:
    """What the edit takes from the second picture; another picture with something else must give another result."""
    assert plan.reference is not None
    shown, background = plan.reference.shapes[0], plan.reference.background
    return {
        "transfer": (shown.kind, shown.colour), "match": (shown.colour,), "backdrop": background.names
    }[plan.task]  # fmt: skip


def other_references(plans: list[Plan], seed: int = 0) -> list[Scene]:
    """For each sample the second picture of another one of its task, which asks for something else.

    Raises ValueError where the samples hold none.
    """
    rng = np.random.default_rng(seed)
    found = []
    for plan in plans:
        asked = set(asked_of(plan))
        same_task = [other for other in plans if other.task == plan.task]
        others = [other.reference for other in same_task if not asked & set(asked_of(other)) and other.reference]
        if not others:
            raise ValueError(f"no other {plan.task} sample shows something else than {plan.id}; take more samples")
        found.append(others[int(rng.integers(len(others)))])
    return found
