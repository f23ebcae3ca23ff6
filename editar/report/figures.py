"""Plots of one evaluation: bars per group, distributions, and what changes with guidance or weights."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from editar.report.plots import Plot, Point, bars, legend_above, new_figure, plain, to_plot, whiskers
from editar.tables.render import ARROWS
from editar.tables.scores import Column, Evaluation, MethodScores
from editar.tables.statistics import Mean

BINS = 24


def group_bars(evaluation: Evaluation, title: str) -> list[Plot]:
    """A plot per column: the methods' means in each group of `title`, with 95 % intervals."""
    by_method = {method.method: evaluation.means_by(method, title) for method in evaluation.methods}
    every = list(next(iter(by_method.values())))
    plots = []
    for column in evaluation.row_columns():
        groups = [group for group in every if any(found[group][column.name].count for found in by_method.values())]
        if not groups:
            continue
        figure, (axes,) = new_figure()
        series = {name: [_point(found[group][column.name]) for group in groups] for name, found in by_method.items()}
        bars(axes, groups, series)
        axes.set_ylabel(_axis(column))
        axes.tick_params(axis="x", rotation=20 if len(groups) > 5 else 0)
        legend_above(figure, axes)
        undefined = [group for group in every if group not in groups]
        note = f" Undefined throughout: {', '.join(undefined)}." if undefined else ""
        plots.append(to_plot(figure, f"{column.title} by {title}", f"Whiskers are 95 % intervals.{note}"))
    return plots


def distributions(evaluation: Evaluation) -> Plot | None:
    """Histograms per column, methods over each other; None where there is nothing to draw."""
    values = {
        column: [_finite([row[column.name] for row in method.rows]) for method in evaluation.methods]
        for column in evaluation.row_columns()
    }
    drawn = {column: found for column, found in values.items() if len(np.unique(np.concatenate(found))) > 2}
    if not drawn:
        return None
    figure, panels = new_figure(len(drawn))
    for axes, (column, found) in zip(panels, drawn.items(), strict=True):
        edges = np.histogram_bin_edges(np.concatenate(found), BINS)
        for i, (method, numbers) in enumerate(zip(evaluation.methods, found, strict=True)):
            axes.hist(numbers, edges, color=f"C{i}", histtype="stepfilled", alpha=0.15)
            axes.hist(numbers, edges, color=f"C{i}", histtype="step", linewidth=1.5, label=plain(method.method))
        axes.yaxis.get_major_locator().set_params(integer=True)
        axes.set_title(column.title, fontsize=10)
        axes.set_xlabel(_axis(column), fontsize=9)
    panels[0].set_ylabel("pictures")
    legend_above(figure, panels[0])
    left_out = sum(len(method.rows) * len(drawn) for method in evaluation.methods)
    left_out -= sum(len(numbers) for found in drawn.values() for numbers in found)
    note = f" {left_out} undefined or infinite values are left out." if left_out else ""
    return to_plot(figure, "Score distributions", f"Pictures per value of each score.{note}")


def guidance_sweeps(evaluation: Evaluation) -> list[Plot]:
    """As Figure 6: every column against cfg_scale, a line per checkpoint; [] unless one has several scales."""
    lines = [line for line in _alike(evaluation, "cfg_scale") if len({_scale(method) for method in line}) > 1]
    if not lines:
        return []
    figure, panels = new_figure(len(evaluation.columns))
    for line in lines:
        line, name = sorted(line, key=_scale), f"weights {_weights(line[0])[:8]}"
        _draw_means(panels, evaluation, line, [_scale(method) for method in line], fmt="o-", capsize=2, label=name)
    for axes in panels:
        axes.set_xlabel("cfg_scale")
    if len(lines) > 1:
        legend_above(figure, panels[0])
    return [to_plot(figure, "Guidance sweep", "The same weights at several guidance scales; bars are 95 % intervals.")]


def ablations(evaluation: Evaluation) -> list[Plot]:
    """As Figure 5: every column for checkpoints that were sampled alike; [] unless there are several."""
    plots = []
    for group in _alike(evaluation, "weights_sha256"):
        if len({_weights(method) for method in group}) < 2:
            continue
        figure, panels = new_figure(len(evaluation.columns))
        _draw_means(panels, evaluation, group, range(len(group)), fmt="o", capsize=4)
        for axes in panels:
            axes.set_xticks(range(len(group)), [plain(method.method) for method in group], rotation=20, ha="right")
            axes.margins(x=0.2)
        note = f"Different weights, everything else alike (cfg_scale {_scale(group[0]):g}); bars are 95 % intervals."
        plots.append(to_plot(figure, "Ablation", note))
    return plots


def _alike(evaluation: Evaluation, varied: str) -> list[list[MethodScores]]:
    """Our own methods in groups whose settings differ in `varied` alone; none where nothing was scored."""
    groups: dict[str, list[MethodScores]] = {}
    if not evaluation.columns:
        return []
    for method in evaluation.methods:
        made = method.generated_with
        if made and "weights_sha256" in made and "cfg_scale" in made.get("sampling", {}):
            rest = {key: value for key, value in made.items() if key != varied}
            rest["sampling"] = {key: value for key, value in made["sampling"].items() if key != varied}
            groups.setdefault(json.dumps(rest, sort_keys=True), []).append(method)
    return list(groups.values())


def _scale(method: MethodScores) -> float:
    assert method.generated_with is not None
    return float(method.generated_with["sampling"]["cfg_scale"])


def _weights(method: MethodScores) -> str:
    assert method.generated_with is not None
    return str(method.generated_with["weights_sha256"])


def _draw_means(
    panels: Sequence[Any], evaluation: Evaluation, methods: list[MethodScores], at: Sequence[float], **style: Any
) -> None:
    """The methods' means with their intervals at the places `at`, in a panel per column; `style` is matplotlib's."""
    means = [evaluation.means(method) for method in methods]
    for axes, column in zip(panels, evaluation.columns, strict=True):
        points = [_point(found[column.name]) for found in means]
        axes.errorbar(at, [point[0] for point in points], whiskers(points), **style)
        axes.set_title(column.title, fontsize=10)
        axes.set_ylabel(_axis(column), fontsize=9)


def _axis(column: Column) -> str:
    return f"{column.unit} {ARROWS[column.better]}"


def _point(mean: Mean) -> Point:
    """Infinite means (untouched pictures) cannot be drawn and count as unknown."""
    value, low, high = (number if math.isfinite(number) else math.nan for number in (mean.mean, mean.low, mean.high))
    return value, low, high


def _finite(values: list[float]) -> np.ndarray:
    return np.array([value for value in values if math.isfinite(value)], np.float64)
