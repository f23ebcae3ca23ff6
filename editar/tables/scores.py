"""What an evaluation found: one or several methods on one benchmark, written, read back and shown.

OUTPUT/scores.json                   everything below, and every picture's row
OUTPUT/TABLE.{txt,md,tex,csv,json}   the paper's rows and ours, for each table the benchmark belongs to

All numbers are in the paper's units. The file is strict JSON: an undefined number is null in it and NaN
here, an infinite one "inf".
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from editar.errors import BenchmarkError, one_line
from editar.runtime.files import parse_json, provenance, read_bytes, write_json
from editar.runtime.log import echo
from editar.tables.paper_rows import paper_tables
from editar.tables.render import OurRow, strict_json, text_table, write_tables
from editar.tables.statistics import Comparison, Mean, compare, means, means_by

FILE = "scores.json"
HEAD = ("benchmark", "protocol", "root")


@dataclass(frozen=True)
class Column:
    """A number of every row, or of the whole result. better: lower | higher. A `rate` is 0 or 100 in each row
    (per cent) and its mean gets Wilson's interval."""

    name: str
    title: str
    unit: str
    better: str
    rate: bool = False


@dataclass
class MethodScores:
    """One method's results.

    rows     one per picture: id, texts (`instruction`, `group` names), `source` and `result` files, columns
    groups   what to average by: title -> the group of each row
    whole    numbers of the whole result that are no mean of rows (FID, mIoU)
    why_not  why it must not be read against the paper's rows; empty if it may
    """

    method: str
    results: str
    rows: list[dict[str, Any]]
    groups: dict[str, list[str]] = field(default_factory=dict)
    whole: dict[str, float] = field(default_factory=dict)
    why_not: list[str] = field(default_factory=list)
    generated_with: dict[str, Any] | None = None
    cost: list[dict[str, float]] = field(default_factory=list)  # passes and speed of the runs that made the pictures

    def values(self, columns: Sequence[Column]) -> list[dict[str, float]]:
        """The rows' numbers alone."""
        names = [column.name for column in columns if column.name not in self.whole]
        return [{name: row[name] for name in names} for row in self.rows]


@dataclass
class Evaluation:
    """Methods scored on the same pictures by the same protocol."""

    benchmark: str
    protocol: str
    root: str
    columns: list[Column]
    methods: list[MethodScores]
    missing: dict[str, str] = field(default_factory=dict)  # column -> what to fetch
    networks: dict[str, dict[str, str]] = field(default_factory=dict)  # name -> source, sha256 of its weights

    def means(self, method: MethodScores) -> dict[str, Mean]:
        """Column -> mean with its interval; numbers of the whole result have none."""
        whole = {name: Mean(value, math.nan, math.nan, len(method.rows), 0) for name, value in method.whole.items()}
        return means(method.values(self.columns), self._rates) | whole

    def means_by(self, method: MethodScores, title: str) -> dict[str, dict[str, Mean]]:
        """Group -> column -> mean, by one of `method.groups`."""
        return means_by(method.values(self.columns), method.groups[title], self._rates)

    @property
    def _rates(self) -> set[str]:
        return {column.name for column in self.columns if column.rate}

    def row_columns(self) -> list[Column]:
        """Those that every row has a number for."""
        whole = {name for method in self.methods for name in method.whole}
        return [column for column in self.columns if column.name not in whole]

    def paired(self) -> dict[str, dict[str, Comparison]]:
        """Every later method against the first, picture by picture: method -> column -> comparison."""

        def by_id(method: MethodScores, column: Column) -> dict[str, float]:
            return {str(row["id"]): row[column.name] for row in method.rows}

        first, *others = self.methods
        return {
            other.method: {c.name: compare(by_id(first, c), by_id(other, c), c.better) for c in self.row_columns()}
            for other in others
        }

    def our_rows(self) -> list[OurRow]:
        means = [{name: mean.mean for name, mean in self.means(method).items()} for method in self.methods]
        protocols = {column.name: self.protocol for column in self.columns}
        rows = zip(self.methods, means, strict=True)
        return [OurRow(m.method, values, "; ".join(m.why_not), protocols) for m, values in rows]

    def as_dict(self) -> dict[str, Any]:
        """What scores.json holds, before `strict_json`."""
        methods = {}
        for method in self.methods:
            found = {"pictures": len(method.rows), "comparable": not method.why_not, "mean": self.means(method)}
            found["by"] = {title: self.means_by(method, title) for title in method.groups}
            methods[method.method] = found | {key: value for key, value in vars(method).items() if key != "method"}
        return {
            "benchmark": self.benchmark,
            "protocol": self.protocol,
            "root": self.root,
            "made_by": provenance(),
            "columns": self.columns,
            "missing_columns": self.missing,
            "judges": self.networks,
            "methods": methods,
            "compared_with_first": self.paired(),
        }


def write_evaluation(evaluation: Evaluation, tables: Sequence[str], out: Path) -> None:
    """scores.json and the paper's `tables` into `out`; the first table, or the means by group, to the terminal."""
    write_json(out / FILE, strict_json(evaluation.as_dict()))
    ours = evaluation.our_rows()
    write_tables(dict.fromkeys(tables, ours), out)
    echo(text_table(paper_tables()[tables[0]], ours) if tables else breakdown(evaluation))
    for method in evaluation.methods:
        excluded = {name: mean.excluded for name, mean in evaluation.means(method).items() if mean.excluded}
        if excluded:
            skipped = ", ".join(f"{name} {count}" for name, count in excluded.items())
            echo(f"{method.method}: not in the means because undefined: {skipped}")
    if len(evaluation.methods) > 1:
        echo(paired_table(evaluation))
    echo(f"{len(evaluation.methods[0].rows)} pictures, protocol {evaluation.protocol}; all numbers: {out / FILE}")


def breakdown(evaluation: Evaluation, columns: Sequence[str] | None = None) -> str:
    """Means with 95 % intervals by the first kind of group and over all rows, as text: one column per method and
    score, of the scores named by `columns` (default: all)."""
    title = next(iter(evaluation.methods[0].groups), "")
    header, cells = [title], dict[str, list[str]]()
    for method in evaluation.methods:
        by_group = evaluation.means_by(method, title) if title else {}
        found = by_group | {"all": evaluation.means(method)}
        for column in evaluation.columns:
            if columns is None or column.name in columns:
                header.append(f"{method.method}: {column.title} ({column.unit})")
                for group, values in found.items():
                    cells.setdefault(group, []).append(_mean_text(values[column.name]))
    rows = [header, *([group, *values] for group, values in cells.items())]
    widths = [max(len(row[k]) for row in rows) for k in range(len(header))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)


def _mean_text(mean: Mean) -> str:
    if math.isnan(mean.mean):
        return "-"
    interval = "" if math.isnan(mean.low) else f" [{mean.low:.1f}, {mean.high:.1f}]"
    return f"{mean.mean:.1f}{interval} n={mean.count}"


def paired_table(evaluation: Evaluation) -> str:
    """Differences to the first method with 95 % intervals, as text."""
    first = evaluation.methods[0].method
    lines = [f"picture by picture against {first}: mean difference [95 % interval], better / worse pictures, p"]
    for name, columns in evaluation.paired().items():
        for column, found in columns.items():
            gap = found.difference
            lines.append(
                f"  {name:<20} {column:<12} {gap.mean:+9.2f} [{gap.low:+.2f}, {gap.high:+.2f}]"
                f"  {found.wins} / {found.losses}  p={found.p:.3f}"
            )
    return "\n".join(lines)


def load_evaluation(path: str | Path) -> Evaluation:
    """From scores.json or the folder that holds it. Raises BenchmarkError."""
    path = Path(path)
    file = path / FILE if path.is_dir() else path
    try:
        raw = parse_json(read_bytes(file))
        columns = raw["columns"]
        names = {column["name"] for column in columns}
        methods = [{"method": name} | _numbers(entry, names) for name, entry in raw["methods"].items()]
        given = {"columns": columns, "methods": methods, "missing": raw["missing_columns"], "networks": raw["judges"]}
        return _typed(given | {key: raw[key] for key in HEAD})
    except FileNotFoundError:
        raise BenchmarkError(f"{file}: no such file; `editar.eval stage=score` writes it") from None
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise BenchmarkError(
            f"{file}: not a scores.json of this version ({one_line(error)}); score the folder again"
        ) from None


def _numbers(entry: dict[str, Any], names: set[str]) -> dict[str, Any]:
    """A method's entry with its numbers read back; every row has those that are not of the whole result."""
    whole = {key: _number(value) for key, value in entry["whole"].items()}
    rows = [{k: _number(v) if k in names else v for k, v in row.items()} for row in entry["rows"]]
    if not rows or not all(names - whole.keys() <= row.keys() for row in rows):
        raise ValueError("no rows, or one without a column")
    return {key: entry[key] for key in ("results", "groups", "why_not", "generated_with")} | {
        "rows": rows, "whole": whole, "cost": entry.get("cost", []),
    }  # fmt: skip


def _typed(values: dict[str, Any]) -> Evaluation:
    """The evaluation with these fields, whose types are checked all the way down. Raises ValueError."""
    from pydantic import TypeAdapter, ValidationError

    try:
        found = TypeAdapter(Evaluation).validate_python(values)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise ValueError(f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from None
    _check(found)
    return found


def _check(found: Evaluation) -> None:
    """What the fields' types do not say. Raises ValueError."""
    if not found.methods or not {column.better for column in found.columns} <= {"lower", "higher"}:
        raise ValueError("no methods, or a column without a better side")
    if not all({"source", "sha256"} <= record.keys() for record in found.networks.values()):
        raise ValueError("a judge without source and checksum")
    for method in found.methods:
        if not all({"images", "passes_per_image", "codes_per_pass"} <= cost.keys() for cost in method.cost):
            raise ValueError("a cost that is not whole")
        sampling = (method.generated_with or {}).get("sampling", {})
        if not isinstance(sampling, dict) or not isinstance(sampling.get("cfg_scale", 1.0), (int, float)):
            raise ValueError("sampling settings that are none")
        if any(len(groups) != len(method.rows) for groups in method.groups.values()):
            raise ValueError("groups of another number of rows")
        for row in method.rows:
            texts = (row.get("id"), row.get("instruction"), row.get("source", ""), row.get("result", ""))
            if not all(isinstance(text, str) for text in texts):
                raise ValueError("a row whose id, instruction or file is no text")


def _number(value: Any) -> float:
    """As `strict_json` wrote it."""
    return math.nan if value is None else float(value)
