"""report.html of `make demo`: one self-contained file a person looks at."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from editar.data.sample import EditSample
from editar.report.plots import Plot, bars, legend_above, new_figure, page_template, picture_uri, to_plot
from editar.runtime.files import write_text
from editar.tables.scores import Evaluation
from editar.tables.statistics import Mean


def write_demo_page(
    path: Path,
    title: str,
    intro: str,
    evaluation: Evaluation,
    samples: list[EditSample],
    outputs: dict[str, list[np.ndarray]],
    drawn: list[tuple[str, np.ndarray]],
    strip: str,
    plots: list[Plot],
    most: int = 40,
) -> None:
    """First what a person wants to see: six edits of the first of `outputs`, pictures `drawn` from words alone, the
    success table of all methods, the `strip` of a model that learns (a picture's URI). Then `plots` (from the
    functions below) and more edits.

    `outputs` are those of some methods by name, (S, S, 3) uint8 each, in the order of `samples`.
    """
    rows = {method.method: method.rows for method in evaluation.methods}
    examples = [
        {
            "source": picture_uri(sample.source),
            "target": picture_uri(sample.target),
            "instruction": sample.instruction,
            "task": sample.task,
            "outputs": [
                {"data": picture_uri(pictures[i]), "outcome": rows[name][i]["outcome"]}
                | {"success": rows[name][i]["success"] > 0}
                for name, pictures in outputs.items()
            ],
        }
        for i, sample in enumerate(samples[:most])
    ]
    html = page_template("demo_page.html.j2").render(
        title=title, intro=intro, columns=list(rows), rows=_rows(evaluation), plots=plots,
        models=list(outputs), examples=examples, strip=strip, drawn=[(words, picture_uri(p)) for words, p in drawn],
    )  # fmt: skip
    write_text(path, html)


def _rows(evaluation: Evaluation) -> list[dict[str, Any]]:
    """Success by task and over all, then the background's PSNR."""
    by_task = [evaluation.means_by(method, "task") for method in evaluation.methods]
    overall = [evaluation.means(method) for method in evaluation.methods]
    rows = [{"task": task, "cells": [_cell(found[task]["success"], "%") for found in by_task]} for task in by_task[0]]
    rows.append({"task": "all tasks", "cells": [_cell(found["success"], "%") for found in overall]})
    return [*rows, {"task": "background PSNR", "cells": [_cell(m["background_psnr"], "dB") for m in overall]}]


def _cell(mean: Mean, unit: str) -> dict[str, str]:
    if math.isnan(mean.mean):
        return {"main": "-", "rest": ""}
    return {"main": f"{mean.mean:.1f} {unit}", "rest": f"[{mean.low:.0f}, {mean.high:.0f}] n={mean.count}"}


def task_bars(evaluation: Evaluation, names: tuple[str, ...]) -> Plot:
    """Success per task, one bar per method of `names`."""
    figure, (axes,) = new_figure()
    found = {m.method: evaluation.means_by(m, "task") for m in evaluation.methods if m.method in names}
    tasks = list(next(iter(found.values())))
    means = {name: [by_task[task]["success"] for task in tasks] for name, by_task in found.items()}
    bars(axes, tasks, {name: [(mean.mean, mean.low, mean.high) for mean in row] for name, row in means.items()})
    axes.set_ylabel("success, %")
    axes.set_ylim(0, 105)
    legend_above(figure, axes)
    return to_plot(figure, "Success per task", "Whiskers are 95 % intervals.")


def loss_curves(metrics: dict[str, Path], title: str, keys: tuple[str, ...]) -> Plot:
    """Curves of `keys` from metrics.jsonl files, by name of the run."""
    figure, (axes,) = new_figure()
    for name, path in metrics.items():
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        for key in keys:
            points = [(row["step"], row[key]) for row in rows if key in row]
            if points:
                axes.plot(*zip(*points, strict=True), label=f"{name}: {key}")
    axes.set_xlabel("step")
    axes.legend()
    return to_plot(figure, title, "From metrics.jsonl of the run.")


def sweep_curve(sweep: Evaluation, scales: tuple[float, ...]) -> Plot:
    """Success and background PSNR against the guidance scale (Figure 6 of the paper, on the nano world); method i
    of `sweep` was sampled at `scales[i]`."""
    figure, panels = new_figure(len(sweep.columns))
    means = [sweep.means(method) for method in sweep.methods]
    for axes, column in zip(panels, sweep.columns, strict=True):
        axes.plot(scales, [found[column.name].mean for found in means], "o-")
        axes.set_ylabel(f"{column.title}, {column.unit}")
        axes.set_xlabel("cfg_scale")
    count = len(sweep.methods[0].rows)
    return to_plot(figure, "Guidance sweep", f"The reference checkpoint on {count} held-out samples per point.")
