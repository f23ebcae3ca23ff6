"""What a report's browsable grid shows: every entry's texts and scores, and small pictures of some."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from editar.errors import BenchmarkError, ImageError
from editar.evaluation.registry import benchmark_class
from editar.images import load_image
from editar.report.plots import picture_uri
from editar.tables.render import strict_json
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
        columns = evaluation.row_columns()
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
                    "scores": [strict_json([round(m.rows[i][c.name], 4) for c in columns]) for m in evaluation.methods],
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
        rows = [method.rows[i] for method in self.evaluation.methods]
        return {
            "source": self._uri(thumbnail_uri, load_image, rows[0]["source"]),
            "target": self._uri(thumbnail_uri, load_image, rows[0]["target"]) if rows[0].get("target") else None,
            "results": [self._uri(thumbnail_uri, self.load_result, Path(row["result"])) for row in rows],
            "outline": self._uri(outline_uri, _load_mask, rows[0]["mask"]) if rows[0].get("mask") else None,
        }

    def _uri(self, draw: Callable[[Any], str], load: Callable[[Any], Any], file: str | Path) -> str | None:
        try:
            return draw(load(file))
        except (BenchmarkError, ImageError) as error:
            self.failures.append(str(error))
            return None


def _load_mask(file: str) -> np.ndarray:
    """(H, W) bool."""
    return np.asarray(load_image(file).convert("L")) > 127


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
