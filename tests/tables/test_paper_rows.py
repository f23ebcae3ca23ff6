"""The published tables: complete, consistent with each other and with the scorers' columns."""

from __future__ import annotations

import pytest

from editar.evaluation.pie_bench.metrics import COLUMNS
from editar.tables.paper_rows import paper_tables


def test_tables_are_complete() -> None:
    tables = paper_tables()
    assert {name: len(table.rows) for name, table in tables.items()} == {
        "table1": 8, "table2": 6, "table3": 11, "supplement_c": 2,
    }  # fmt: skip
    absent = [(row.method, value) for table in tables.values() for row in table.rows for value in row.values]
    assert [method for method, value in absent if value is None] == [
        "T2I-Adapter", "T2I-Adapter", "UniControlNet", "UniControlNet", "UniControl", "UniControl",
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["table1", "table3"])
def test_columns_are_the_scorers(name: str) -> None:
    table = paper_tables()[name]
    assert table.columns == [column.name for column in COLUMNS]
    assert table.units == [column.unit for column in COLUMNS]
    assert table.better == [column.better for column in COLUMNS]


def test_table_1_is_part_of_table_3() -> None:
    tables = paper_tables()
    rows = {tuple(row.values) for row in tables["table3"].rows}
    assert {tuple(row.values) for row in tables["table1"].rows} <= rows


def test_rows_of_the_paper_itself() -> None:
    tables = paper_tables()
    assert tables["table1"].row("EditAR") == tables["table3"].row("EditAR")
    translated, ablation = tables["table2"].row("EditAR"), tables["supplement_c"].row("EditAR")
    assert ablation == {key: translated[key] for key in ablation}
    with pytest.raises(KeyError, match="it has T2I-Adapter"):
        tables["table2"].row("GPT")
