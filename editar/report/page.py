"""One self-contained page from scored folders: tables, plots, paired comparison, and every picture to browse."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup, escape

from editar.evaluation.registry import benchmark_class
from editar.report.figures import ablations, distributions, group_bars, guidance_sweeps
from editar.report.gallery import Gallery
from editar.report.merge import ScoredFolder, merge, table_rows
from editar.report.plots import page_template
from editar.runtime.files import provenance, write_text
from editar.runtime.log import echo
from editar.tables.paper_rows import paper_tables
from editar.tables.render import ARROWS, OurRow, best_of, layout, text_table, write_tables
from editar.tables.scores import Column, Evaluation, paired_table
from editar.tables.statistics import Comparison, Mean

PICTURES = 300  # entries of a benchmark that are embedded with their pictures


def write_comparison(scored: Sequence[ScoredFolder], out: Path, title: str, pictures: int = PICTURES) -> None:
    """The page to `out`, the paper's tables beside it and to the terminal; `pictures` as in `write_page`.

    Raises BenchmarkError for folders that must not stand side by side.
    """
    evaluations = merge(scored)
    tables = table_rows(evaluations)
    write_tables(tables, out.parent, f"{out.stem}_")
    for name, rows in tables.items():
        echo(f"{paper_tables()[name].source}\n{text_table(paper_tables()[name], rows)}\n")
    for evaluation in evaluations:
        if len(evaluation.methods) > 1:
            echo(f"{benchmark_class(evaluation.benchmark).title}, {paired_table(evaluation)}\n")
    write_page(evaluations, [item.origin for item in scored], out, title, pictures)


def write_page(
    evaluations: Sequence[Evaluation], origins: Sequence[str], out: Path, title: str, pictures: int = PICTURES
) -> None:
    """A page about one evaluation per benchmark, made from `origins`. `pictures` is how many entries of each are
    embedded with their pictures."""
    context = {
        "title": title,
        "made_by": provenance(),
        "origins": origins,
        "tables": [_paper_table(name, rows) for name, rows in table_rows(evaluations).items()],
        "sections": [_section(evaluation, pictures) for evaluation in evaluations],
    }
    template = page_template("page.html.j2")
    size = f"{len(template.render(context).encode()) / 1e6:.1f} MB"
    write_text(out, template.render(context, size=size))
    echo(f"{out}: {size}, opens from disk")


def _paper_table(name: str, ours: list[OurRow]) -> dict[str, Any]:
    paper = paper_tables()[name]
    cells = layout(paper, ours, lambda value: Markup(f"<b>{escape(value)}</b>"))
    return {"name": name, "source": paper.source, "cells": cells}


def _section(evaluation: Evaluation, pictures: int) -> dict[str, Any]:
    gallery = Gallery(evaluation, pictures)
    return {
        "benchmark": evaluation.benchmark,
        "title": benchmark_class(evaluation.benchmark).title,
        "protocol": evaluation.protocol,
        "methods": evaluation.methods,
        "columns": [f"{c.title} {ARROWS[c.better]} ({c.unit})" for c in evaluation.columns],
        "means": _means(evaluation),
        "costs": [f"{method.method}: {text}" for method in evaluation.methods if (text := _cost(method.cost))],
        "missing": _by_reason(evaluation.missing),
        "paired": _paired(evaluation) if len(evaluation.methods) > 1 else [],
        "several": guidance_sweeps(evaluation) + ablations(evaluation),
        "groups": [{"title": title, "plots": group_bars(evaluation, title)} for title in evaluation.methods[0].groups],
        "distributions": distributions(evaluation),
        "notes": gallery.notes,
        "grid": gallery.data,
    }


def _by_reason(missing: dict[str, str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for column, reason in missing.items():
        found.setdefault(reason, []).append(column)
    return found


def _means(evaluation: Evaluation) -> list[dict[str, Any]]:
    """Per method its cells: mean, interval and how many pictures are left out."""
    found = [evaluation.means(method) for method in evaluation.methods]
    best = {c.name: best_of([means[c.name].mean for means in found], c.better) for c in evaluation.columns}
    rows = []
    for method, means in zip(evaluation.methods, found, strict=True):
        cells = [_cell(means[name]) | {"best": len(found) > 1 and means[name].mean == best[name]} for name in best]
        rows.append({"method": method.method, "pictures": len(method.rows), "cells": cells})
    return rows


def _cost(records: list[dict[str, float]]) -> str:
    """`9.1 passes an image, 6.9 codes a pass`, over all processes and starts that made the pictures."""
    images = sum(record["images"] for record in records)
    passes = sum(record["images"] * record["passes_per_image"] for record in records)
    codes = sum(record["images"] * record["passes_per_image"] * record["codes_per_pass"] for record in records)
    return f"{passes / images:.1f} passes an image, {codes / passes:.1f} codes a pass" if passes else ""


def _cell(mean: Mean) -> dict[str, Any]:
    main = "-" if math.isnan(mean.mean) else f"{mean.mean:.2f}"
    interval = "" if math.isnan(mean.low) else f"[{mean.low:.2f}, {mean.high:.2f}]"
    left_out = f"{mean.excluded} undefined" if mean.excluded and not math.isnan(mean.mean) else ""
    return {"main": main, "interval": interval, "left_out": left_out}


def _paired(evaluation: Evaluation) -> list[dict[str, Any]]:
    return [
        {"method": method, "column": column, "arrow": ARROWS[column.better], "found": found[column.name]}
        | {"verdict": _verdict(column, found[column.name])}
        for method, found in evaluation.paired().items()
        for column in evaluation.row_columns()
    ]


def _verdict(column: Column, found: Comparison) -> str:
    """better | worse where the interval leaves out zero, else ""."""
    gap = found.difference
    if not (gap.low > 0 or gap.high < 0):
        return ""
    return "better" if (gap.low > 0) == (column.better == "higher") else "worse"
