"""Downloaded data sets -> validated local shards that read quickly at random (`scripts/prepare_data.py`).

The columns stay as they are downloaded, image bytes unchanged; only label maps, nested lists of
integers in COCO-Stuff, become PNGs in a struct {bytes, path} under the same column name.

A piece of work is one input file, parquet or tar; its shards depend on nothing but that file and the options.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from editar.data.prepare import folder as out
from editar.data.prepare.folder import Dropped, Drops, check_image
from editar.data.prepare.request import ROW_GROUP, Request
from editar.data.prepare.webdataset import TarInput, list_tars
from editar.data.prepare.work import ShardWriter, run_units, tick
from editar.data.shards import row_of
from editar.data.tables import IMAGE, files_in, label_map, listed_table, of_split, stream_rows
from editar.errors import DataError, one_line
from editar.images import encode_image
from editar.runtime.files import write_json

CLASSES = 171  # of COCO-Stuff; 255 = ignore


@dataclass(frozen=True)
class Layout:
    """Columns of a data set that are kept. `images`: source, target. Of `texts` one must not be
    blank, unless `blank_texts` says so; with `lists` each is a list of wordings. `others` may be absent."""

    images: tuple[str, str]
    texts: tuple[str, ...]
    labels: str | None = None
    others: tuple[str, ...] = ()
    blank_texts: bool = False
    lists: bool = False

    @property
    def needed(self) -> list[str]:
        return [*self.images, *self.texts, *([self.labels] if self.labels else [])]

    @property
    def schema(self) -> pa.Schema:
        kinds = {name: pa.string() for name in (*self.texts, *self.others)}
        kinds |= {name: pa.list_(pa.string()) for name in self.texts if self.lists}
        pictures = {name: IMAGE for name in (*self.images, self.labels) if name}
        return pa.schema({name: (kinds | pictures)[name] for name in (*self.needed, *self.others)})


LAYOUTS = {
    "pipe": Layout(
        images=("source_img", "target_img"),
        texts=("Instruction_VLM-LLM", "Instruction_Class", "Instruction_Ref_Dataset"),
        others=("object_location", "target_img_dataset", "img_id", "ann_id"),
        blank_texts=True,  # EditAR trains on them too (`empty: keep`)
    ),
    "multigen_depth": Layout(images=("control_depth", "image"), texts=("text",)),
    "cocostuff": Layout(
        images=("control_seg", "image"), texts=("prompt",), labels="panoptic_seg_map", others=("image_path",)
    ),
    "magicbrush": Layout(images=("source_img", "target_img"), texts=("instruction",), others=("img_id",)),
    "ultraedit": Layout(
        images=("source_image", "edited_image"), texts=("edit_prompt",), others=("source_caption", "target_caption")
    ),
    "omniedit": Layout(
        images=("src_img", "edited_img"), texts=("edited_prompt_list",), others=("omni_edit_id", "task"), lists=True
    ),
    "webdataset": Layout(images=("source", "target"), texts=("instruction",), others=("key",)),
}


@dataclass(frozen=True)
class Input:
    """An input parquet file: `path` on this disk or, with `repo` and `commit`, on the hub."""

    name: str
    path: str
    size: int
    repo: str | None = None
    commit: str | None = None

    def open(self) -> pq.ParquetFile:
        """Raises DataError."""
        try:
            if self.repo is None:
                return pq.ParquetFile(self.path, pre_buffer=False, buffer_size=1 << 20)
            from huggingface_hub import HfFileSystem

            return pq.ParquetFile(HfFileSystem().open(f"datasets/{self.repo}@{self.commit}/{self.path}"))
        except Exception as error:  # damaged files and the hub's client raise many types, one meaning
            raise DataError(f"{self.path}: not a readable parquet file ({one_line(error)}); get it anew") from None

    def columns(self) -> list[str]:
        return self.open().schema_arrow.names

    def count(self) -> int:
        return self.open().metadata.num_rows

    def rows(self, columns: list[str], limit: int) -> Iterator[dict[str, Any]]:
        """The first `limit` rows in order; of `columns` those that the file has."""
        file = self.open()
        columns = [name for name in columns if name in file.schema_arrow.names]
        if self.repo is not None:
            yield from islice(stream_rows(self.repo, "train", columns, self.commit, self.path), limit)
            return
        batches = file.iter_batches(ROW_GROUP, columns=columns, use_threads=False)
        try:
            yield from islice((row_of(batch, row) for batch in batches for row in range(len(batch))), limit)
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"{self.path}: damaged ({one_line(error)}); get it anew") from None


@dataclass(frozen=True)
class Unit:
    """One piece of work: the first `rows` rows of an input file -> shards `part-NUMBER-*`."""

    number: int
    input: Input | TarInput
    rows: int
    layout: Layout
    folder: Path
    rows_per_shard: int

    @property
    def name(self) -> str:
        return f"{self.number:05d}"


def prepare_files(request: Request) -> dict[str, Any]:
    layout, folder = LAYOUTS[request.source], request.folder
    inputs = list_inputs(request)
    made_from = request.made_from | {"inputs": [{"name": i.name, "bytes": i.size} for i in inputs]}
    if inputs[0].commit:
        made_from["commit"] = inputs[0].commit
    if manifest := out.start(folder, made_from):
        return manifest
    units = plan_units(request, inputs, layout)
    waiting = [unit for unit in units if out.finished_unit(folder, unit.name) is None]
    total, left = sum(unit.rows for unit in units), sum(unit.rows for unit in waiting)
    with tqdm(total=total, initial=total - left, unit="row", desc=request.source, mininterval=1) as bar:
        for _ in run_units(prepare_unit, waiting, min(request.processes, len(waiting)), bar):
            bar.set_postfix_str(f"{len(list((folder / 'units').glob('*.json')))}/{len(units)} files", refresh=False)
    return collect(folder, made_from, units, layout)


def list_inputs(request: Request) -> list[Input | TarInput]:
    """The chosen parquet files of a folder or of `hf://owner/name[@revision]`, or the tars of a folder, by name."""
    if request.source == "webdataset":
        tars = {tar.name: tar for tar in list_tars(request.origin)}
        return [tars[name] for name in request.choose(list(tars))]
    if request.origin.startswith("hf://"):
        found = list_hub(request.origin)
    else:
        root = Path(request.origin)
        if not root.is_dir():
            raise DataError(f"{root}: no such folder; give the downloaded parquet files or hf://owner/name")
        paths = files_in(root, ".parquet")
        found = [Input(path.relative_to(root).as_posix(), str(path), path.stat().st_size) for path in paths]
    if not found:
        raise DataError(f"{request.origin}: no *.parquet in it; {request.source} is downloaded as parquet files")
    names = of_split([item.name for item in found], request.split, request.origin, whole=request.files == ":")
    chosen = set(request.choose(names))
    return [item for item in found if item.name in chosen]


def list_hub(origin: str) -> list[Input]:
    from huggingface_hub import HfApi

    repo, _, revision = origin.removeprefix("hf://").removeprefix("datasets/").partition("@")
    try:
        info = HfApi().dataset_info(repo, revision=revision or None, files_metadata=True)
    except Exception as error:  # offline, missing, private: the hub's client has many types
        text = f"the hub gives no listing ({one_line(error)}); download it, give the folder"
        raise DataError(f"{origin}: {text}") from None
    files = sorted((s.rfilename, s.size or 0) for s in info.siblings or [] if s.rfilename.endswith(".parquet"))
    return [Input(name, name, size, repo, info.sha) for name, size in files]


def plan_units(request: Request, inputs: list[Input | TarInput], layout: Layout) -> list[Unit]:
    """A unit per file, as far as the limit reaches. Raises DataError for files of another data set."""
    units: list[Unit] = []
    left = math.inf if request.limit is None else request.limit
    for number, item in enumerate(inputs):
        if left == 0:
            break
        known = item.columns()
        if missing := [name for name in layout.needed if name not in known]:
            what = "column" if isinstance(item, Input) else "member for"
            found = f"no {what} {', '.join(missing)}; found {', '.join(known)}"
            raise DataError(f"{item.path}: {found}: is this {request.source}?")
        rows = int(min(left, item.count()))
        left -= rows
        units.append(Unit(number, item, rows, layout, request.folder, request.rows_per_shard))
    return units


def prepare_unit(unit: Unit) -> None:
    """Validate and write the rows of one file; its summary, written last, says that it is done."""
    schema, files = unit.layout.schema, f"shards/part-{unit.name}"
    drops, blank = Drops(), Counter[str]()
    with ShardWriter(unit.folder, files, schema, unit.rows_per_shard, ROW_GROUP) as writer:
        for number, row in enumerate(unit.input.rows(schema.names, unit.rows)):
            try:
                kept = check_row(row, unit.layout)
                writer.add(kept)
                blank.update(name for name in unit.layout.texts if is_blank(kept[name]))
            except Dropped as why:
                drops.add(f"{unit.input.name}#{number}", why)
            tick(1)
        written = writer.close()
    summary = {"files": written, "dropped": dict(drops.counts), "dropped_rows": drops.rows, "blank": blank}
    write_json(out.unit_file(unit.folder, unit.name), summary)


def check_row(row: dict[str, Any], layout: Layout) -> dict[str, Any]:
    """A row as it is kept. Raises Dropped."""
    names = (*layout.texts, *layout.others)
    kept: dict[str, Any] = {name: None if row.get(name) is None else str(row[name]) for name in names}
    for name in layout.texts:
        found = row.get(name)
        items = found or [] if layout.lists else [found]
        if not isinstance(items, list) or not all(isinstance(item, (str, type(None))) for item in items):
            raise Dropped("text is no text", f"{name} is {found!r}"[:200])
        if layout.lists:
            kept[name] = [item for item in items if (item or "").strip()]
    if lost := [name for name in layout.needed if name in row.get("missing", ())]:
        raise Dropped("missing member", f"{row['key']} has no {', '.join(lost)}")
    if "unreadable" in row:
        raise Dropped("text is not UTF-8", row["unreadable"])
    if not layout.blank_texts and all(is_blank(kept[name]) for name in layout.texts):
        raise Dropped("no text")
    for name in layout.images:
        value = row[name] if isinstance(row[name], dict) else {"bytes": row[name], "path": None}
        check_image(value.get("bytes"), name)
        kept[name] = {"bytes": value["bytes"], "path": value.get("path")}
    if layout.labels:
        kept[layout.labels] = {"bytes": check_labels(row[layout.labels]), "path": None}
    return kept


def is_blank(text: str | list[str] | None) -> bool:
    return not (text.strip() if isinstance(text, str) else text)


def check_labels(value: Any) -> bytes:
    """A label map -> PNG. Raises Dropped."""
    try:
        labels = label_map(value)
    except DataError as error:
        raise Dropped("unreadable label map", str(error)) from None
    if unknown := np.setdiff1d(labels, [*range(CLASSES), 255]).tolist():
        raise Dropped("unknown label ids", f"{unknown[:5]}; known are 0..{CLASSES - 1} and 255")
    return encode_image(labels)


def collect(folder: Path, made_from: dict[str, Any], units: list[Unit], layout: Layout) -> dict[str, Any]:
    """The summaries of all units as one manifest."""
    files: list[dict[str, Any]] = []
    drops, blank = Drops(), Counter[str]()
    for unit in units:
        summary = out.finished_unit(folder, unit.name)
        assert summary is not None
        files += summary["files"]
        drops.counts.update(summary["dropped"])
        drops.rows += summary["dropped_rows"]
        blank.update(summary["blank"])
    rows = partial(listed_table, folder, files, list(layout.images), "")
    return out.finish_folder(folder, made_from, files, drops, layout.images, rows, blank=dict(sorted(blank.items())))
