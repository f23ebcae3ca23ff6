"""Edit many pictures into a folder: of a folder with one instruction, or of a list with one each. Restartable.

Every result is a PNG that carries a checksum of what made it: weights, settings, instruction and source. A second start
keeps results with the same checksum, and refuses to replace others unless `overwrite=true`.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from editar.config import EditConfig
from editar.errors import ConfigError, DataError, ImageError, UserError
from editar.generation.editors import describe_model
from editar.generation.manifest import read_stamp, save_stamped, spoilt
from editar.images import load_image
from editar.runtime.files import checksum, parse_json, read_bytes, some
from editar.runtime.log import say
from editar.sampling.fit import fit_picture
from editar.sampling.pipeline import EditPipeline


@dataclass(frozen=True)
class ListedEdit:
    """One edit of the list and the file that it makes (of sample i: NAME_i.png where there are several)."""

    image: Path
    instruction: str | None
    mask: Path | None
    output: Path

    def files(self, samples: int) -> list[Path]:
        names = [f"_{i}" if samples > 1 else "" for i in range(samples)]
        return [self.output.with_name(f"{self.output.stem}{name}.png") for name in names]


def edit_many(cfg: EditConfig, pipeline: EditPipeline) -> list[Path]:
    """Returns all files. A picture that cannot be read is named and left out; raises ImageError at the end if there
    was one, ConfigError before the first edit if a result of other settings is in the way."""
    edits = read_edits(cfg)
    check_sources_stay(edits, cfg)
    names = ("fit", "region", "mask_dilate", "num_samples", "int8")
    made_with = describe_model(pipeline, cfg.checkpoint, cfg.lora) | {name: getattr(cfg, name) for name in names}
    stamps = {edit: stamp_of(edit, made_with) for edit in edits if edit.image.is_file()}
    todo = [edit for edit in edits if not is_made(edit, stamps.get(edit), cfg)]
    if len(todo) < len(edits):
        say(f"{len(edits) - len(todo)} of {len(edits)} edits are there already")
    failed: list[str] = []
    with tqdm(total=len(todo), desc=f"editing into {cfg.output}", unit="picture") as bar:
        for part in _parts(todo, max(1, pipeline.batch_size // cfg.num_samples)):
            opened = [
                (edit, found) for edit in part if (found := open_or_note(edit, cfg, pipeline, failed)) is not None
            ]
            for (edit, _), results in zip(opened, edit_batch(cfg, pipeline, opened), strict=True):
                for file, result in zip(edit.files(cfg.num_samples), results, strict=True):
                    save_stamped(np.asarray(result), file, stamps[edit])
            bar.update(len(part))
    if failed:
        raise ImageError(f"{len(failed)} of {len(edits)} pictures were left out: {some(failed, 3, '; ')}")
    return [file for edit in edits for file in edit.files(cfg.num_samples)]


def read_edits(cfg: EditConfig) -> list[ListedEdit]:
    """The edits that the settings name. Raises ConfigError or DataError."""
    out = Path(cfg.output)
    if out.suffix or out.is_file():
        raise ConfigError(f"output={cfg.output}: many edits go into a folder; give output=FOLDER")
    if cfg.edits is not None:
        return list(read_lines(Path(cfg.edits), out))
    if cfg.mask is not None:
        raise ConfigError("a mask belongs to one picture; of many, give edits=FILE.jsonl with a mask in each line")
    known = Image.registered_extensions()
    pictures = sorted(path for path in Path(str(cfg.image)).iterdir() if path.suffix.lower() in known)
    if not pictures:
        raise DataError(f"{cfg.image}: no pictures in this folder")
    return distinct([ListedEdit(path, cfg.instruction, None, out / f"{path.stem}.png") for path in pictures])


def check_sources_stay(edits: list[ListedEdit], cfg: EditConfig) -> None:
    """Raises ConfigError where a result would replace a picture or mask that is read."""
    read = {os.path.realpath(path): path for edit in edits for path in (edit.image, edit.mask) if path is not None}
    for file in (file for edit in edits for file in edit.files(cfg.num_samples)):
        if (source := read.get(os.path.realpath(file))) is not None:
            raise ConfigError(f"{source} is read, and never replaced; give another output=FOLDER")


def read_lines(listing: Path, out: Path) -> list[ListedEdit]:
    """The edits of a JSONL file; results are called after the line's number and the picture."""
    try:
        lines = read_bytes(listing).decode("utf-8-sig").split("\n")
    except (OSError, ValueError) as error:
        raise DataError(f"{listing}: {error}; give a UTF-8 file with a JSON object in every line") from None
    edits = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        row = _row(line, f"{listing} line {number}")
        mask = row.get("mask")
        image = listing.parent / row["image"]
        output = out / f"{number:04d}_{image.stem}.png"
        edits.append(ListedEdit(image, row["instruction"], None if mask is None else listing.parent / mask, output))
    if not edits:
        raise DataError(f"{listing}: no edits in this file")
    return edits


def _row(line: str, where: str) -> dict[str, Any]:
    try:
        row = parse_json(line)
    except ValueError as error:
        raise DataError(f"{where}: not JSON ({error}); write one object per line") from None
    texts = isinstance(row, dict) and [
        isinstance(row.get(key), str) and row[key].strip() for key in ("image", "instruction")
    ]
    if not texts or not all(texts) or not isinstance(row.get("mask"), (str, type(None))):
        raise DataError(f"{where}: needs image and instruction as texts, and mask as one or not at all")
    if unknown := sorted(set(row) - {"image", "instruction", "mask"}):
        raise DataError(f"{where}: unknown {', '.join(unknown)}; known are image, instruction, mask")
    return row


def distinct(edits: list[ListedEdit]) -> list[ListedEdit]:
    """Raises DataError when two pictures would make one file (a.png and a.jpg)."""
    seen: dict[Path, ListedEdit] = {}
    for edit in edits:
        if (other := seen.setdefault(edit.output, edit)) is not edit:
            raise DataError(f"{other.image} and {edit.image} would both make {edit.output}; rename one")
    return edits


def stamp_of(edit: ListedEdit, made_with: dict[str, Any]) -> str:
    parts = {"image": checksum(edit.image), "instruction": edit.instruction}
    parts["mask"] = checksum(edit.mask) if edit.mask is not None and edit.mask.is_file() else None
    return hashlib.sha256(json.dumps(made_with | parts, sort_keys=True).encode()).hexdigest()


def is_made(edit: ListedEdit, stamp: str | None, cfg: EditConfig) -> bool:
    """Whether the edit's files are whole and made by this command. Raises ConfigError for files of something else."""
    there = [file for file in edit.files(cfg.num_samples) if file.exists() and not spoilt(file)]
    for file in there:
        if read_stamp(file) != stamp and not cfg.overwrite:
            raise ConfigError(f"{file} was made from something else; give another output=... or overwrite=true")
    return len(there) == cfg.num_samples and all(read_stamp(file) == stamp for file in there)


def open_or_note(edit: ListedEdit, cfg: EditConfig, pipeline: EditPipeline, failed: list[str]) -> Image.Image | None:
    """The picture; None after a note for one that cannot be edited: damaged, or with an unfit mask or region."""
    try:
        picture = load_image(edit.image)
        fit_picture(picture, pipeline.cfg.image_size, cfg.fit, cfg.square(), edit.mask)
        return picture
    except UserError as error:
        failed.append(str(error) if isinstance(error, ImageError) else f"{edit.image}: {error}")
        say(failed[-1])
        return None


def edit_batch(
    cfg: EditConfig, pipeline: EditPipeline, opened: list[tuple[ListedEdit, Image.Image]]
) -> list[list[Image.Image]]:
    """Of each edit its results."""
    if not opened:
        return []
    results = pipeline(
        [picture for _, picture in opened],
        [edit.instruction for edit, _ in opened],
        num_samples=cfg.num_samples,
        mask=[edit.mask for edit, _ in opened] if any(edit.mask for edit, _ in opened) else None,
        mask_dilate=cfg.mask_dilate,
        fit=cfg.fit,
        region=cfg.square(),
    )
    return [results[i : i + cfg.num_samples] for i in range(0, len(results), cfg.num_samples)]


def _parts(items: list[ListedEdit], size: int) -> Iterator[list[ListedEdit]]:
    return (items[start : start + size] for start in range(0, len(items), size))
