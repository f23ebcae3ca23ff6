"""The published tables: complete, consistent with each other and with the scorers' columns."""

from __future__ import annotations

import pytest

from editar.evaluation.pie_bench.metrics import COLUMNS
from editar.tables.paper_rows import paper_tables, same_protocol


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


def test_which_values_are_whose() -> None:
    """Counted by hand against the tables in PnPInversion's README and on ControlNet++'s project page."""
    tables = paper_tables()
    borrowed = {row.method: row.protocols for row in tables["table2"].rows}
    assert [sum(p == "controlnet++" for p in found) for found in borrowed.values()] == [3, 2, 3, 4, 4, 0]
    assert borrowed["UniControlNet"][1] is None  # 22.27, on the project page 20.27
    of_2023 = [row.method for row in tables["table3"].rows if row.protocols[0] == "pnpinversion-2023"]
    assert len(of_2023) == 5 and all(row.kind == "inversion" for row in tables["table3"].rows if row.method in of_2023)
    assert same_protocol("editar*", "editar-aligned") and not same_protocol("editar", "editar cv2")
    assert not same_protocol(None, "editar")
