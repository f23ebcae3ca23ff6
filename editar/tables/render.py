"""Our numbers beside the paper's rows: as text, markdown, LaTeX, CSV or JSON.

A result that was not made under the table's conditions is shown apart, with the reason, and takes no
part in what is best. Neither do published values that were measured by another protocol than ours, which are
marked with OTHER, or by one that is not documented, marked with UNKNOWN.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, is_dataclass
from pathlib import Path
from typing import Any

from editar.runtime.files import write_text
from editar.tables.paper_rows import PaperRow, PaperTable, paper_tables, same_protocol

ARROWS = {"higher": "↑", "lower": "↓"}
REFERENCE = "EditAR"
OTHER, UNKNOWN = "°", "?"
NOTES = {
    OTHER: f"{OTHER} measured by another protocol than ours (docs/evaluation.md): not comparable",
    UNKNOWN: f"{UNKNOWN} protocol not documented: not comparable",
}
LATEX = str.maketrans(
    {sign: rf"\{sign}" for sign in "&%$#_{}"}
    | {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    | {"↑": r"$\uparrow$", "↓": r"$\downarrow$", OTHER: r"$^\circ$"}
)
MARKDOWN = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;", "|": r"\|"})
Bold = Callable[[str], str]
Values = dict[str, float | None]


@dataclass(frozen=True)
class OurRow:
    """A scored folder: column -> mean in the paper's unit (absent columns were not scored).
    `incomparable` says why it must not be read against the paper's rows; "" if it may. `protocols`: by which
    protocol each column was measured; one that is absent is not compared."""

    method: str
    values: dict[str, float]
    incomparable: str = ""
    protocols: dict[str, str] = field(default_factory=dict)

    def why_not(self, paper: PaperTable) -> str:
        """`incomparable`, or that no published value was measured as this row was."""
        own = {name: by for name, by in self.protocols.items() if name in paper.columns}
        pairs = [pair for row in paper.rows for pair in zip(paper.columns, row.protocols, strict=True)]
        if self.incomparable or not own or any(same_protocol(p, own[n]) for n, p in pairs if n in own):
            return self.incomparable
        return f"no published row was measured by protocol {', '.join(sorted(set(own.values())))}"


@dataclass(frozen=True)
class Cells:
    """A table as text: header, then per row its cells and whether it belongs below the line."""

    header: list[str]
    rows: list[tuple[list[str], bool]]
    notes: list[str]


def layout(paper: PaperTable, ours: list[OurRow], bold: Bold) -> Cells:
    """The paper's columns and order; best per column in bold; a line of differences under each of ours
    that may be compared."""
    columns = list(zip(paper.columns, paper.units, paper.better, strict=True))
    header = ["method", *(f"{name} {ARROWS[better]} ({unit})" for name, unit, better in columns)]
    marks = {row.method: _marks(paper, row, ours) for row in paper.rows}
    published = [(row.method, paper.row(row.method), marks[row.method]) for row in paper.rows]
    own: list[Values] = [{**row.values} for row in ours if not row.why_not(paper)]
    fair = [*({n: v for n, v in values.items() if n not in mark} for _, values, mark in published), *own]
    best = {name: best_of([values.get(name) for values in fair], better) for name, _, better in columns}

    def cells(values: Values, mark: dict[str, str], compete: bool = True) -> list[str]:
        texts = {name: _number(values.get(name)) for name in paper.columns}
        shown = {n for n, value in values.items() if compete and value == best.get(n) and not mark.get(n)}
        return [bold(text) if name in shown else text + mark.get(name, "") for name, text in texts.items()]

    rows = [([method, *cells(values, mark)], False) for method, values, mark in published]
    reference = _reference(paper, ours)
    reasons: dict[str, list[str]] = {}
    for row in ours:
        incomparable = row.why_not(paper)
        values: Values = dict(row.values)
        marker = " *" if incomparable else ""
        rows.append(([row.method + marker, *cells(values, {}, not incomparable)], True))
        if incomparable:
            reasons.setdefault(incomparable, []).append(row.method)
        else:
            gaps = [_gap(values.get(name), reference.get(name)) for name in paper.columns]
            rows.append(([f"  minus the paper's {REFERENCE}", *gaps], True))
    notes = [f"* {', '.join(names)}: not comparable with the paper's rows: {why}" for why, names in reasons.items()]
    used = {mark for found in marks.values() for mark in found.values()}
    return Cells(header, rows, [*notes, *(text for mark, text in NOTES.items() if mark in used)])


def _marks(paper: PaperTable, row: PaperRow, ours: list[OurRow]) -> dict[str, str]:
    """Column -> OTHER or UNKNOWN where a published value must not be read against ours; else absent."""
    by = {name: protocol for our in ours for name, protocol in our.protocols.items()}
    return {
        name: OTHER if protocol else UNKNOWN
        for name, value, protocol in zip(paper.columns, row.values, row.protocols, strict=True)
        if value is not None and name in by and not same_protocol(protocol, by[name])
    }


def _reference(paper: PaperTable, ours: list[OurRow]) -> Values:
    """EditAR's published values, without those that must not be read against ours."""
    marked = next(_marks(paper, row, ours) for row in paper.rows if row.method == REFERENCE)
    return {name: value for name, value in paper.row(REFERENCE).items() if name not in marked}


def text_table(paper: PaperTable, ours: list[OurRow]) -> str:
    """For a terminal; the best value of a column is marked with a `!`, as the last line says."""
    cells = layout(paper, ours, lambda value: f"{value}!")
    names, units = zip(*(title.partition(" (")[::2] for title in cells.header), strict=True)
    header = [list(names), [unit and f"({unit}" for unit in units]]
    widths = [max(len(row[k]) for row in [*header, *(r for r, _ in cells.rows)]) for k in range(len(names))]

    def line(row: list[str]) -> str:
        return "  ".join([row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:]))])  # noqa: B905

    rule = "-" * (sum(widths) + 2 * (len(widths) - 1))
    published = [line(row) for row, below in cells.rows if not below]
    own = [line(row) for row, below in cells.rows if below]
    return "\n".join([*map(line, header), rule, *published, rule, *own, "! best of its column", *cells.notes])


def markdown_table(paper: PaperTable, ours: list[OurRow]) -> str:
    cells = layout(paper, ours, lambda value: f"**{value}**")
    lines = [cells.header, ["---"] * len(cells.header), *(row for row, _ in cells.rows)]
    rows = ["| " + " | ".join(cell.translate(MARKDOWN) for cell in line) + " |" for line in lines]
    return "\n".join([*rows, *("\n" + note.translate(MARKDOWN) for note in cells.notes)])


def latex_table(paper: PaperTable, ours: list[OurRow]) -> str:
    """A booktabs tabular."""
    cells = layout(paper, ours, lambda value: rf"\textbf{{{value}}}")

    def line(row: list[str]) -> str:
        first, *numbers = row
        return " & ".join([first.translate(LATEX), *numbers]) + r" \\"

    published = [line(row) for row, below in cells.rows if not below]
    own = [line(row) for row, below in cells.rows if below]
    header = " & ".join(title.translate(LATEX) for title in cells.header) + r" \\"
    top = [rf"\begin{{tabular}}{{l{'r' * (len(cells.header) - 1)}}}", r"\toprule", header, r"\midrule"]
    end = [r"\bottomrule", r"\end{tabular}", *(f"% {note}" for note in cells.notes)]
    return "\n".join([*top, *published, r"\midrule", *own, *end])


def json_table(paper: PaperTable, ours: list[OurRow]) -> str:
    """Columns, the paper's rows and ours with all digits, differences to the paper's EditAR row, or why a
    row of ours must not be read against the paper's."""
    reference = _reference(paper, ours)

    def gaps(row: OurRow) -> Values:
        found = {name: _minus(row.values.get(name), reference.get(name)) for name in paper.columns}
        return dict.fromkeys(found) if row.why_not(paper) else found

    columns = zip(paper.columns, paper.units, paper.better, strict=True)
    published = [{**vars(row), "values": paper.row(row.method)} for row in paper.rows]
    own = [
        {
            "method": row.method,
            "comparable": not row.why_not(paper),
            "why_not": row.why_not(paper),
            "protocols": row.protocols,
            "values": {name: row.values.get(name) for name in paper.columns},
            "minus_paper_editar": gaps(row),
        }
        for row in ours
    ]
    titles = [{"name": name, "unit": unit, "better": better} for name, unit, better in columns]
    table = {"source": paper.source, "columns": titles, "paper": published, "ours": own}
    return json.dumps(strict_json(table), indent=1, ensure_ascii=False)


def csv_table(paper: PaperTable, ours: list[OurRow]) -> str:
    """method, comparable, then the columns in the paper's unit, all digits; no differences."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["method", "comparable", *paper.columns])
    for row in paper.rows:
        writer.writerow([row.method, "paper", *row.values])
    for our in ours:
        comparable = "no" if our.why_not(paper) else "yes"
        writer.writerow([our.method, comparable, *(our.values.get(name) for name in paper.columns)])
    return buffer.getvalue()


FORMATS: dict[str, Callable[[PaperTable, list[OurRow]], str]] = {
    "txt": text_table,
    "md": markdown_table,
    "tex": latex_table,
    "csv": csv_table,
    "json": json_table,
}


def write_tables(ours: dict[str, list[OurRow]], out: Path, prefix: str = "") -> None:
    """Our rows of each paper table into OUT/PREFIX + TABLE.{txt,md,tex,csv,json}."""
    for name, rows in ours.items():
        for suffix, render in FORMATS.items():
            write_text(out / f"{prefix}{name}.{suffix}", render(paper_tables()[name], rows) + "\n")


def best_of(values: Sequence[float | None], better: str) -> float | None:
    """None where nothing is known."""
    known = [value for value in values if value is not None and not math.isnan(value)]
    return (max if better == "higher" else min)(known) if known else None


def _number(value: float | None) -> str:
    return "-" if value is None else "nan" if math.isnan(value) else f"{value:.2f}"


def _gap(value: float | None, reference: float | None) -> str:
    gap = _minus(value, reference)
    return "-" if gap is None or math.isnan(gap) else f"{gap:+.2f}"


def _minus(value: float | None, reference: float | None) -> float | None:
    return None if value is None or reference is None else value - reference


def strict_json(value: Any) -> Any:
    """Nested values and dataclasses with NaN as None and infinities as "inf" and "-inf": JSON knows none of them."""
    if is_dataclass(value):
        value = vars(value)
    if isinstance(value, dict):
        return {key: strict_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [strict_json(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else str(float(value))
    return value
