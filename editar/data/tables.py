"""Rows by number, from whatever folder people have.

Read are folders made by `scripts/prepare_data.py`, folders of parquet or arrow files as downloaded,
and `save_to_disk` folders of any `datasets` version: arrow files are opened with pyarrow, so it does
not matter which version wrote them. Image columns come back undecoded, as stored.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from editar.data.shards import Shard, open_shard, row_of
from editar.errors import DataError, one_line
from editar.runtime.files import parse_json
from editar.runtime.log import say

MANIFEST = "manifest.json"
UNFINISHED = "unfinished.json"
DROPPED = "dropped.jsonl"  # rows that were left out, written also when there are none
FORMAT = 1
LARGE_GROUP = 64 << 20  # bytes; above, reading one row at random is slow
MAX_OPEN = 16
IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
REFERENCE = pa.struct([("shard", pa.int32()), ("row", pa.int32()), ("path", pa.string())])
SPLIT_FILE = re.compile(r"(?:.*-)?(?P<split>[A-Za-z_]+)-(?P<number>\d{5})-of-(?P<count>\d{5}).*")


class Table:
    """Rows of several files as one sequence of dictionaries; only the row group of a row is read.

    Picklable, and safe in forked and spawned workers: each process opens its own files. `revision`
    is a short fingerprint of the content (prepared folders) or of names and sizes.
    """

    _open: OrderedDict[int, Shard]
    _group: tuple[tuple[int, int], pa.Table | pa.RecordBatch] | None
    _pid: int

    def __init__(
        self,
        files: Sequence[Path],
        columns: list[str] | None,
        revision: str,
        rows: Sequence[int] | None = None,
        images: Table | None = None,
    ) -> None:
        """`rows`: of each file, where that is known; `images`: where REFERENCE columns point.

        Raises DataError for damaged files and for columns that are not there.
        """
        if not files:
            raise DataError("no files to read rows from")
        self.files, self.revision, self.images, self._listed = list(files), revision, images, rows
        self._forget()
        known = self._shard(0).schema.names
        if missing := [name for name in columns or [] if name not in known]:
            raise DataError(
                f"{self.files[0]}: no column {', '.join(missing)}; found {', '.join(known)}: the right data set?"
            )
        self.columns: list[str] = list(columns) if columns is not None else known
        self._starts = [0, *accumulate(rows or (open_shard(file).starts[-1] for file in self.files))]
        self._hinted = False

    def __len__(self) -> int:
        return self._starts[-1]

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Row as {column: python value}; nested uint8 lists as (H, W) uint8 arrays."""
        if not 0 <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        shard = bisect_right(self._starts, index) - 1
        return self.read(shard, index - self._starts[shard])

    def read(self, shard: int, row: int) -> dict[str, Any]:
        """Row `row` of file number `shard`."""
        if self._pid != os.getpid():
            self._forget()
        reader = self._shard(shard)
        if not 0 <= row < reader.starts[-1]:
            raise DataError(
                f"{self.files[shard]} holds {reader.starts[-1]} rows, not the row {row} that is listed for it"
            )
        group = bisect_right(reader.starts, row) - 1
        if self._group is None or self._group[0] != (shard, group):
            self._hint(reader, group)
            self._group = None  # frees the old group before the new one is read
            self._group = ((shard, group), reader.read_group(group, self.columns))
        values = row_of(self._group[1], row - reader.starts[group])
        return values if self.images is None else {key: self._resolve(value) for key, value in values.items()}

    def _resolve(self, value: Any) -> Any:
        if self.images is None or not (isinstance(value, dict) and "shard" in value):
            return value
        return {"bytes": self.images.read(value["shard"], value["row"])["bytes"], "path": value["path"]}

    def _shard(self, number: int) -> Shard:
        if number not in self._open:
            self._open[number] = shard = open_shard(self.files[number])
            if self._listed is not None and shard.starts[-1] != self._listed[number]:
                raise DataError(
                    f"{shard.path} holds {shard.starts[-1]} rows, {MANIFEST} lists {self._listed[number]}; "
                    f"copy the folder anew or prepare it again"
                )
            if self._listed is not None and shard.name is not None and shard.name != shard.path.name:
                raise DataError(f"{shard.path} is a copy of {shard.name}; copy the folder anew or prepare it again")
            if len(self._open) > MAX_OPEN:
                self._open.popitem(last=False)
        self._open.move_to_end(number)
        return self._open[number]

    def _hint(self, reader: Shard, group: int) -> None:
        if not self._hinted and reader.group_bytes(group) > LARGE_GROUP:
            size = reader.group_bytes(group) / 1e6
            say(f"{reader.path}: row groups of {size:.0f} MB make random access slow; run scripts/prepare_data.py once")
            self._hinted = True

    def _forget(self) -> None:
        self._open, self._group, self._pid = OrderedDict(), None, os.getpid()

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in vars(self).items() if key not in ("_open", "_group", "_pid")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._forget()


def open_table(path: str | Path, columns: list[str] | None = None, split: str = "train") -> Table:
    """The rows of a prepared folder, a `save_to_disk` folder, a folder of parquet or arrow files, or
    one such file. `columns`: only these. `split` chooses where a folder holds several.

    Raises DataError with what was found, what was expected and what to do.
    """
    path = Path(path)
    if path.is_file():
        return Table([path], columns, revision_of([path], path.parent))
    if not path.is_dir():
        raise DataError(f"{path}: no such folder; give the downloaded data set or a scripts/prepare_data.py folder")
    if (path / MANIFEST).is_file():
        return _open_prepared(path, columns)
    if (path / UNFINISHED).is_file():
        raise DataError(f"{path}: its preparation is not finished; run the same scripts/prepare_data.py command again")
    if (path / DROPPED).is_file():
        raise DataError(f"{path}: prepared, but its {MANIFEST} is gone; copy the folder anew or prepare it again")
    if (path / "dataset_dict.json").is_file():
        splits = sorted(state.parent.name for state in path.glob("*/state.json"))
        if split not in splits:
            raise DataError(f"{path}: no split {split}; it holds {', '.join(splits) or 'none'}")
        return open_table(path / split, columns)
    if (path / "state.json").is_file():
        files = _saved_files(path)
    else:
        kinds = (files_in(path, f".{kind}") for kind in ("parquet", "arrow"))
        found = next(filter(None, kinds), [])
        files = [path / name for name in of_split([file.relative_to(path).as_posix() for file in found], split, path)]
    if not files:
        raise DataError(f"{path}: no {MANIFEST}, state.json, *.parquet or *.arrow in it; is the download complete?")
    return Table(files, columns, revision_of(files, path))


def files_in(root: Path, *suffixes: str) -> list[Path]:
    """The files below `root` whose names end so, by name. Raises DataError for a link that leads nowhere, and for a
    pipe, at which a reader would wait."""
    found = sorted(path for path in root.rglob("*") if path.name.endswith(suffixes) and not path.is_dir())
    if unfit := next((path for path in found if not path.is_file()), None):
        raise DataError(f"{unfit} is no file; remove it or get it anew")
    return found


def _open_prepared(folder: Path, columns: list[str] | None) -> Table:
    manifest = read_manifest(folder)
    listed = [*manifest["files"], *manifest.get("images", [])]
    for entry in listed:
        file = folder / entry["name"]
        size = file.stat().st_size if file.is_file() else None
        if size != entry["bytes"]:
            found = "is missing" if size is None else f"has {size} bytes instead of {entry['bytes']}"
            raise DataError(f"{file} {found}; copy the folder anew or prepare it again")
    if not manifest["files"]:
        raise DataError(f"{folder}: no row was kept when it was prepared; see {folder / DROPPED}")
    text = "".join(f"{entry['name']} {entry['sha256']}\n" for entry in listed)
    revision = hashlib.sha256(text.encode()).hexdigest()[:12]
    images = listed_table(folder, manifest["images"], ["bytes"], revision) if "images" in manifest else None
    return listed_table(folder, manifest["files"], columns, revision, images)


def listed_table(
    folder: Path, entries: list[dict[str, Any]], columns: list[str] | None, revision: str, images: Table | None = None
) -> Table:
    """The rows of files as a manifest lists them."""
    return Table([folder / e["name"] for e in entries], columns, revision, [e["rows"] for e in entries], images)


def read_manifest(folder: Path) -> dict[str, Any]:
    try:
        manifest = parse_json((folder / MANIFEST).read_bytes())
        if (found := manifest["format"]) != FORMAT:
            raise DataError(f"{folder}: prepared in format {found}, this version reads {FORMAT}; prepare it again")
        listed = [*manifest["files"], *manifest.get("images", [])]
        if not all(type(e["rows"]) is int and e["rows"] >= 0 and isinstance(e["name"], str) for e in listed):
            raise ValueError("a file without name or number of rows")
        if len({e["name"] for e in listed}) < len(listed):
            raise ValueError("a file twice")
        if manifest["rows"] != sum(e["rows"] for e in manifest["files"]):
            raise ValueError("another number of rows than its files have")
    except DataError:
        raise
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{folder / MANIFEST}: not a manifest of scripts/prepare_data.py ({one_line(error)}); copy it anew"
        ) from None
    return manifest


def _saved_files(folder: Path) -> list[Path]:
    """The arrow files of a `save_to_disk` folder. Its features are not read: they differ by version."""
    try:
        state = parse_json((folder / "state.json").read_bytes())
        files = [folder / entry["filename"] for entry in state["_data_files"]]
    except (ValueError, KeyError, TypeError):
        raise DataError(f"{folder / 'state.json'}: not written by `datasets` save_to_disk; save it again") from None
    if state.get("_indices_data_files"):
        raise DataError(f"{folder}: saved by an old `datasets` with a row selection; save it after flatten_indices()")
    if missing := [file.name for file in files if not file.is_file()]:
        raise DataError(f"{folder}: {len(missing)} of {len(files)} files are missing, first {missing[0]}; copy it anew")
    return files


def of_split(names: list[str], split: str, origin: str | Path, whole: bool = True) -> list[str]:
    """Those of the hub's `SPLIT-00000-of-00010*` files; all, where no file is named so. Raises DataError where there
    are none of the split, and unless `whole` is false where some are missing."""
    found = {name: SPLIT_FILE.fullmatch(Path(name).name) for name in names}
    splits = sorted({match["split"] for match in found.values() if match})
    if not splits:
        return names
    if split not in splits:
        raise DataError(f"{origin}: no split {split}; it holds {', '.join(splits)}")
    chosen = {name: match for name, match in found.items() if match and match["split"] == split}
    numbers = {int(match["number"]) for match in chosen.values()}
    missing = set(range(max(int(match["count"]) for match in chosen.values()))) - numbers
    if whole and missing:
        raise DataError(
            f"{origin}: {len(missing)} files of split {split} are missing, first number {min(missing):05d}; download "
            f"them, or prepare those that are there: scripts/prepare_data.py ... --files 0:{len(chosen)}"
        )
    return list(chosen)


def revision_of(files: Sequence[Path], root: Path) -> str:
    text = "".join(f"{file.relative_to(root).as_posix()} {file.stat().st_size}\n" for file in files)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def label_map(value: Any) -> np.ndarray:
    """A stored label map (nested lists, array, PNG content or its struct) -> (H, W) uint8."""
    if isinstance(value, dict):
        value = value.get("bytes")
    try:
        labels = np.asarray(Image.open(io.BytesIO(value)) if isinstance(value, bytes) else value)
        whole = labels.ndim == 2 and labels.size and labels.dtype.kind in "iu"
        if whole and labels.min() >= 0 and labels.max() <= 255:
            return labels.astype(np.uint8)
    except (ValueError, TypeError, OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"not a label map ({one_line(error)})") from None
    raise DataError(f"not a label map: {labels.dtype} {labels.shape} instead of ids 0..255 in rows and columns")


def stream_rows(
    hub_id: str, split: str, columns: list[str], revision: str | None = None, data_files: str | list[str] | None = None
) -> Iterator[dict[str, Any]]:
    """Rows of a hub data set in order, without keeping a copy; images undecoded.

    `data_files` restricts it to some files; with hub_id "parquet" these are local. Raises DataError.
    """
    import datasets  # slow import, needed only here

    try:
        stream = datasets.load_dataset(
            hub_id,
            revision=revision,
            data_files=None if data_files is None else {split: data_files},
            split=split,
            streaming=True,
        )
        features: Any = stream.features or next(iter(stream.take(1)), {})
        if missing := [name for name in columns if name not in features]:
            raise DataError(f"{hub_id}: no column {', '.join(missing)}; found {', '.join(features)}")
        stream = stream.select_columns(columns)
        for name in columns:
            if isinstance(features[name], datasets.Image):
                stream = stream.cast_column(name, datasets.Image(decode=False))
        yield from stream
    except DataError:
        raise
    except Exception as error:  # the library and its network clients have many types, one meaning
        raise DataError(f"{hub_id}: cannot be streamed ({one_line(error)})") from None
