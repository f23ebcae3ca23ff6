"""report.html: one self-contained file a person looks at."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from editar.data.sample import EditSample
from editar.evaluation.nano.scoring import Summary, Verdict
from editar.report.plots import Plot, bars, finish, legend_above, new_figure, picture_uri
from editar.runtime.files import write_text


@dataclass
class Column:
    """One model in the picture table: its outputs (S, S, 3) uint8 and their verdicts, in sample order."""

    name: str
    outputs: list[np.ndarray]
    verdicts: list[Verdict]


def write_report(
    path: Path,
    title: str,
    intro: str,
    summaries: dict[str, Summary],
    samples: list[EditSample],
    columns: list[Column],
    plots: list[Plot],
    most: int = 40,
) -> None:
    """Success table of `summaries`, `plots` (from the functions below), pictures of `columns`."""
    from jinja2 import Environment, FileSystemLoader

    environment = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True)
    template = environment.get_template("demo_page.html.j2")
    examples = [
        {
            "source": picture_uri(sample.source),
            "target": picture_uri(sample.target),
            "instruction": sample.instruction,
            "task": sample.task,
            "outputs": [
                {
                    "data": picture_uri(column.outputs[i]),
                    "success": column.verdicts[i].success,
                    "outcome": column.verdicts[i].outcome,
                }
                for column in columns
            ],
        }
        for i, sample in enumerate(samples[:most])
    ]
    html = template.render(
        title=title, intro=intro, columns=list(summaries), rows=_rows(summaries), plots=plots,
        models=[column.name for column in columns], examples=examples,
    )  # fmt: skip
    write_text(path, html)


def _rows(summaries: dict[str, Summary]) -> list[dict[str, Any]]:
    tasks = list(next(iter(summaries.values())).tasks)
    rows: list[dict[str, Any]] = []
    for task in [*tasks, "all tasks"]:
        cells = []
        for summary in summaries.values():
            rate = summary.overall if task == "all tasks" else summary.tasks[task]
            low, high = rate.interval
            cells.append({"main": f"{rate.percent:.1f} %", "rest": f"[{low:.0f}, {high:.0f}] n={rate.count}"})
        rows.append({"task": task, "cells": cells})
    cells = [{"main": f"{summary.background_psnr:.1f} dB", "rest": ""} for summary in summaries.values()]
    rows.append({"task": "background PSNR", "cells": cells})
    return rows


def task_bars(summaries: dict[str, Summary]) -> Plot:
    """Success per task, one bar per system."""
    figure, (axes,) = new_figure()
    tasks = list(next(iter(summaries.values())).tasks)
    rates = {name: [summary.tasks[task] for task in tasks] for name, summary in summaries.items()}
    bars(axes, tasks, {name: [(rate.percent, *rate.interval) for rate in row] for name, row in rates.items()})
    axes.set_ylabel("success, %")
    axes.set_ylim(0, 105)
    legend_above(figure, axes)
    return finish(figure, "Success per task", "Whiskers are 95 % intervals.")


def loss_curves(metrics: dict[str, Path], title: str, keys: tuple[str, ...]) -> Plot:
    """Curves of `keys` from metrics.jsonl files, by name of the run."""
    figure, (axes,) = new_figure()
    for name, path in metrics.items():
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        for key in keys:
            points = [(row["step"], row[key]) for row in rows if key in row]
            if points:
                axes.plot(*zip(*points, strict=True), label=f"{name}: {key}")
    axes.set_xlabel("step")
    axes.legend()
    return finish(figure, title, "From metrics.jsonl of the run.")


def sweep_curve(points: dict[float, Summary], count: int) -> Plot:
    """Success and background PSNR against the guidance scale (Figure 6 of the paper, on the nano world)."""
    figure, (success, background) = new_figure(2)
    scales = sorted(points)
    success.plot(scales, [points[s].overall.percent for s in scales], "o-")
    success.set_ylabel("success, %")
    background.plot(scales, [points[s].background_psnr for s in scales], "o-")
    background.set_ylabel("background PSNR, dB")
    for axes in (success, background):
        axes.set_xlabel("cfg_scale")
    return finish(figure, "Guidance sweep", f"The reference checkpoint on {count} held-out samples per point.")
