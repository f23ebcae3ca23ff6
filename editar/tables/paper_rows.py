"""The paper's published rows as data (`paper_rows.yaml`): what a result is put beside."""

from __future__ import annotations

from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path

from omegaconf import MISSING, OmegaConf

FILE = Path(__file__).parent / "paper_rows.yaml"


@dataclass
class PaperRow:
    """One method as printed; None stands for the paper's "-". `protocols`: how each value was measured, in the
    names of `Evaluation.protocol` with * for any ending; None where nothing documents it."""

    method: str = MISSING
    base: str = MISSING  # the text-to-image model it builds on
    kind: str = MISSING
    values: list[float | None] = field(default_factory=list)
    protocols: list[str | None] = field(default_factory=list)


def same_protocol(published: str | None, ours: str) -> bool:
    return published is not None and fnmatchcase(ours, published)


@dataclass
class PaperTable:
    """A published table: `columns`, `units` and `better` (lower | higher) belong to `values` by position."""

    source: str = MISSING
    benchmark: str = MISSING  # pie_bench | translation
    columns: list[str] = field(default_factory=list)
    units: list[str] = field(default_factory=list)
    better: list[str] = field(default_factory=list)
    rows: list[PaperRow] = field(default_factory=list)

    def row(self, method: str) -> dict[str, float | None]:
        """Column -> value of one method. Raises KeyError with the methods there are."""
        for row in self.rows:
            if row.method == method:
                return dict(zip(self.columns, row.values, strict=True))
        raise KeyError(f"{self.source} has no {method}; it has {', '.join(row.method for row in self.rows)}")


@cache
def paper_tables() -> dict[str, PaperTable]:
    """table1, table2, table3 and supplement_c, in the units of the paper."""
    raw = OmegaConf.load(FILE)["tables"]  # type: ignore[index]
    merged = {str(name): OmegaConf.merge(OmegaConf.structured(PaperTable), table) for name, table in raw.items()}
    tables: dict[str, PaperTable] = {name: OmegaConf.to_object(node) for name, node in merged.items()}  # type: ignore[misc]
    for name, table in tables.items():
        for row in table.rows:
            row.protocols = row.protocols or [None] * len(row.values)
        lengths = [len(part) for row in table.rows for part in (row.values, row.protocols)]
        sizes = {len(table.columns), len(table.units), len(table.better), *lengths}
        if len(sizes) != 1:
            raise ValueError(f"{FILE.name}: {name} has rows of different lengths")
    return tables
