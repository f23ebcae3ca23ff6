"""What `scripts/prepare_data.py` is asked."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from editar.errors import DataError

ROW_GROUP = 8  # rows read for one: few, they carry pixels


@dataclass(frozen=True)
class Request:
    """`files`: A:B of the sorted input files; `limit`: of input rows (SEED: of kept pairs); `workers` 0 = all
    cores, never changes the result."""

    source: str
    origin: str
    folder: Path
    split: str = "train"
    limit: int | None = None
    files: str = ":"
    rows_per_shard: int = 1000
    workers: int = 0
    allow_truncated: bool = False

    @property
    def made_from(self) -> dict[str, Any]:
        """What decides the result, apart from the input files."""
        local = not self.origin.startswith("hf://")
        origin = str(Path(self.origin).resolve()) if local else self.origin
        options = {name: getattr(self, name) for name in ("split", "limit", "files", "rows_per_shard")}
        return {"source": self.source, "origin": origin, **options}

    @property
    def processes(self) -> int:
        return self.workers or os.cpu_count() or 1

    def choose(self, names: list[str]) -> list[str]:
        """The slice `files` of the input files."""
        try:
            first, last = (int(end) if end else None for end in self.files.split(":"))
        except ValueError:
            raise DataError(f"--files {self.files}: give A:B, for example 0:10 for the first ten files") from None
        if not names[first:last]:
            raise DataError(f"--files {self.files}: none of the {len(names)} files are in it")
        return names[first:last]
