"""Scored folders brought together: several folders on one benchmark, several benchmarks in one table."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from editar.config import check_utf8
from editar.errors import BenchmarkError
from editar.evaluation.registry import benchmark_class
from editar.tables.paper_rows import paper_tables
from editar.tables.render import OurRow
from editar.tables.scores import Evaluation, MethodScores, load_evaluation

# Of `generated_with`; they must agree within a row of a table.
SETTINGS = ("weights_sha256", "tokenizer_sha256", "sampling")


@dataclass
class ScoredFolder:
    """A folder as the user named it, and what was found there."""

    origin: str
    evaluation: Evaluation


def load_scored(argument: str) -> ScoredFolder:
    """FOLDER or scores.json, or NAME=FOLDER to call its only method NAME. Raises BenchmarkError."""
    name, equals, path = argument.partition("=")
    if not equals or Path(argument).exists():
        return ScoredFolder(argument, load_evaluation(argument))
    if not name:
        raise BenchmarkError(f"{argument}: give a name before the equals sign, or the folder alone")
    check_utf8("the method's name", name)
    evaluation = load_evaluation(path)
    if len(evaluation.methods) != 1:
        raise BenchmarkError(f"{argument}: {path} holds {len(evaluation.methods)} methods, so {name} would name none")
    evaluation.methods = [replace(evaluation.methods[0], method=name)]
    return ScoredFolder(argument, evaluation)


def tables_of(evaluation: Evaluation) -> tuple[str, ...]:
    return benchmark_class(evaluation.benchmark).tables


# --- folders of one benchmark ---------------------------------------------------------------------


def merge(scored: Sequence[ScoredFolder]) -> list[Evaluation]:
    """One evaluation per benchmark, methods in the order given.

    Raises BenchmarkError for folders that must not stand side by side: other protocols, pictures or
    networks, or two methods of the same name.
    """
    _check_protocols(scored)
    benchmarks = list(dict.fromkeys(item.evaluation.benchmark for item in scored))
    return [_merge_one([item for item in scored if item.evaluation.benchmark == name]) for name in benchmarks]


def _check_protocols(scored: Sequence[ScoredFolder]) -> None:
    seen: dict[str, ScoredFolder] = {}
    for item in scored:
        # Within a table the first word counts: the rest ("editar cv2") belongs to one benchmark's columns.
        for place, words in ((item.evaluation.benchmark, None), *((table, 1) for table in tables_of(item.evaluation))):
            first = seen.setdefault(place, item)
            both = [part.evaluation.protocol.split()[:words] for part in (first, item)]
            if both[0] != both[1]:
                raise BenchmarkError(
                    f"{first.origin} was scored with protocol {first.evaluation.protocol}, {item.origin} with "
                    f"{item.evaluation.protocol}; their numbers do not belong in one table"
                )


def _merge_one(scored: Sequence[ScoredFolder]) -> Evaluation:
    columns = {column.name: column for item in scored for column in item.evaluation.columns}
    _check_networks(scored)
    whole = {name for item in scored for method in item.evaluation.methods for name in method.whole}
    first, methods, origins, missing = scored[0], list[MethodScores](), dict[str, str](), dict[str, str]()
    for item in scored:
        if _pictures(item) != _pictures(first):
            raise BenchmarkError(
                f"{first.origin} and {item.origin} were scored on different pictures of {item.evaluation.benchmark}; "
                "score the same set"
            )
        for method in item.evaluation.methods:
            if method.method in origins:
                raise BenchmarkError(
                    f"{origins[method.method]} and {item.origin} both hold a method called {method.method}; "
                    f"give one as NAME={item.origin}"
                )
            origins[method.method] = item.origin
            methods.append(_with_columns(method, set(columns), whole))
        for name, reason in item.evaluation.missing.items():
            where = f" ({', '.join(method.method for method in item.evaluation.methods)})" if name in columns else ""
            missing[name + where] = reason
    networks = {name: record for item in reversed(scored) for name, record in item.evaluation.networks.items()}
    shown = list(columns.values())
    return replace(first.evaluation, columns=shown, methods=methods, missing=missing, networks=networks)


def _check_networks(scored: Sequence[ScoredFolder]) -> None:
    """A column that two folders share was scored by the same weights."""
    seen: dict[str, tuple[ScoredFolder, dict[str, str]]] = {}
    for item in scored:
        columns = {column.name for column in item.evaluation.columns}
        own = benchmark_class(item.evaluation.benchmark).networks
        for network, record in item.evaluation.networks.items():
            for name in columns.intersection(own.get(network, ())):
                first, other = seen.setdefault(name, (item, record))
                if other["sha256"] != record["sha256"]:
                    raise BenchmarkError(
                        f"{first.origin} and {item.origin} were scored by different weights of networks.{network} "
                        f"({other['source']}, {record['source']}); score both with the same"
                    )


def _pictures(item: ScoredFolder) -> list[tuple[str, str]]:
    """What the rows are about; the same ids may stand for other pictures (another nano seed)."""
    return [(str(row["id"]), str(row["instruction"])) for row in item.evaluation.methods[0].rows]


def _with_columns(method: MethodScores, columns: set[str], whole: set[str]) -> MethodScores:
    """NaN where only other folders have the column."""
    blank = dict.fromkeys(columns - whole, math.nan)
    rows = [blank | row for row in method.rows]
    return replace(method, rows=rows, whole=dict.fromkeys(columns & whole, math.nan) | method.whole)


# --- tables ---------------------------------------------------------------------------------------


def table_rows(evaluations: Sequence[Evaluation]) -> dict[str, list[OurRow]]:
    """Paper table -> our rows. A method's numbers on depth, canny and cocostuff make one row of Table 2."""
    found = {}
    for table in paper_tables():
        parts = [evaluation for evaluation in evaluations if table in tables_of(evaluation)]
        names = list(dict.fromkeys(method.method for part in parts for method in part.methods))
        if parts:
            found[table] = [_row(name, parts) for name in names]
    return found


def _row(name: str, parts: Sequence[Evaluation]) -> OurRow:
    values: dict[str, float] = {}
    protocols: dict[str, str] = {}
    reasons: list[str] = []
    made: list[tuple[str, dict[str, Any]]] = []
    for part in parts:
        for method, row in zip(part.methods, part.our_rows(), strict=True):
            if method.method == name:
                values |= {key: value for key, value in row.values.items() if not _unscored(method, key)}
                protocols |= row.protocols
                prefix = f"{part.benchmark}: " if len(parts) > 1 else ""
                reasons += [prefix + reason for reason in method.why_not]
                made += [(part.benchmark, method.generated_with)] if method.generated_with else []
    for benchmark, settings in made[1:]:
        other = [key for key in SETTINGS if settings.get(key) != made[0][1].get(key)]
        if other:
            reasons.append(f"{benchmark} was made with other {', '.join(other)} than {made[0][0]}")
    return OurRow(name, values, "; ".join(reasons), protocols)


def _unscored(method: MethodScores, column: str) -> bool:
    """NaN throughout: a column that only another folder has, "-" in the table."""
    numbers = [method.whole[column]] if column in method.whole else [row[column] for row in method.rows]
    return all(math.isnan(number) for number in numbers)
