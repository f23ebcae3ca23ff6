"""What a report's browsable grid shows: every entry's texts and scores, and small pictures of some."""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from editar.data.nano.world import NanoWorld, render
from editar.errors import BenchmarkError, ImageError
from editar.evaluation.pie_bench.dataset import load_items, load_result
from editar.images import load_image
from editar.report.plots import picture_uri
from editar.tables.scores import Evaluation, MethodScores

THUMBNAIL = 192
OUTLINE = (255, 40, 160)
Picture = np.ndarray | Image.Image


class Gallery:
    """`data` is the grid as JSON values, `notes` say what it lacks."""

    def __init__(self, evaluation: Evaluation, pictures: int) -> None:
        self.evaluation, self.notes = evaluation, list[str]()
        self.failures: list[str] = []
        self.source, self.mask = self._openers()
        first = evaluation.methods[0]
        chosen = set(spread(len(first.rows), pictures))
        if len(chosen) < len(first.rows):
            self.notes.append(f"Pictures of {len(chosen)} of {len(first.rows)} entries; --pictures embeds more.")
        with ThreadPoolExecutor() as pool:
            shown = dict(zip(chosen, pool.map(self._pictures, chosen), strict=True))
        whole = {name for method in evaluation.methods for name in method.whole}
        columns = [column for column in evaluation.columns if column.name not in whole]
        names = {title: list(dict.fromkeys(groups)) for title, groups in first.groups.items()}
        self.data: dict[str, Any] = {
            "methods": [method.method for method in evaluation.methods],
            "columns": [{"title": c.title, "unit": c.unit, "higher": c.better == "higher"} for c in columns],
            "groups": [{"title": title, "names": found} for title, found in names.items()],
            "entries": [
                {
                    "id": str(row["id"]),
                    "text": str(row["instruction"]),
                    "groups": [found.index(first.groups[title][i]) for title, found in names.items()],
                    "scores": [[_number(m.rows[i][c.name]) for c in columns] for m in evaluation.methods],
                    "pictures": shown.get(i),
                }
                for i, row in enumerate(first.rows)
            ],
        }
        if self.failures:
            self.notes.append(
                f"{len(self.failures)} pictures could not be opened, first: {self.failures[0]}. Relative paths in "
                "scores.json start where editar.eval ran; run the report there."
            )

    def _openers(self) -> tuple[Callable[[int], Picture], Callable[[int], np.ndarray | None]]:
        """By row: the source picture and the mask of what is to be edited, where the benchmark has one."""
        rows = self.evaluation.methods[0].rows
        if self.evaluation.benchmark == "nano":
            made = self.evaluation.methods[0].generated_with or {}
            world = NanoWorld("heldout", len(rows), made["data_seed"])
            return lambda i: render(world.plan(i)).source, lambda i: render(world.plan(i)).mask
        masks: dict[str, Callable[[], np.ndarray]] = {}
        if self.evaluation.benchmark == "pie_bench":
            try:
                masks = {item.id: item.mask for item in load_items(self.evaluation.root)}
            except BenchmarkError as error:
                self.notes.append(f"No mask outlines: {error}")
        ids = [str(row["id"]) for row in rows]
        return lambda i: load_image(rows[i]["source"]), lambda i: masks[ids[i]]() if ids[i] in masks else None

    def _pictures(self, i: int) -> dict[str, Any]:
        mask = self.mask(i)
        return {
            "source": self._thumbnail(lambda: self.source(i)),
            "results": [self._thumbnail(lambda m=method: self._result(m, i)) for method in self.evaluation.methods],  # type: ignore[misc]
            "outline": None if mask is None else outline_uri(mask),
        }

    def _result(self, method: MethodScores, i: int) -> Picture:
        file = Path(method.rows[i]["result"])
        return load_result(file) if self.evaluation.benchmark == "pie_bench" else load_image(file)

    def _thumbnail(self, open: Callable[[], Picture]) -> str | None:
        try:
            return thumbnail_uri(open())
        except (BenchmarkError, ImageError) as error:
            self.failures.append(str(error))
            return None


def spread(count: int, most: int) -> list[int]:
    """At most `most` of `count` indices, evenly spaced."""
    return list(range(count)) if most >= count else [i * count // most for i in range(most)]


def thumbnail_uri(picture: Picture) -> str:
    """WebP, the long side at most THUMBNAIL; smaller pictures keep every pixel."""
    image = Image.fromarray(picture) if isinstance(picture, np.ndarray) else picture
    if max(image.size) <= THUMBNAIL:
        return picture_uri(image, "WEBP", lossless=True)
    image.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS)
    return picture_uri(image, "WEBP", quality=80)


def outline_uri(mask: np.ndarray) -> str:
    """The border of a mask (S, S) as a transparent PNG. PIE-Bench's evaluator always counts the
    outermost pixels as edited; they are not drawn."""
    inner = Image.fromarray(mask[1:-1, 1:-1])
    small = np.pad(np.asarray(inner.resize((THUMBNAIL - 4, THUMBNAIL - 4), Image.Resampling.NEAREST)), 2)
    core = small.copy()
    for axis in (0, 1):
        for step in (1, 2):
            core &= np.roll(small, step, axis) & np.roll(small, -step, axis)
    picture = Image.fromarray((small & ~core).astype(np.uint8), mode="P")
    picture.putpalette((*OUTLINE, *OUTLINE))
    return picture_uri(picture, "PNG", transparency=0, bits=1, optimize=True)


def _number(value: float) -> float | str | None:
    """JSON knows neither NaN nor infinity."""
    if math.isnan(value):
        return None
    return round(value, 4) if math.isfinite(value) else str(value)
