"""What SEED-Data-Edit-Part1-Unsplash is downloaded as: a tar.gz cut into parts, and jsonl annotations.

The parts are read one after the other as one stream; nothing is joined or unpacked on disk.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import posixpath
import re
import tarfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from editar.data.prepare.folder import Dropped
from editar.errors import DataError
from editar.runtime.files import parse_json

PART = re.compile(r"(?P<archive>.+\.tar\.gz)\.part-(?P<number>\d+|[a-z]+)")
BUFFER = 1 << 20


def find_parts(root: Path) -> list[Path]:
    """The parts in order, or a whole *.tar.gz. Raises DataError naming what is missing."""
    found = {path: match for path in root.rglob("*.tar.gz.part-*") if (match := PART.fullmatch(path.name))}
    if not found:
        whole = sorted(root.rglob("*.tar.gz"))
        if len(whole) != 1:
            raise DataError(f"{root}: {len(whole)} *.tar.gz and no *.tar.gz.part-* in it; download images/ of the set")
        return whole
    if len(names := {match["archive"] for match in found.values()}) > 1:
        raise DataError(f"{root}: parts of {len(names)} archives ({', '.join(sorted(names))}); give one download")
    parts = {part_number(match["number"]): path for path, match in found.items()}
    digits = next(iter(found.values()))["number"].isdigit()
    first = 1 if digits and 0 not in parts else 0
    width = max(len(match["number"]) for match in found.values())
    missing = [number for number in range(first, max(parts)) if number not in parts]
    if missing:
        name = part_name(missing[0], width, digits)
        raise DataError(
            f"{next(iter(found)).parent}: part {next(iter(names))}.part-{name} is missing "
            f"({len(missing)} of {max(parts) - first + 1}); download it, or take those before with --files 0:N"
        )
    return [parts[number] for number in sorted(parts)]


def part_number(text: str) -> int:
    """'07' -> 7; as `split` counts, 'aa' -> 0, 'ab' -> 1, 'ba' -> 26."""
    if text.isdigit():
        return int(text)
    number = 0
    for letter in text:
        number = number * 26 + ord(letter) - ord("a")
    return number


def part_name(number: int, width: int, digits: bool) -> str:
    if digits:
        return f"{number:0{width}d}"
    return "".join(chr(ord("a") + number // 26**place % 26) for place in reversed(range(width)))


class JoinedParts(io.RawIOBase):
    """Files read one after the other as one stream; `progress(bytes)` after every read."""

    def __init__(self, parts: list[Path], progress: Callable[[int], object]) -> None:
        self._file, self._waiting, self._progress = io.FileIO(parts[0]), parts[1:], progress

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not (count := self._file.readinto(buffer)) and self._waiting:
            self._file.close()
            self._file = io.FileIO(self._waiting.pop(0))
        self._progress(count)
        return count

    def close(self) -> None:
        self._file.close()
        super().close()


class Member(NamedTuple):
    """A file in the archive. `read` works until the next member is asked for."""

    name: str
    size: int
    read: Callable[[], bytes]


class TruncatedArchive(DataError):
    """The archive is cut short, or damaged at the place that was reached."""


def archive_members(parts: list[Path], progress: Callable[[int], object]) -> Iterator[Member]:
    """The files of the joined archive in order, in bounded memory. Raises TruncatedArchive.

    The check sums of gzip are verified on the way; a cut at any byte is noticed.
    """
    with (
        naming_damage(parts[-1]),
        gzip.GzipFile(fileobj=io.BufferedReader(JoinedParts(parts, progress), BUFFER)) as plain,
        tarfile.open(fileobj=plain, mode="r|", bufsize=BUFFER) as tar,
    ):
        while (info := tar.next()) is not None:
            vars(tar)["members"].clear()  # else tarfile keeps the headers of millions of files in memory
            if info.isfile():
                yield Member(info.name, info.size, partial(_content, tar, info, parts[-1]))
        while plain.read(BUFFER):
            pass


def _content(tar: tarfile.TarFile, info: tarfile.TarInfo, part: Path) -> bytes:
    with naming_damage(part):
        file = tar.extractfile(info)
        return b"" if file is None else file.read()


@contextmanager
def naming_damage(part: Path) -> Iterator[None]:
    """Raises TruncatedArchive for whatever a damaged archive makes the body raise."""
    try:
        yield
    except (EOFError, tarfile.TarError, zlib.error, gzip.BadGzipFile) as error:
        raise TruncatedArchive(f"{part}: the archive breaks off or is damaged ({error})") from None


class Annotation(NamedTuple):
    """A line of the jsonl files; images are paths relative to the images' root."""

    source_image: str
    target_image: str
    instruction: str
    source_caption: str | None
    target_caption: str | None
    instruction_ori: str | None


def find_annotations(root: Path) -> list[Path]:
    """All *.jsonl by path: `annotations` comes before `annotations_GPT4V`."""
    files = sorted(root.rglob("*.jsonl"), key=lambda path: path.relative_to(root).as_posix())
    if not files:
        raise DataError(f"{root}: no *.jsonl in it; download annotations/ and annotations_GPT4V/ of the set")
    return files


def read_annotations(root: Path, files: list[Path]) -> Iterator[tuple[str, Annotation | Dropped]]:
    """(file#line, annotation or why there is none) of every line; repetitions are dropped."""
    seen: set[int] = set()
    for file in files:
        with open(file, "rb") as lines:
            for number, line in enumerate(lines):
                if line.strip():
                    yield f"{file.relative_to(root).as_posix()}#{number}", _parse(line, seen)


def _parse(line: bytes, seen: set[int]) -> Annotation | Dropped:
    try:
        entry = parse_json(line.decode())
        source, target = (posixpath.normpath(str(entry[key])).lstrip("/") for key in ("source_image", "target_image"))
    except (ValueError, KeyError, TypeError) as error:
        return Dropped("unreadable annotation", f"{type(error).__name__}: {error}")
    texts = [entry[key] if isinstance(entry.get(key), str) else None for key in Annotation._fields[2:]]
    try:
        "".join([source, target, *filter(None, texts)]).encode()
    except UnicodeEncodeError as error:  # half of a surrogate pair
        return Dropped("unreadable annotation", str(error))
    if not (texts[0] or "").strip():
        return Dropped("no text")
    key = hashlib.blake2b(json.dumps([source, target, texts[0]]).encode(), digest_size=8).digest()
    mark = int.from_bytes(key, "little")
    if mark in seen:
        return Dropped("repeated")
    seen.add(mark)
    return Annotation(source, target, *texts)  # type: ignore[arg-type]
