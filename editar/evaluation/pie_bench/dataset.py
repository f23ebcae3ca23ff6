"""PIE-Bench (cure-lab/PnPInversion): 700 pictures with instruction, captions and edit mask.

    ROOT/mapping_file.json
    ROOT/annotation_images/<edit type>/[<origin>/<subject>/]<id>.jpg     512x512

Nothing here scores; `editar.evaluation.pie_bench.metrics` does. Quirks of the official evaluator
(evaluation/evaluate.py of that repository) that act on files are kept here:
  mask frame      the outermost rows and columns always count as edited (`decode_mask`)
  mask clipping   a run that leaves the picture is cut at its end (`decode_mask`)
  result strips   a result that is not square is cut to its bottom-right 512x512; only strips of 512x512
                  pictures are accepted, the official evaluator cuts anything (`load_result`)
  brackets        "[" and "]" are taken out of the captions before CLIP reads them (`plain_caption`)
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from editar.errors import BenchmarkError, one_line
from editar.generation.result_folder import check_once
from editar.images import load_image
from editar.metrics.pictures import SIZE, load_square
from editar.runtime.files import parse_json, read_bytes

MAPPING, PICTURES = "mapping_file.json", "annotation_images"

# editing_type_id -> (name, pictures in the complete benchmark)
EDIT_TYPES = {
    0: ("random", 140),
    1: ("change object", 80),
    2: ("add object", 80),
    3: ("delete object", 80),
    4: ("change content", 40),
    5: ("change pose", 40),
    6: ("change color", 40),
    7: ("change material", 40),
    8: ("change background", 80),
    9: ("change style", 80),
}
ORIGINS = {"1_artificial": "artificial", "2_natural": "natural"}
SUBJECTS = {"1_animal": "animal", "2_human": "human", "3_indoor": "indoor", "4_outdoor": "outdoor"}
FIELDS = ("image_path", "original_prompt", "editing_prompt", "editing_instruction", "editing_type_id", "mask")
# Fields of PIE-Bench++ (UB-CVML-Group/PIE_Bench_pp), which has no instructions and rewritten targets.
PLUS_PLUS_FIELDS = {"aspect_mapping", "edit_action", "blended_words", "source_prompt", "target_prompt"}
PLUS_PLUS = (
    "this is PIE-Bench++ (UB-CVML-Group/PIE_Bench_pp): it has no editing instructions and rewrites the "
    "targets, so it cannot reproduce the paper's table; ask for PIE-Bench at github.com/cure-lab/PnPInversion"
)


@dataclass(frozen=True)
class PieItem:
    """One picture of the benchmark. `path` is relative to annotation_images; captions keep their
    brackets; `runs` is the stored mask. origin and subject are "" for edit type 0, which has none."""

    id: str
    path: str
    source_caption: str
    target_caption: str
    instruction: str
    edit_type: int
    origin: str
    subject: str
    runs: tuple[int, ...]

    @property
    def edit_name(self) -> str:
        return EDIT_TYPES[self.edit_type][0]

    def mask(self) -> np.ndarray:
        return decode_mask(self.runs)


def load_items(root: str | Path) -> list[PieItem]:
    """The benchmark's entries in the order of its file; pictures are not opened.

    Raises BenchmarkError for a missing or damaged mapping file, an entry without mask or
    instruction, a picture under two ids, and for data sets that are mistaken for PIE-Bench.
    """
    root = Path(root)
    file = root / MAPPING
    if not file.is_file():
        raise BenchmarkError(f"{file}: no such file; {_what_else(root)}")
    try:
        entries = parse_json(read_bytes(file))
    except ValueError as error:  # also numbers of thousands of digits, nesting without end
        raise BenchmarkError(f"{file}: not readable JSON ({one_line(error)})") from None
    if not isinstance(entries, dict) or not entries:
        raise BenchmarkError(f"{file}: must map picture ids to entries")
    if not (root / PICTURES).is_dir():
        raise BenchmarkError(f"{root / PICTURES}: no such folder; it comes with the mapping file")
    items = [_item(file, key, entry) for key, entry in entries.items()]
    check_once(file, {item.id: root / PICTURES / item.path for item in items})
    return items


def incomplete(items: list[PieItem]) -> str | None:
    """What keeps these items from being the 700 pictures of the paper's table, or None."""
    counts = Counter(item.edit_type for item in items)
    wrong = [f"type {t} has {counts[t]} of {count}" for t, (_, count) in EDIT_TYPES.items() if counts[t] != count]
    more = ", ..." if len(wrong) > 2 else ""
    return f"{len(items)} pictures instead of 700 ({', '.join(wrong[:2])}{more})" if wrong else None


def _what_else(root: Path) -> str:
    """A hint at what `root` may be instead."""
    if (root / "mapping_file_ti2i_benchmark.json").is_file():
        return "mapping_file_ti2i_benchmark.json is the TI2I set of 55 pictures, not PIE-Bench"
    if (root / "data" / MAPPING).is_file():
        return f"give {root / 'data'} instead"
    if root.is_dir() and any(root.rglob("*.parquet")):
        return PLUS_PLUS
    return f"give the folder that holds {MAPPING} and {PICTURES}/"


def _item(file: Path, key: str, entry: Any) -> PieItem:
    where = f"{file}: entry {key}"
    if not re.fullmatch(r"[\w-]+", key, re.ASCII):  # it becomes a file name
        raise BenchmarkError(f"{where}: an id has only letters, digits, - and _")
    if not isinstance(entry, dict):
        raise BenchmarkError(f"{where} is not an object")
    missing = [name for name in FIELDS if name not in entry]
    if missing and PLUS_PLUS_FIELDS & set(entry):
        raise BenchmarkError(f"{file}: {PLUS_PLUS}")
    if missing:
        raise BenchmarkError(f"{where} has no {', '.join(missing)}")
    texts = {name: entry[name] for name in FIELDS[:4]}
    if wrong := [name for name, value in texts.items() if not isinstance(value, str)]:
        raise BenchmarkError(f"{where}: {', '.join(wrong)} must be text")
    if not texts["editing_instruction"].strip():
        raise BenchmarkError(f"{where}: editing_instruction is empty; is this PIE-Bench's own mapping file?")
    path = PurePosixPath(entry["image_path"])
    if path.is_absolute() or ".." in path.parts or not path.name:
        raise BenchmarkError(f"{where}: image_path {path} must lie inside {PICTURES}")
    if str(entry["editing_type_id"]) not in map(str, EDIT_TYPES):
        raise BenchmarkError(f"{where}: editing_type_id {entry['editing_type_id']} is not one of 0 to 9")
    captions = (entry["original_prompt"], entry["editing_prompt"], entry["editing_instruction"])
    origin, subject = (next((known[p] for p in path.parts if p in known), "") for known in (ORIGINS, SUBJECTS))
    edit_type, runs = int(entry["editing_type_id"]), _runs(where, entry["mask"])
    return PieItem(key, str(path), *captions, edit_type, origin, subject, runs)


def _runs(where: str, mask: Any) -> tuple[int, ...]:
    """The stored start, length, start, length, ... after a check."""
    if not isinstance(mask, list) or not mask:
        raise BenchmarkError(f"{where}: the mask is empty or not a list; is the download complete?")
    if len(mask) % 2 or any(type(number) is not int or not 0 <= number < 2**31 for number in mask):
        raise BenchmarkError(f"{where}: the mask must be pairs of start and length, whole numbers from 0 to 2**31 - 1")
    if max(mask[::2]) >= SIZE * SIZE:
        raise BenchmarkError(f"{where}: a mask run starts outside of {SIZE}x{SIZE}")
    return tuple(mask)


def decode_mask(runs: tuple[int, ...] | list[int], size: int = SIZE) -> np.ndarray:
    """Runs (start, length, ...) over the row-major picture -> (size, size) bool, True = region to edit.

    Runs are cut at the end of the picture; the outermost rows and columns are set to True, which the
    official evaluator does "to avoid annotation errors in boundary".
    """
    starts, lengths = np.asarray(runs[::2], np.int64), np.asarray(runs[1::2], np.int64)
    steps = np.zeros(size * size + 1, np.int32)
    np.add.at(steps, starts, 1)
    np.add.at(steps, np.minimum(starts + lengths, size * size), -1)
    mask = (np.cumsum(steps[:-1]) > 0).reshape(size, size)
    mask[[0, -1]] = True
    mask[:, [0, -1]] = True
    return mask


def plain_caption(caption: str) -> str:
    """Without the brackets that mark the change (GridAR's evaluator leaves them in)."""
    return caption.replace("[", "").replace("]", "")


def load_source(root: str | Path, item: PieItem) -> np.ndarray:
    """(512, 512, 3) uint8. Raises BenchmarkError or ImageError."""
    return load_square(Path(root) / PICTURES / item.path, SIZE)


def load_result(path: Path) -> np.ndarray:
    """A method's result, (512, 512, 3) uint8; of a strip of pictures the bottom-right one counts.

    Raises BenchmarkError for a picture of another size or a strip of such, ImageError for a damaged one.
    """
    image = load_image(path)
    width, height = image.size
    if (width, height) == (SIZE, SIZE):
        return np.array(image)
    if width == height or width % SIZE or height % SIZE:
        raise BenchmarkError(
            f"{path}: {width}x{height}, this benchmark is scored at {SIZE}x{SIZE}, or strips of such pictures"
        )
    return np.array(image.crop((width - SIZE, height - SIZE, width, height)))
