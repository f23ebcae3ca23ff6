"""Rows of the public schemas -> Pair.

Wording and quirks follow EditAR's data sets (TokenAR `dataset/`) unless the source's config says
otherwise; every switch is described at `SourceConfig`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch.utils.data import ConcatDataset

from editar.conditions import colour_labels
from editar.config import CONFIG_DIR, DataConfig, SourceConfig, read_yaml
from editar.data.codes import stored_manifest
from editar.data.folder import FolderTable
from editar.data.mixture import Mixture
from editar.data.nano.pairs import NanoPairs
from editar.data.nano.world import NanoWorld
from editar.data.sample import BadRow, EditSample, Pair, Texts
from editar.data.tables import label_map, open_table
from editar.errors import DataError, ImageError
from editar.images import load_image

PIPE_TEXTS = ("Instruction_VLM-LLM", "Instruction_Class", "Instruction_Ref_Dataset")
Row = dict[str, Any]


def picture(row: Row, column: str, images: str = "upright") -> Image.Image:
    """An image column, as raw bytes or as an undecoded struct -> RGB picture (`SourceConfig.images`)."""
    value = row.get(column)
    data = value.get("bytes") if isinstance(value, dict) else value
    if not isinstance(data, bytes) or not data:
        raise BadRow(f"{column} holds no image bytes")
    try:
        return load_image(data, name=column, official=images == "official")
    except ImageError as error:
        raise BadRow(str(error)) from None


def text(row: Row, column: str) -> str:
    value = row.get(column)
    if not isinstance(value, str) or not value.strip():
        raise BadRow(f"{column} is empty")
    return value


def wordings(row: Row, column: str) -> list[str]:
    """The texts of a column that holds one or a list of them."""
    value = row.get(column)
    if not isinstance(value, list):
        return [text(row, column)]
    if not (found := [item for item in value if isinstance(item, str) and item.strip()]):
        raise BadRow(f"{column} is empty")
    return found


def pipe(row: Row, id: str, cfg: SourceConfig) -> Pair:
    """paint-by-inpaint/PIPE: the source lacks an object that the target has."""
    source, target = (picture(row, name, cfg.images) for name in ("source_img", "target_img"))
    return Pair(id, "pipe", source, target, pipe_texts(row, cfg))


def pipe_texts(row: Row, cfg: SourceConfig) -> Texts:
    columns = [(row.get(name) or "").strip() for name in PIPE_TEXTS]
    if cfg.wording == "official":
        written = [value for value in columns if value]
        place = (row.get("object_location") or "").strip()
        # Four copies, one with the place: a uniform choice then adds it in a quarter of the draws.
        at = f" at {place}" if place else ""
        forward = [text for value in written for text in (value, value, value, value + at)]
    else:
        # Not stripped: EditAR feeds the column as it is, also when it is empty (`empty: keep`).
        first = row.get(PIPE_TEXTS[0]) or ""
        forward = [first] if first.strip() or cfg.empty == "keep" else []
        if not forward and cfg.empty == "other":
            forward = [value for value in columns if value][:1]
    if not forward:
        raise BadRow("every instruction column is empty" if cfg.empty != "drop" else f"{PIPE_TEXTS[0]} is empty")
    reversible = [value for value in forward if cfg.removal == "editar" or value[:4].lower() == "add "]
    return Texts(tuple(forward), tuple(remove_instruction(value) for value in reversible), cfg.backward)


def remove_instruction(text: str) -> str:
    """The instruction of a PIPE pair used backwards, target -> source.

    Quirk of the official code: the first four characters are cut whatever they are, so "Add a cat"
    becomes "Remove a cat" but "Insert 2 birds" becomes "Remove rt 2 birds". `removal: guarded` asks
    only texts that begin with "Add".
    """
    return "Remove " + text[4:]


# Data sets of one text and two picture columns: target, text, source (none: edges of the target).
PLAIN_COLUMNS = {
    "seed_unsplash": ["target_image", "instruction", "source_image"],  # SEED-Data-Edit Part 1; captions are not used
    "multigen_depth": ["image", "text", "control_depth"],
    "multigen_canny": ["image", "text"],  # of the depth set, whose depth map is not read (EditAR)
    "magicbrush": ["target_img", "instruction", "source_img"],
    "ultraedit": ["edited_image", "edit_prompt", "source_image"],
    "omniedit": ["edited_img", "edited_prompt_list", "src_img"],  # several wordings, one of which is drawn
    "webdataset": ["target", "instruction", "source"],  # as scripts/prepare_data.py names KEY.tgt, KEY.txt, KEY.src
    "folder": ["target", "instruction", "source"],  # `pairs.jsonl` beside the pictures (`editar.data.folder`)
}


def official_prompt(name: str) -> str:
    """The sentence of a data set, with {} for the caption, as `configs/source/NAME.yaml` has it from EditAR."""
    return read_yaml(CONFIG_DIR / "source" / f"{name}.yaml").get("prompt", SourceConfig().prompt)


def plain_pair(row: Row, id: str, cfg: SourceConfig) -> Pair:
    target, words, *source = PLAIN_COLUMNS[cfg.kind]
    instructions = tuple(cfg.prompt.replace("{}", wording) for wording in wordings(row, words))
    first = picture(row, source[0], cfg.images) if source else None
    more = tuple(picture({"reference": one}, "reference", cfg.images) for one in row.get("references", ()))
    return Pair(id, cfg.kind, first, picture(row, target, cfg.images), Texts(instructions), cfg.canny.operator, more)


def cocostuff(row: Row, id: str, cfg: SourceConfig) -> Pair:
    """limingcv/Captioned_COCOStuff: coloured label map -> photograph. Their stored sizes may differ: each is
    resized and cropped by itself, as officially."""
    if cfg.condition == "labels":
        source = Image.fromarray(colour_labels(label_map(row["panoptic_seg_map"]), label_palette()))
    else:
        source = picture(row, "control_seg", cfg.images)
    target = picture(row, "image", cfg.images)
    return Pair(id, "cocostuff", source, target, Texts((cfg.prompt.replace("{}", text(row, "prompt")),)))


def label_palette() -> np.ndarray:
    """171 distinct colours, (171, 3) uint8: bits of id + 1 spread over the channels from the highest
    down (the rule of PASCAL VOC's colour map), so black stays free for "ignore"."""
    ids = np.arange(1, 172)[:, None]  # bit 3 b + c of an id is bit 7 - b of its channel c
    bits = [((ids >> 3 * bit + np.arange(3)) & 1) << (7 - bit) for bit in range(8)]
    return np.sum(bits, axis=0).astype(np.uint8)


def nano(row: EditSample, id: str, cfg: SourceConfig) -> Pair:
    """A sample of the procedural world is its own row."""
    texts = Texts((cfg.prompt.replace("{}", row.instruction),))
    more = tuple(map(Image.fromarray, row.more))
    return Pair(id, row.task, Image.fromarray(row.source), Image.fromarray(row.target), texts, more=more)


NANO_WORLDS: dict[str, type[NanoWorld]] = {"nano": NanoWorld, "nano_pairs": NanoPairs}
READERS: dict[str, Callable[[Any, str, SourceConfig], Pair]] = {
    "nano": nano,
    "nano_pairs": nano,
    "pipe": pipe,
    "cocostuff": cocostuff,
    **dict.fromkeys(PLAIN_COLUMNS, plain_pair),
}


def columns(cfg: SourceConfig) -> list[str]:
    """What a source reads of its table."""
    if cfg.kind == "cocostuff":
        return ["image", "prompt", "control_seg" if cfg.condition == "control_seg" else "panoptic_seg_map"]
    if cfg.kind == "pipe":
        return ["source_img", "target_img", *PIPE_TEXTS, "object_location"]
    return PLAIN_COLUMNS[cfg.kind]


def heldout_rows(rows: int, data: DataConfig) -> int:
    """How many of a source's last rows are kept from training: an even share of `data.heldout_samples`, at most every
    tenth row, at least one."""
    return min(-(-data.heldout_samples // len(data.sources)), max(1, rows // 10))


class Source:
    """A configured data set with random access: `source.pair(row)` -> Pair, or BadRow.

    Rows [0, len) are for training, `heldout` more follow for validation (nano: another split).
    """

    def __init__(self, name: str, cfg: SourceConfig, data: DataConfig) -> None:
        self.name, self.cfg = name, cfg
        self.table: Any = None  # stays None where only the codes are at hand
        if cfg.kind in NANO_WORLDS:
            self.heldout = -(-data.heldout_samples // len(data.sources))
            world = NANO_WORLDS[cfg.kind]
            train = world("train", data.train_samples, data.seed, data.shape_counts)
            self.table = ConcatDataset([train, world("heldout", self.heldout, data.seed)])
            counts = "".join(str(count) for count in data.shape_counts)
            self.revision = f"{cfg.kind}-{data.seed}-{data.train_samples}-{self.heldout}-{counts}"
            self.size = data.train_samples
            return
        try:
            table = FolderTable(str(cfg.path)) if cfg.kind == "folder" else open_table(str(cfg.path), columns(cfg))
            self.table, self.revision, rows = table, table.revision, len(table)
            if isinstance(table, FolderTable) and table.images > data.images:
                raise DataError(
                    f"{cfg.path} has edits of {table.images} pictures, this run reads data.images={data.images}"
                )
        except DataError as error:
            stored = stored_manifest(data.cache, name)
            if stored is None or (cfg.kind == "folder" and Path(str(cfg.path)).is_dir()):
                raise DataError(f"data.sources.{name}: {error}, or drop the source with ~data.sources.{name}") from None
            self.revision, rows = stored.revision, stored.rows
        if rows < 2:
            raise DataError(f"data.sources.{name}: {cfg.path} has {rows} rows; 2 are needed, one is held out")
        self.heldout = heldout_rows(rows, data)
        self.size = rows - self.heldout

    def __len__(self) -> int:
        """Training rows."""
        return self.size

    def row_id(self, row: int) -> str:
        return f"{self.name}/{row}"

    def pair(self, row: int) -> Pair:
        """Row in [0, len + heldout)."""
        if self.table is None:
            raise DataError(f"data.sources.{self.name}: {self.cfg.path} is not here, only its codes are")
        return READERS[self.cfg.kind](self.table[row], self.row_id(row), self.cfg)


def mixture_of(sources: dict[str, Source], seed: int) -> Mixture:
    """Which row of which source each draw of the training is."""
    return Mixture({n: s.cfg.weight for n, s in sources.items()}, {n: len(s) for n, s in sources.items()}, seed)


def open_sources(data: DataConfig) -> dict[str, Source]:
    if not data.sources:
        raise DataError("data.sources is empty; choose a mixture with data=nano or data=editar")
    return {name: Source(name, cfg, data) for name, cfg in data.sources.items()}
