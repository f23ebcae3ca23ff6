"""People's own data: a folder of pictures and a `pairs.jsonl` that names them.

One line per pair: {"source": "a.png", "target": "b.png", "instruction": "make it snow"}; paths are relative to the
folder. "references": ["c.png"] are further source pictures (data.images); other keys are ignored.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from stat import S_ISREG
from typing import Any

from editar.errors import DataError
from editar.runtime.files import parse_json

KEYS = ("source", "target", "instruction")


class FolderTable:
    """Rows with `source`, `target` and each of `references` as {"bytes", "path"} and `instruction`, like a parquet
    table. `images` is the largest number of source pictures in a row."""

    def __init__(self, folder: str | Path) -> None:
        """Raises DataError for a file that cannot be read, and names the line of what is wrong in it."""
        self.folder = Path(folder)
        self.listing = self.folder / "pairs.jsonl"
        if not self.listing.is_file():
            raise DataError(f"{self.listing}: no such file; write one line per pair with {', '.join(KEYS)}")
        try:
            text = self.listing.read_text(encoding="utf-8-sig")
        except UnicodeDecodeError as error:
            raise DataError(f"{self.listing}: not UTF-8 ({error}); save it as UTF-8") from None
        self.lines: list[str] = []
        self.columns = list(KEYS)
        digest, absent, pictures = hashlib.sha256(text.encode()), list[str](), 0
        self.images = 1
        for number, line in enumerate(text.split("\n"), 1):  # JSON texts may hold other line breaks
            if line.strip():
                row = self._parse(number, line)
                self.images = max(self.images, 1 + len(row.get("references", ())))
                for picture in self._files(row):
                    pictures += 1
                    state = _state_of(picture)
                    digest.update(state.encode())
                    absent += [] if state else [f"line {number}: no picture {picture}"]
                self.lines.append(line)
        if absent:
            more = f" ({len(absent)} of {pictures} pictures are missing)" if len(absent) > 1 else ""
            raise DataError(f"{self.listing} {absent[0]}{more}; add it or remove the line")
        self.revision = digest.hexdigest()[:16]  # also changes when a picture is replaced

    def _parse(self, number: int, line: str) -> dict[str, Any]:
        """Raises DataError."""
        where = f"{self.listing} line {number}"
        try:
            row = parse_json(line)
        except ValueError as error:
            raise DataError(f"{where}: not JSON ({error}); write one object per line") from None
        wrong = [key for key in KEYS if not isinstance(row, dict) or not isinstance(row.get(key), str)]
        if wrong:
            raise DataError(f"{where}: {', '.join(wrong)} missing or not text; every line needs {', '.join(KEYS)}")
        references = row.get("references", [])
        if not isinstance(references, list) or not all(isinstance(name, str) for name in references):
            raise DataError(f"{where}: references must be a list of picture files")
        return row

    def _files(self, row: dict[str, Any]) -> list[Path]:
        return [self.folder / name for name in (row["source"], row["target"], *row.get("references", ()))]

    def __len__(self) -> int:
        return len(self.lines)

    def instruction(self, index: int) -> str:
        return json.loads(self.lines[index])["instruction"]

    def instructions(self) -> Iterator[str]:
        return map(self.instruction, range(len(self)))

    def file(self, index: int, key: str) -> Path:
        """The picture `source` or `target` of a row."""
        return self.folder / json.loads(self.lines[index])[key]

    def sources(self, index: int) -> list[Path]:
        """All source pictures of a row."""
        source, _, *references = self._files(json.loads(self.lines[index]))
        return [source, *references]

    def __getitem__(self, index: int) -> dict[str, Any]:
        row = json.loads(self.lines[index])
        source, target, *references = map(_content, self._files(row))
        return row | {"source": source, "target": target, "references": references}


def _content(path: Path) -> dict[str, Any]:
    data = path.read_bytes() if path.is_file() else b""  # removed meanwhile: a bad row, not a crash
    return {"bytes": data, "path": str(path)}


def _state_of(path: Path) -> str:
    """Size and time of a file, "" for one that is absent or has no possible name."""
    try:
        found = path.stat()
    except (OSError, ValueError):
        return ""
    return f"{found.st_size} {found.st_mtime_ns}\n" if S_ISREG(found.st_mode) else ""
