"""What a report's browsable grid shows: every entry's texts and scores, and small pictures of some."""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from editar.errors import BenchmarkError, ImageError
from editar.evaluation.registry import benchmark_class
from editar.images import load_image
from editar.report.plots import picture_uri
from editar.tables.scores import Evaluation

THUMBNAIL = 192
OUTLINE = (255, 40, 160)
Picture = np.ndarray | Image.Image


class Gallery:
    """`data` is the grid as JSON values, `notes` say what it lacks."""

    def __init__(self, evaluation: Evaluation, pictures: int) -> None:
        self.evaluation, self.notes = evaluation, list[str]()
        self.failures: list[str] = []
        self.load_result = benchmark_class(evaluation.benchmark).load_result
        first = evaluation.methods[0]
        chosen = set(evenly(len(first.rows), pictures))
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

    def _pictures(self, i: int) -> dict[str, Any]:
        row = self.evaluation.methods[0].rows[i]
        return {
            "source": self._thumbnail(partial(load_image, row["source"])),
            "results": [
                self._thumbnail(partial(self.load_result, Path(method.rows[i]["result"])))
                for method in self.evaluation.methods
            ],
            "outline": self._outline(row.get("mask")),
        }

    def _outline(self, mask: str | None) -> str | None:
        try:
            return None if mask is None else outline_uri(np.asarray(load_image(mask).convert("L")) > 127)
        except ImageError as error:
            self.failures.append(str(error))
            return None

    def _thumbnail(self, open: Callable[[], Picture]) -> str | None:
        try:
            return thumbnail_uri(open())
        except (BenchmarkError, ImageError) as error:
            self.failures.append(str(error))
            return None


def evenly(count: int, most: int) -> list[int]:
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
