"""Tars in webdataset's convention: consecutive files KEY.src.*, KEY.tgt.* and KEY.txt are one pair.

KEY is the path up to the first dot of the file's name; `src` and `tgt` are pictures in any format, with or without a
further suffix (`0001.src.jpg`, `0001.src`), `txt` the instruction in UTF-8. Other files are left alone.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from editar.data.pictures import check_end
from editar.data.prepare.seed import LARGEST
from editar.data.tables import files_in
from editar.errors import DataError, one_line

PARTS = {"src": "source", "tgt": "target", "txt": "instruction"}


class TarInput:
    """A tar on this disk, compressed or not, read like a table with the columns of PARTS and `key`."""

    def __init__(self, name: str, path: str, size: int) -> None:
        self.name, self.path, self.size, self.commit = name, path, size, None

    def columns(self) -> list[str]:
        """`key`, and the parts that at least one pair has."""
        found = {part for _, part, _ in self._members(read=False)}
        return ["key", *(column for part, column in PARTS.items() if part in found)]

    def count(self) -> int:
        """Pairs, whole or not."""
        return sum(1 for _ in self._groups(read=False))

    def rows(self, columns: list[str], limit: int) -> Iterator[dict[str, Any]]:
        """The first `limit` pairs in order; `missing` lists the columns that a pair lacks, `unreadable` names a
        text that is not UTF-8."""
        for key, parts in islice(self._groups(read=True), limit):
            row: dict[str, Any] = {"key": key, "missing": [name for part, name in PARTS.items() if part not in parts]}
            for part, content in parts.items():
                name = PARTS[part]
                row[name] = content.decode(errors="replace") if part == "txt" else {"bytes": content, "path": key}
                if part == "txt" and row[name].encode() != content:
                    row["unreadable"] = f"{key}.txt"
            yield row

    def _groups(self, read: bool) -> Iterator[tuple[str, dict[str, bytes]]]:
        last, parts = "", dict[str, bytes]()
        for key, part, content in self._members(read):
            if parts and (key != last or part in parts):
                yield last, parts
                parts = {}
            last = key
            parts[part] = content
        if parts:
            yield last, parts

    def _members(self, read: bool) -> Iterator[tuple[str, str, bytes]]:
        """Key, part and content (empty unless `read`) of every file that is one. Raises DataError for a damaged tar."""
        try:
            with tarfile.open(self.path, "r:*") as tar:
                for info in tar:
                    folder, _, name = info.name.rpartition("/")
                    stem, _, suffix = name.partition(".")
                    part = suffix.split(".")[0].lower()
                    if info.isfile() and part in PARTS:
                        file = tar.extractfile(info) if read and info.size <= LARGEST else None
                        yield f"{folder}/{stem}" if folder else stem, part, b"" if file is None else file.read()
                    tar.members = []  # type: ignore[attr-defined]  # else all headers stay in memory
                check_end(tar)
        except (tarfile.TarError, EOFError, OSError) as error:
            raise DataError(f"{self.path}: damaged or cut short ({one_line(error)}); get it anew") from None


def list_tars(origin: str) -> list[TarInput]:
    """The tars of a folder by name. Raises DataError."""
    root = Path(origin)
    if not root.is_dir():
        raise DataError(f"{root}: no such folder; give the downloaded tars")
    paths = files_in(root, ".tar", ".tar.gz", ".tgz")
    if not paths:
        raise DataError(f"{origin}: no *.tar in it; webdataset is downloaded as tars")
    return [TarInput(path.relative_to(root).as_posix(), str(path), path.stat().st_size) for path in paths]
