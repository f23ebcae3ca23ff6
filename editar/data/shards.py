"""One parquet or arrow file as groups of rows, and what a row's values become in Python."""

from __future__ import annotations

from abc import ABC, abstractmethod
from itertools import accumulate
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from editar.errors import DataError, one_line

OWN_NAME = "editar.name"  # in the metadata of a prepared file


class Shard(ABC):
    """An open file as groups of rows; group g begins at row `starts[g]`."""

    path: Path
    schema: pa.Schema
    starts: list[int]
    name: str | None = None  # that prepare_data.py gave it

    def read_group(self, group: int, columns: list[str]) -> pa.Table | pa.RecordBatch:
        """The named columns of a group. Raises DataError where the file is damaged or lacks one."""
        try:
            return self._read(group, columns)
        except (pa.ArrowException, OSError, KeyError) as error:
            raise DataError(f"{self.path}: cannot be read ({one_line(error)}); get the file anew") from None

    @abstractmethod
    def _read(self, group: int, columns: list[str]) -> pa.Table | pa.RecordBatch:
        """The named columns, with whatever pyarrow raises."""

    def group_bytes(self, group: int) -> int:
        """Bytes that have to be read for one row of the group."""
        return 0


class ParquetShard(Shard):
    def __init__(self, path: Path) -> None:
        self.path, self._file = path, pq.ParquetFile(path, page_checksum_verification=True)
        self.schema, self._metadata = self._file.schema_arrow, self._file.metadata
        groups = [self._metadata.row_group(g) for g in range(self._metadata.num_row_groups)]
        self.starts = [0, *accumulate(group.num_rows for group in groups)]
        name = (self._metadata.metadata or {}).get(OWN_NAME.encode())
        self.name = None if name is None else name.decode(errors="replace")

    def _read(self, group: int, columns: list[str]) -> pa.Table:
        return self._file.read_row_group(group, columns=columns, use_threads=False).select(columns)

    def group_bytes(self, group: int) -> int:
        return self._metadata.row_group(group).total_byte_size


class ArrowShard(Shard):
    """Memory-mapped: a group is a record batch, and reading it costs nothing until a row is used."""

    def __init__(self, path: Path) -> None:
        self.path, self._map = path, pa.memory_map(str(path))
        try:
            table = pa.ipc.open_stream(self._map).read_all()
        except pa.ArrowInvalid:
            table = pa.ipc.open_file(self._map).read_all()
        self.schema, self._batches = table.schema, table.to_batches()
        self.starts = [0, *accumulate(len(batch) for batch in self._batches)]

    def _read(self, group: int, columns: list[str]) -> pa.RecordBatch:
        return self._batches[group].select(columns)


def open_shard(path: Path) -> Shard:
    try:
        return ArrowShard(path) if path.suffix == ".arrow" else ParquetShard(path)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path}: not a readable {path.suffix} file ({one_line(error)}); get the file anew") from None


def row_of(table: pa.Table | pa.RecordBatch, row: int) -> dict[str, Any]:
    """One row as python values; nested uint8 lists as (H, W) uint8 arrays."""
    return {name: _value(table.column(number)[row]) for number, name in enumerate(table.schema.names)}


def _value(scalar: pa.Scalar) -> Any:
    if isinstance(scalar, pa.ExtensionScalar):
        scalar = scalar.value
    if not isinstance(scalar, pa.ListScalar) or scalar.values is None:  # large lists are ListScalars too
        return scalar.as_py()
    lines = scalar.values
    if not (pa.types.is_list(lines.type) or pa.types.is_large_list(lines.type)) or lines.type.value_type != pa.uint8():
        return scalar.as_py()
    values = lines.flatten().to_numpy(zero_copy_only=False)
    widths = lines.value_lengths().unique()
    if len(widths) != 1 or values.size != len(lines) * widths[0].as_py():
        return scalar.as_py()
    return values.reshape(len(lines), -1)
