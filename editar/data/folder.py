"""People's own data: a folder of pictures and a `pairs.jsonl` that names them.

One line per pair: {"source": "a.png", "target": "b.png", "instruction": "make it snow"}; paths are
relative to the folder, further keys are ignored.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from editar.errors import DataError
from editar.runtime.files import parse_json

KEYS = ("source", "target", "instruction")


class FolderTable:
    """Rows with `source` and `target` as {"bytes", "path"} and `instruction`, like a parquet table."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        listing = self.folder / "pairs.jsonl"
        if not listing.is_file():
            raise DataError(f"{listing}: no such file; write one line per pair with {', '.join(KEYS)}")
        try:
            text = listing.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise DataError(f"{listing}: not UTF-8 ({error}); save it as UTF-8") from None
        self.lines = [line for line in text.split("\n") if line.strip()]  # JSON texts may hold other line breaks
        self.columns = list(KEYS)
        digest = hashlib.sha256(text.encode())
        for number, line in enumerate(self.lines, 1):
            digest.update(self._check(number, line).encode())
        self.revision = digest.hexdigest()[:16]  # also changes when a picture is replaced

    def _check(self, number: int, line: str) -> str:
        """Size and time of the line's pictures. Raises DataError."""
        where = f"{self.folder}/pairs.jsonl line {number}"
        try:
            row = parse_json(line)
        except ValueError as error:
            raise DataError(f"{where}: not JSON ({error}); write one object per line") from None
        wrong = [key for key in KEYS if not isinstance(row, dict) or not isinstance(row.get(key), str)]
        if wrong:
            raise DataError(f"{where}: {', '.join(wrong)} missing or not text; every line needs {', '.join(KEYS)}")
        return "".join(_state_of(self.folder / row[key]) for key in ("source", "target"))

    def __len__(self) -> int:
        return len(self.lines)

    def instructions(self) -> Iterator[str]:
        return (json.loads(line)["instruction"] for line in self.lines)

    def __getitem__(self, index: int) -> dict[str, Any]:
        row = json.loads(self.lines[index])
        for key in ("source", "target"):
            path = self.folder / row[key]
            data = path.read_bytes() if path.is_file() else b""  # an absent file is a bad row, not a crash
            row[key] = {"bytes": data, "path": str(path)}
        return row


def _state_of(path: Path) -> str:
    try:
        found = path.stat()
    except (OSError, ValueError):  # absent, or no possible name: a bad row when it is read
        return "-\n"
    return f"{found.st_size} {found.st_mtime_ns}\n"
