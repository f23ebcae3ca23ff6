"""Chosen examples as one figure, a column per method, as the paper's Figures 3, 4 and 7 to 14."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from editar.errors import BenchmarkError
from editar.evaluation.registry import benchmark_class
from editar.images import load_image
from editar.report.gallery import evenly
from editar.report.plots import load_pyplot, plain
from editar.runtime.files import atomic
from editar.tables.scores import Evaluation

INCHES = 1.5  # side of a picture
LINE = 0.14  # inches of a line of text
FORMATS = (".png", ".pdf", ".svg")


def draw_examples(evaluation: Evaluation, out: Path, ids: Sequence[str] = (), draws: int = 1) -> None:
    """Rows `ids` of the benchmark (six evenly spaced ones by default): source and every method's result under the
    instruction. `draws` > 1 shows that many pictures of each method, of those that made several per prompt
    (protocol controlnet++). Raises BenchmarkError for ids, draws and pictures that are not there, ImageError for
    unreadable ones."""
    pyplot = load_pyplot()
    if out.suffix not in FORMATS:
        raise BenchmarkError(f"{out}: figures are written as {', '.join(FORMATS)}")
    rows = rows_of(evaluation, ids)
    names = ["source", *(name.method for name in evaluation.methods for _ in range(draws))]
    pictures = [pictures_of(evaluation, row, draws) for row in rows]
    texts = [textwrap.wrap(plain(str(evaluation.methods[0].rows[row]["instruction"])), 22 * len(names)) for row in rows]
    heights = [INCHES + LINE * (len(text) + 1) for text in texts]
    width, height = INCHES * len(names), sum(heights) + 2 * LINE
    figure, below = pyplot.figure(figsize=(width, height)), height
    for i, row in enumerate(pictures):
        below -= heights[i]
        for j, picture in enumerate(row):
            left, side = (j + 0.02) * INCHES, 0.96 * INCHES
            axes = figure.add_axes((left / width, below / height, side / width, side / height))
            axes.imshow(picture)
            axes.set_xticks([])
            axes.set_yticks([])
            if j == 0:
                axes.set_title("\n".join(texts[i]), loc="left", fontsize=8, pad=3)
            if i == len(pictures) - 1:
                axes.set_xlabel(plain(names[j]), fontsize=8)
    with atomic(out) as partial:
        figure.savefig(partial, format=out.suffix[1:], dpi=200)
    pyplot.close(figure)


def rows_of(evaluation: Evaluation, ids: Sequence[str]) -> list[int]:
    """Indices of the rows called `ids`."""
    known = [str(row["id"]) for row in evaluation.methods[0].rows]
    if unknown := [id for id in ids if id not in known]:
        raise BenchmarkError(f"no picture {', '.join(unknown)} in {evaluation.benchmark}; the first is {known[0]}")
    return [known.index(id) for id in ids] if ids else evenly(len(known), 6)


def pictures_of(evaluation: Evaluation, row: int, draws: int) -> list[Any]:
    """Source and results of one row."""
    load = benchmark_class(evaluation.benchmark).load_result
    found: list[Any] = [np.asarray(load_image(evaluation.methods[0].rows[row]["source"]))]
    for method in evaluation.methods:
        first = str(method.rows[row]["result"])
        if draws > 1 and "/group_0/" not in first:
            raise BenchmarkError(f"{first}: one picture per prompt; several are made with protocol=controlnet++")
        found += [load(Path(first.replace("/group_0/", f"/group_{draw}/"))) for draw in range(draws)]
    return found
