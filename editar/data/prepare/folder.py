"""The folder that a preparation makes: its state between a start and a finish, its shards, its summary.

A folder being made holds `unfinished.json` (what it is made from) and `units/NAME.json` (the finished
pieces of work, written after their shards); when all is done, `manifest.json` takes their place. Every
file appears under its name only when it is whole, so a kill at any point costs one piece of work.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

from editar.data.tables import DROPPED, FORMAT, MANIFEST, UNFINISHED, Table, read_manifest
from editar.errors import DataError, ImageError, ImageTooLarge, one_line
from editar.images import contact_sheet, load_image, resize_and_crop, save_image
from editar.runtime.files import parse_json, write_json, write_text
from editar.runtime.log import say

LISTED = 10_000  # dropped rows named per piece of work and reason; all are counted
THUMBNAIL, THUMBNAILS, PER_LINE = 128, 16, 8  # pixels, pairs, pictures in a line


class Dropped(ValueError):
    """A row that is not kept: `reason` is counted, the text says more."""

    def __init__(self, reason: str, text: str = "") -> None:
        super().__init__(text)
        self.reason = reason


class Drops:
    """How many rows were dropped for which reason, and which."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.rows: list[dict[str, str]] = []

    def add(self, row: str, why: Dropped) -> None:
        self.counts[why.reason] += 1
        if self.counts[why.reason] <= LISTED:
            self.rows.append({"row": row, "reason": why.reason, "detail": str(why)})


def check_image(content: object, name: str) -> None:
    """Decode the whole picture. Raises Dropped, whose text begins with `name`."""
    if not content:
        raise Dropped("empty image", name)
    if not isinstance(content, bytes):  # a text would be opened as a path on this machine
        raise Dropped("no image bytes", f"{name} holds {type(content).__name__} instead of an image's bytes")
    try:
        load_image(content, name=name)
    except ImageTooLarge as error:
        raise Dropped("image too large", str(error)) from None
    except ImageError as error:
        raise Dropped("corrupt image", str(error)) from None


@contextmanager
def only_one(folder: Path) -> Iterator[None]:
    """Hold `folder` for this process; a full disk in the body becomes one line. Raises DataError."""
    folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # some network file systems know no locks
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise DataError(f"{folder}: another process is preparing it") from None
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        what = "a file would be too large for this disk" if error.errno == errno.EFBIG else "the disk is full"
        free = shutil.disk_usage(folder).free / 1e9
        raise DataError(f"{folder}: {what} ({free:.2f} GB free); make room and run again to go on") from None
    finally:
        os.close(handle)


def start(folder: Path, made_from: dict[str, Any]) -> dict[str, Any] | None:
    """Begin, or go on; -> the manifest where everything is done already.

    Raises DataError when the folder was made from something else, or holds something else.
    """
    if (folder / MANIFEST).is_file():
        manifest = read_manifest(folder)
        _check_same(folder, manifest["made_from"], made_from)
        _clear(folder)
        say(f"{folder}: prepared already, {manifest['rows']} rows")
        return manifest
    if (folder / UNFINISHED).is_file():
        _check_same(folder, read_own(folder / UNFINISHED), made_from)
    elif found := sorted(path.name for path in folder.iterdir() if not path.name.startswith(".")):
        raise DataError(f"{folder}: is not empty ({found[0]}); choose another folder")
    for partial in folder.rglob(".*.part*"):
        partial.unlink()
    write_json(folder / UNFINISHED, made_from)
    return None


def read_own(file: Path) -> dict[str, Any]:
    """What this preparation wrote there before it was interrupted. Raises DataError."""
    try:
        found = parse_json(file.read_bytes())
    except ValueError as error:
        raise DataError(f"{file}: damaged ({one_line(error)}); remove the folder and start again") from None
    if not isinstance(found, dict):
        raise DataError(f"{file}: damaged (not a mapping); remove the folder and start again")
    return found


def _check_same(folder: Path, old: dict[str, Any], new: dict[str, Any]) -> None:
    changed = [
        "other input files" if isinstance(value, list) else f"{key} was {old.get(key)}, now {value}"
        for key, value in new.items()
        if old.get(key) != value
    ]
    if changed:
        shown = ", ".join(changed)
        raise DataError(f"{folder} was made with other arguments ({shown}); choose another folder or remove that one")


def unit_file(folder: Path, name: str) -> Path:
    return folder / "units" / f"{name}.json"


def finished_unit(folder: Path, name: str) -> dict[str, Any] | None:
    """What a piece of work left, when it was finished and its shards are whole."""
    if not unit_file(folder, name).is_file():
        return None
    unit = read_own(unit_file(folder, name))
    files = [(folder / entry["name"], entry["bytes"]) for entry in unit["files"]]
    return unit if all(file.is_file() and file.stat().st_size == size for file, size in files) else None


def finish_folder(
    folder: Path,
    made_from: dict[str, Any],
    files: list[dict[str, Any]],
    drops: Drops,
    columns: tuple[str, str],
    open_rows: Callable[[], Table],
    **more: Any,
) -> dict[str, Any]:
    """Draw the sheet of the source and target `columns`, list the dropped rows, write the manifest with `more` in
    it, and tell what came out -> the manifest."""
    manifest = {"source": made_from["source"], "origin": made_from["origin"], **more}
    manifest |= {"rows": sum(file["rows"] for file in files), "dropped": dict(sorted(drops.counts.items()))}
    manifest |= {"files": files, "made_from": made_from}
    if manifest["rows"]:
        write_sheet(open_rows(), columns, folder / "contact_sheet.png")
    write_text(folder / DROPPED, "".join(json.dumps(row) + "\n" for row in drops.rows))
    write_json(folder / MANIFEST, {"format": FORMAT, **manifest})
    _clear(folder)
    tell(folder, manifest)
    return manifest


def _clear(folder: Path) -> None:
    (folder / UNFINISHED).unlink(missing_ok=True)
    shutil.rmtree(folder / "units", ignore_errors=True)


def tell(folder: Path, manifest: dict[str, Any]) -> None:
    files = [*manifest["files"], *manifest.get("images", [])]
    lost = sum(manifest["dropped"].values())
    why = ", ".join(f"{reason} {count}" for reason, count in sorted(manifest["dropped"].items()))
    say(
        f"{folder}: {manifest['rows']} of {manifest['rows'] + lost} rows kept, "
        f"{sum(file['bytes'] for file in files) / 1e9:.3f} GB in {len(files)} files"
        + (f"; dropped: {why} (dropped.jsonl)" if why else "")
        + "".join(f"; {name} is blank in {count}" for name, count in manifest.get("blank", {}).items())
        + ("; look at contact_sheet.png" if manifest["rows"] else "")
    )


def write_sheet(table: Table, columns: tuple[str, str], path: Path) -> None:
    """Evenly spaced rows as pairs of thumbnails, source | target."""
    count, cells = min(THUMBNAILS, len(table)), list[np.ndarray]()
    for i in range(count):
        row = table[i * len(table) // count]
        cells += [np.asarray(resize_and_crop(load_image(row[name]["bytes"]), THUMBNAIL)) for name in columns]
    cells += [np.full((THUMBNAIL, THUMBNAIL, 3), 255, np.uint8)] * (-len(cells) % PER_LINE)
    save_image(contact_sheet([cells[i : i + PER_LINE] for i in range(0, len(cells), PER_LINE)]), path)
