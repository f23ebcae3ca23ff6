"""SEED-Data-Edit Part 1 (Unsplash) -> shards: each image once in `images/`, pairs that point to them.

The archive is one gzip stream and has to be read from its beginning after an interruption, but
image shards that are finished are neither read into memory, validated nor written again. Memory
holds the names of all annotated images (about 200 bytes each) and a few hundred images at work.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from editar.data.prepare import archive
from editar.data.prepare import folder as out
from editar.data.prepare.archive import Annotation, TruncatedArchive, find_annotations, read_annotations
from editar.data.prepare.folder import Dropped, Drops, check_image
from editar.data.prepare.request import ROW_GROUP, Request
from editar.data.prepare.work import ShardWriter, run_units
from editar.data.tables import REFERENCE, UNFINISHED, Table, listed_table
from editar.errors import DataError
from editar.runtime.files import write_json
from editar.runtime.log import say

LARGEST = 256 << 20  # bytes of one picture file
GROUP_BYTES = 64 << 20  # an image shard ends here or at --rows-per-shard images
PAIRS_PER_SHARD, PAIRS_PER_GROUP = 50_000, 256
IMAGES = pa.schema([("name", pa.string()), ("bytes", pa.binary())])
TEXTS = Annotation._fields[2:]
PAIRS = pa.schema({"source_image": REFERENCE, "target_image": REFERENCE} | {name: pa.string() for name in TEXTS})


class Pairs:
    """The annotated pairs as numbers: `names` image -> number, `ends` (2, n) image numbers."""

    def __init__(self, root: Path, files: list[Path]) -> None:
        self.names: dict[str, int] = {}
        ends: list[list[int]] = [[], []]
        for _, entry in tqdm(read_annotations(root, files), unit="pair", desc="annotations", mininterval=1):
            if isinstance(entry, Annotation):
                for end, name in zip(ends, (entry.source_image, entry.target_image), strict=True):
                    end.append(self.names.setdefault(name, len(self.names)))
        self.ends = np.array(ends, np.int32)

    def find(self, member: str) -> str | None:
        """The annotated name of a file in the archive, whose path may have folders in front of it."""
        path = member.removeprefix("./")
        while path not in self.names:
            _, slash, path = path.partition("/")
            if not slash:
                return None
        return path

    def complete(self, found: np.ndarray) -> int:
        """Pairs both of whose images are `found`, (images,) bool."""
        return int((found[self.ends[0]] & found[self.ends[1]]).sum())


@dataclass(frozen=True)
class ImageGroup:
    """Images of one shard in the archive's order, None for a file too large. `last`: cut by the end
    of the archive, so the shard would hold more if the archive went on."""

    number: int
    images: list[tuple[str, bytes | None]]
    last: bool
    folder: Path

    @property
    def name(self) -> str:
        return f"{self.number:05d}"


def prepare_seed(request: Request) -> dict[str, Any]:
    """Make the folder, or go on making it -> its manifest. Raises DataError."""
    root, folder = Path(request.origin), request.folder
    if not root.is_dir():
        raise DataError(f"{root}: no such folder; download the set (parts and jsonl), the hub cannot be streamed")
    files, parts = find_annotations(root), archive.find_parts(root)
    chosen = request.choose([str(part) for part in parts])
    if chosen[0] != str(parts[0]):
        raise DataError(f"--files {request.files}: the archive can only be read from its first part; give 0:B")
    partial = len(chosen) < len(parts)
    inputs = [{"name": file.relative_to(root).as_posix(), "bytes": file.stat().st_size} for file in files]
    parts = [Path(part) for part in chosen]
    sizes = [{"name": part.name, "bytes": part.stat().st_size} for part in parts]
    made_from = request.made_from | {"inputs": inputs, "parts": sizes}
    forget_old_end(folder, sizes)
    if manifest := out.start(folder, made_from):
        return manifest
    truncated = store_images(request, Pairs(root, files), parts, request.allow_truncated or partial)
    return write_pairs(request, made_from, root, files, truncated)


def forget_old_end(folder: Path, parts: list[dict[str, Any]]) -> None:
    """Go on with a longer archive: a shard that was cut by the old end has to be made again."""
    if not (folder / UNFINISHED).is_file():
        return
    state = out.read_own(folder / UNFINISHED)
    old = state.get("parts", [])
    longer = len(parts) >= len(old) and old[:-1] == parts[: len(old) - 1]  # the last part may have grown
    if not longer or old == parts:
        return
    for path in (folder / "units").glob("*.json"):
        if out.read_own(path)["last"]:
            path.unlink()
    write_json(folder / UNFINISHED, state | {"parts": parts})


# --- images ---------------------------------------------------------------------------------------


def store_images(request: Request, pairs: Pairs, parts: list[Path], allow_truncated: bool) -> bool:
    """Write the image shards -> whether the archive was cut short. Raises DataError."""
    end = out.unit_file(request.folder, "end")
    if end.is_file():
        return out.read_own(end)["truncated"]
    cut: list[TruncatedArchive] = []
    total = sum(part.stat().st_size for part in parts)
    # The bar counts compressed bytes, which are read in this process: workers have nothing to add.
    with tqdm(total=total, unit="B", unit_scale=True, desc="archive", mininterval=1) as bar:
        groups = read_groups(request, pairs, parts, bar, cut, allow_truncated)
        for _ in run_units(store_group, groups, request.processes, bar):
            pass
    if cut and not allow_truncated:
        raise DataError(
            f"{cut[0]}; the finished image shards are kept: get the missing parts and run again, "
            "or take what is there with --allow-truncated"
        )
    if cut:
        say(f"{cut[0]}; going on with what is there")
    write_json(end, {"files": [], "truncated": bool(cut), "last": True})
    return bool(cut)


def read_groups(
    request: Request, pairs: Pairs, parts: list[Path], bar: tqdm, cut: list[TruncatedArchive], allow_truncated: bool
) -> Iterator[ImageGroup]:
    """The annotated images in shards that are not finished yet.

    With a limit, reading stops at the first full shard with enough complete pairs. A truncation is
    put into `cut`; unless it is allowed the last images are left out.
    """
    found = np.zeros(len(pairs.names), bool)
    number, size, images = 0, 0, list[tuple[str, bytes | None]]()
    done = is_done(request.folder, number)
    try:
        for member in archive.archive_members(parts, bar.update):
            name = pairs.find(member.name)
            if name is None or found[pairs.names[name]]:
                continue
            found[pairs.names[name]] = True
            images.append((name, None if done or member.size > LARGEST else member.read()))
            size += member.size
            if len(images) < request.rows_per_shard and size < GROUP_BYTES:
                continue
            if not done:
                yield ImageGroup(number, images, False, request.folder)
            number, size, images = number + 1, 0, []
            done = is_done(request.folder, number)
            if request.limit is not None and pairs.complete(found) >= request.limit:
                return
    except TruncatedArchive as error:
        cut.append(error)
        if not allow_truncated:
            return
    if not found.any():
        raise DataError(
            f"{parts[0]}: no file in it is named by the annotations, which name {next(iter(pairs.names), 'nothing')}"
        )
    if images and not done:
        yield ImageGroup(number, images, True, request.folder)


def is_done(folder: Path, number: int) -> bool:
    return out.finished_unit(folder, f"{number:05d}") is not None


def store_group(group: ImageGroup) -> None:
    """Validate and write one image shard; its summary, written last, says that it is done."""
    bad: dict[str, list[str]] = {}
    with ShardWriter(group.folder, f"images/part-{group.name}", IMAGES, len(group.images), ROW_GROUP) as writer:
        for name, content in group.images:
            try:
                if content is None:
                    raise Dropped("image too large", f"{name}: a file of more than {LARGEST >> 20} MB")
                check_image(content, name)
                writer.add({"name": name, "bytes": content})
            except Dropped as why:
                bad[name] = [why.reason, str(why)]
        summary = {"files": writer.close(), "bad": bad, "last": group.last}
    write_json(out.unit_file(group.folder, group.name), summary)


# --- pairs ----------------------------------------------------------------------------------------


def write_pairs(
    request: Request, made_from: dict[str, Any], root: Path, annotations: list[Path], truncated: bool
) -> dict[str, Any]:
    """The pairs whose images are there, in the order of the annotations, and all that ends a preparation."""
    folder = request.folder
    units = sorted((folder / "units").glob("[0-9]*.json"))
    summaries = [out.read_own(path) for path in units]
    images = [entry for summary in summaries for entry in summary["files"]]
    bad = {name: why for summary in summaries for name, why in summary["bad"].items()}
    place = locate(folder, images, bad)
    drops, kept = Drops(), 0
    with ShardWriter(folder, "shards/part", PAIRS, PAIRS_PER_SHARD, PAIRS_PER_GROUP, "zstd") as writer:
        for row, entry in tqdm(read_annotations(root, annotations), unit="pair", desc="pairs", mininterval=1):
            try:
                if isinstance(entry, Dropped):
                    raise entry
                ends = {"source_image": place(entry.source_image), "target_image": place(entry.target_image)}
            except Dropped as why:
                drops.add(row, why)
                continue
            writer.add(ends | {name: getattr(entry, name) for name in TEXTS})
            kept += 1
            if kept == request.limit:
                break
        files, columns = writer.close(), ("source_image", "target_image")

    def open_rows() -> Table:
        return listed_table(folder, files, list(columns), "", listed_table(folder, images, ["bytes"], ""))

    more = {"truncated": truncated, "images": images}
    return out.finish_folder(folder, made_from, files, drops, columns, open_rows, **more)


def locate(folder: Path, images: list[dict[str, Any]], bad: dict[str, list[str]]) -> Callable[[str], dict[str, Any]]:
    """-> a function from an image's name to its REFERENCE; it raises Dropped where there is none."""
    place: dict[str, int] = {}
    for shard, entry in enumerate(images):
        file = pq.ParquetFile(folder / entry["name"])
        names = file.read(["name"], use_threads=False).column("name").to_pylist()
        place.update((name, shard << 32 | row) for row, name in enumerate(names))

    def find(name: str) -> dict[str, Any]:
        if name in bad:
            raise Dropped(bad[name][0], bad[name][1])
        if name not in place:
            raise Dropped("image not in the archive", name)
        return {"shard": place[name] >> 32, "row": place[name] & 0xFFFFFFFF, "path": name}

    return find
