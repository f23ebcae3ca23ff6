"""The nano world: eight editing and translation tasks with exact ground truth, by (seed, index).

Sample i of a split is a pure function of (seed, split, i); its task is i modulo eight. Training and
held-out samples share no scene (`Scene.heldout`) and no photograph pixel. Translations use plain and
gradient backgrounds only: a photograph is not determined by edges and a caption.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from editar.conditions import canny_condition, colour_labels, depth_condition
from editar.config.data import SHAPE_COUNTS
from editar.data.nano import scene as ns
from editar.data.nano.scene import Background, Scene, Shape
from editar.data.sample import EditSample
from editar.images import batch_to_tensor, to_uint8

EDITS = ("recolour", "replace", "remove", "add", "background")
TRANSLATIONS = ("canny", "depth", "segmentation")
TASKS = EDITS + TRANSLATIONS

WORDING = {
    "recolour": (
        "make the {old} {new_colour}",
        "change the color of the {old} to {new_colour}",
        "turn the {old} {new_colour}",
        "paint the {old} {new_colour}",
        "recolor the {old} to {new_colour}",
    ),
    "replace": (
        "replace the {old} with a {new}",
        "swap the {old} for a {new}",
        "turn the {old} into a {new}",
        "change the {old} to a {new}",
    ),
    "remove": (
        "remove the {old}",
        "delete the {old}",
        "erase the {old}",
        "take away the {old}",
        "get rid of the {old}",
    ),
    "add": (
        "add a {new} at the {place}",
        "put a {new} at the {place}",
        "draw a {new} at the {place}",
        "insert a {new} at the {place}",
    ),
    "background": (
        "change the background to {background}",
        "make the background {background}",
        "replace the background with {background}",
        "set the background to {background}",
    ),
    "canny": ("given the canny edges, generate {caption}", "from these edges draw {caption}"),
    "depth": ("given the depth, generate {caption}", "from this depth map draw {caption}"),
    "segmentation": ("given the segmentation mask, generate {caption}", "from this segmentation draw {caption}"),
}


@dataclass(frozen=True)
class Plan:
    """An edit as scenes, before anything is drawn. `index` is the edited shape in source (or, for
    `add` and `transfer`, in target); -1 where no single shape is edited. `reference` is a second picture's scene."""

    id: str
    task: str
    source: Scene
    target: Scene
    instruction: str
    index: int = -1
    reference: Scene | None = None


class NanoWorld(Dataset[EditSample]):
    """`world[i]` is EditSample i of a split; `world.plan(i)` is the scenes behind it."""

    tasks: tuple[str, ...] = TASKS
    salt = "nano"

    def __init__(self, split: str, samples: int, seed: int = 0, counts: Sequence[int] = SHAPE_COUNTS) -> None:
        if split not in ("train", "heldout"):
            raise ValueError(f"split {split!r} is not train or heldout")
        self.split, self.samples, self.seed, self.counts = split, samples, seed, tuple(counts)

    def __len__(self) -> int:
        return self.samples

    def plan(self, index: int) -> Plan:
        if not 0 <= index < self.samples:
            raise IndexError(index)
        rng = random.Random(f"{self.salt}/{self.seed}/{self.split}/{index}")
        task = self.tasks[index % len(self.tasks)]
        heldout = self.split == "heldout"
        while True:
            plan = self.draw(rng, task, f"{self.split}-{index:06d}")
            if plan is not None and plan.source.heldout == heldout and plan.target.heldout == heldout:
                return plan

    def draw(self, rng: random.Random, task: str, id: str) -> Plan | None:
        """A plan of the task, None where the drawn shapes do not fit; scenes of the other split are drawn again."""
        return _draw_plan(rng, task, id, self.split == "heldout", self.counts)

    def __getitem__(self, index: int) -> EditSample:
        return render(self.plan(index))


# --- drawing a plan -------------------------------------------------------------------------------


def draw_background_of(rng: random.Random, heldout: bool, kinds: tuple[str, ...]) -> Background:
    kind = rng.choice(kinds)
    if kind == "photo":
        name = rng.choice(tuple(ns.PHOTOS))
        xs, ys = ns.photo_corners(name, heldout)
        return Background("photo", (name,), (rng.choice(xs), rng.choice(ys)))
    names = rng.sample(tuple(ns.BACKGROUNDS), 1 if kind == "plain" else 2)
    return Background(kind, tuple(names))


def draw_scene(rng: random.Random, heldout: bool, kinds: tuple[str, ...], counts: tuple[int, ...]) -> Scene | None:
    """1-3 shapes that differ in colour and in kind and do not touch; None when they do."""
    count = rng.choice(counts)
    names = rng.sample(ns.KINDS, count)
    colours = rng.sample(tuple(ns.COLOURS), count)
    nears = rng.sample((0.5, 0.6, 0.7, 0.8, 0.9, 1.0), count)
    shapes: list[Shape] = []
    for kind, colour, near in zip(names, colours, nears, strict=True):
        shape = Shape(kind, colour, rng.choice(ns.POSITIONS), rng.choice(ns.POSITIONS), rng.choice(ns.RADII), near)
        if any(shape.overlaps(other) for other in shapes):
            return None
        shapes.append(shape)
    return Scene(tuple(shapes), draw_background_of(rng, heldout, kinds))


def _draw_plan(rng: random.Random, task: str, id: str, heldout: bool, counts: tuple[int, ...]) -> Plan | None:
    kinds = ("plain", "plain", "gradient") * 2
    if task in EDITS:
        kinds = (*kinds[:-1], "photo")
    scene = draw_scene(rng, heldout, kinds, counts)
    if scene is None:
        return None
    index = rng.randrange(len(scene.shapes))
    shape = scene.shapes[index]
    free_colours, free_kinds = free_looks(scene)
    words = {"old": f"{shape.colour} {shape.kind}", "caption": scene.caption}
    target = scene
    if task == "recolour":
        words["new_colour"] = rng.choice(free_colours)
        target = scene.with_shape(index, colour=words["new_colour"])
    elif task == "replace":
        colour = rng.choice((shape.colour, rng.choice(free_colours)))
        target = scene.with_shape(index, kind=rng.choice(free_kinds), colour=colour)
        words["new"] = f"{colour} {target.shapes[index].kind}"
    elif task == "remove":
        target = scene.without(index)
    elif task == "add":
        cell = rng.randrange(9)
        new = Shape(rng.choice(free_kinds), rng.choice(free_colours), *cell_centre(cell), ns.RADII[0], 0.75)
        if any(new.overlaps(other) for other in scene.shapes):
            return None
        target, index = replace(scene, shapes=(*scene.shapes, new)), len(scene.shapes)
        words |= {"new": f"{new.colour} {new.kind}", "place": ns.PLACES[cell]}
    elif task == "background":
        background = draw_background_of(rng, heldout, ("plain", "gradient"))
        if background == scene.background:
            return None
        target, index = replace(scene, background=background), -1
        words["background"] = background.phrase
    else:
        index = -1
    return Plan(id, task, scene, target, rng.choice(WORDING[task]).format(**words), index)


def free_looks(scene: Scene) -> tuple[list[str], list[str]]:
    """Colours and kinds that no shape of the scene has."""
    colours = [name for name in ns.COLOURS if name not in {shape.colour for shape in scene.shapes}]
    return colours, [name for name in ns.KINDS if name not in {shape.kind for shape in scene.shapes}]


def cell_centre(cell: int) -> tuple[int, int]:
    return ns.CENTRES[cell % 3], ns.CENTRES[cell // 3]


# --- drawing pictures -----------------------------------------------------------------------------


def draw_source(plan: Plan) -> np.ndarray:
    """What the model sees, (64, 64, 3) uint8: the scene, or its edges, depth or label colours."""
    if plan.task == "canny":
        with torch.no_grad():
            return to_uint8(canny_condition(batch_to_tensor(ns.draw(plan.target)[None])))[0]
    if plan.task == "depth":
        return depth_condition(ns.draw_depth(plan.target))
    if plan.task == "segmentation":
        return colour_labels(ns.draw_labels(plan.target), ns.PALETTE)
    return ns.draw(plan.source)


def render(plan: Plan) -> EditSample:
    source, target = draw_source(plan), ns.draw(plan.target)
    translation = plan.task in TRANSLATIONS
    mask = np.ones(source.shape[:2], bool) if translation else (source != target).any(axis=2)
    captions = ("" if translation else plan.source.caption, plan.target.caption)
    more = () if plan.reference is None else (ns.draw(plan.reference),)
    return EditSample(plan.id, plan.task, source, target, plan.instruction, mask, *captions, more)


# --- counterfactuals ------------------------------------------------------------------------------


def counterfactuals(plan: Plan) -> list[tuple[str, np.ndarray]]:
    """Everything a wrong answer could look like, as (what went wrong, (64, 64, 3) uint8).

    An edit counts as successful only if it is nearer to the true target than to each of these
    (`editar.evaluation.nano.scoring`). `half done` is the mean of source and target, so an answer has to
    go three quarters of the way; `damage` changes something the instruction did not name.
    """
    target, index = plan.target, plan.index
    source_picture, target_picture = draw_source(plan), ns.draw(target)
    half = ((source_picture.astype(np.uint16) + target_picture) // 2).astype(np.uint8)
    wrong: list[tuple[str, Scene]] = []
    if plan.task == "remove":
        wrong += _other_looks(plan.source, index)
        wrong += [("wrong object", plan.source.without(i)) for i in range(len(plan.source.shapes)) if i != index]
    elif index >= 0:
        wrong += [*_other_looks(target, index), ("missing object", target.without(index))]
    if plan.task in ("recolour", "replace", "match"):
        new = target.shapes[index]
        for i in range(len(plan.source.shapes)):
            if i != index:
                changes = {"colour": new.colour} | ({"kind": new.kind} if plan.task == "replace" else {})
                wrong.append(("wrong object", plan.source.with_shape(i, **changes)))
    if plan.task in ("add", "transfer"):
        wrong += _other_places(target, index)
    if plan.task in ("background", "backdrop") or plan.task in TRANSLATIONS:
        wrong += _other_backgrounds(target)
    if plan.task in TRANSLATIONS:
        for i in range(len(target.shapes)):
            wrong += [*_other_looks(target, i), *_other_places(target, i), ("missing object", target.without(i))]
    else:
        for i in range(len(target.shapes)):
            if plan.task == "remove" or i != index:
                harmed = [target.without(i), *(scene for _, scene in _other_looks(target, i))]
                wrong += [("damage", scene) for scene in harmed]
    wrong += _extra_objects(target)
    pictures = [("unchanged", source_picture), ("half done", half)]
    if plan.reference is not None:
        pictures.append(("second picture", ns.draw(plan.reference)))
    pictures += [(name, ns.draw(scene)) for name, scene in wrong]
    return [(name, picture) for name, picture in pictures if not np.array_equal(picture, target_picture)]


def _other_looks(scene: Scene, index: int) -> list[tuple[str, Scene]]:
    shape = scene.shapes[index]
    colours = [("wrong colour", scene.with_shape(index, colour=name)) for name in ns.COLOURS if name != shape.colour]
    return colours + [("wrong shape", scene.with_shape(index, kind=name)) for name in ns.KINDS if name != shape.kind]


def _other_places(scene: Scene, index: int) -> list[tuple[str, Scene]]:
    shape, others = scene.shapes[index], scene.without(index).shapes
    places = (cell_centre(cell) for cell in range(9) if cell != shape.cell)
    moves: list[dict[str, Any]] = [{"x": x, "y": y} for x, y in places]
    free = [at for at in moves if not any(replace(shape, **at).overlaps(other) for other in others)]
    return [("wrong place", scene.with_shape(index, **at)) for at in free]


def _extra_objects(scene: Scene) -> list[tuple[str, Scene]]:
    """A shape nobody asked for, of any colour at any free place. Circles stand for the other full
    shapes; a star covers so little that a picture with one is nearer to none than to a circle."""
    places = [cell_centre(cell) for cell in range(9)]
    extra = [
        Shape(kind, name, *at, ns.RADII[0], 0.75) for at in places for name in ns.COLOURS for kind in ("circle", "star")
    ]
    free = [shape for shape in extra if not any(shape.overlaps(other) for other in scene.shapes)]
    return [("extra object", replace(scene, shapes=(*scene.shapes, shape))) for shape in free]


def _other_backgrounds(scene: Scene) -> list[tuple[str, Scene]]:
    return [
        ("wrong background", replace(scene, background=Background("plain", (name,))))
        for name in ns.BACKGROUNDS
        if (name,) != scene.background.names
    ]


def vocabulary() -> list[str]:
    """Every word the nano world can say, sorted: what its word-level tokenizer knows."""
    texts = [template for templates in WORDING.values() for template in templates]
    texts += [*ns.COLOURS, *ns.KINDS, *ns.BACKGROUNDS, *ns.PLACES]
    texts += ["a and on background nothing a to gradient a photo of a", *ns.PHOTOS]
    words = " ".join(texts).replace(",", " ").split()
    return sorted({word for word in words if not word.startswith("{")})
