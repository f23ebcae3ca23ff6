"""Filling the codes cache: rows in workers, codes on the device, one shard at a time.

Shards are divided among the ranks, and each gets its name when it is whole. So a killed job goes on where it
stopped, and the bytes do not depend on ranks, workers or interruptions.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from editar.config import TrainConfig
from editar.data.codes import (
    GROUP_ROWS,
    SCHEMA,
    SHARD_ROWS,
    CacheManifest,
    CodesCache,
    pack_features,
    pack_picture,
    shard_path,
    texts_key,
)
from editar.data.sample import BadRow, Texts, resize_pair
from editar.data.sources import Source
from editar.errors import ConfigError
from editar.images import batch_to_tensor
from editar.models.teacher import Teacher
from editar.models.vq import VQModel
from editar.runtime.distributed import Ranks
from editar.runtime.files import atomic, write_json
from editar.runtime.log import say

BATCH = 32  # pairs encoded at once


@dataclass(frozen=True)
class LoadedRow:
    """A row before the tokenizer: source and target (size, size, 3) uint8, or why there are none."""

    id: str
    bad: str | None
    task: str = ""
    source: np.ndarray | None = None
    target: np.ndarray | None = None
    texts: Texts | None = None


class RowPictures(Dataset[LoadedRow]):
    """Row r of a source, read and resized in a worker."""

    def __init__(self, source: Source, rows: range, size: int) -> None:
        self.source, self.rows, self.size = source, rows, size

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> LoadedRow:
        row = self.rows[index]
        try:
            pair = self.source.pair(row)
            source, target = resize_pair(pair, self.size)
        except BadRow as error:
            return LoadedRow(self.source.row_id(row), str(error))
        return LoadedRow(pair.id, None, pair.task, source, target, pair.texts)


def tokenizer_checksum(tokenizer: VQModel) -> str:
    """16 hex digits over the weights, whatever file they came from."""
    digest = hashlib.sha256()
    for name, value in sorted(tokenizer.state_dict().items()):
        if name != "quantize.codebook_used":  # a statistic of the tokenizer's own training
            digest.update(value.detach().cpu().float().numpy().tobytes())
    return digest.hexdigest()[:16]


def expected_manifest(cfg: TrainConfig, source: Source, checksum: str) -> CacheManifest:
    """What `source`'s cache must have been made of under this config."""
    return CacheManifest(
        source=source.name,
        revision=source.revision,
        texts=texts_key(source.cfg),
        rows=len(source) + source.heldout,
        tokenizer=checksum,
        image_size=cfg.image_size,
        grid=cfg.gpt.grid,
        features=f"{cfg.teacher.name}:{cfg.gpt.teacher_grid or cfg.gpt.grid // 2}" if cfg.data.cache_features else "",
    )


def open_cache(cfg: TrainConfig, source: Source, checksum: str) -> CodesCache:
    folder = Path(str(cfg.data.cache)) / source.name
    return CodesCache(folder, expected_manifest(cfg, source, checksum), source.cfg.backward)


def build_cache(
    cfg: TrainConfig, source: Source, tokenizer: VQModel, checksum: str, teacher: Teacher | None, ranks: Ranks
) -> None:
    """Write this rank's share of the shards that `source`'s cache still lacks."""
    folder = Path(str(cfg.data.cache)) / source.name
    wanted = expected_manifest(cfg, source, checksum)
    if wanted.features and source.cfg.backward > 0:
        raise ConfigError(f"data.cache_features=true cannot hold {source.name}, whose pairs are used backwards too")
    found = wanted.read(folder)
    ranks.barrier()  # every rank must have listed what is missing before any writes
    if found is None and ranks.is_main:
        write_json(folder / "manifest.json", asdict(wanted))
    todo = [k for k in range(wanted.shards) if not shard_path(folder, k).is_file()]
    mine = todo[ranks.rank :: ranks.size]
    if todo and ranks.is_main:
        say(f"{source.name}: encoding {len(todo)} of {wanted.shards} shards ({wanted.rows} rows) into {folder}")
    rows = sum(min(SHARD_ROWS, wanted.rows - k * SHARD_ROWS) for k in mine)
    with tqdm(total=rows, desc=source.name, unit="row", mininterval=2, disable=not (mine and ranks.is_main)) as bar:
        for shard in mine:
            last = min((shard + 1) * SHARD_ROWS, wanted.rows)
            dataset = RowPictures(source, range(shard * SHARD_ROWS, last), cfg.image_size)
            records: list[dict[str, Any]] = []
            for batch in read(dataset, cfg.num_workers):
                records += encode(batch, tokenizer, teacher if wanted.features else None, ranks.device)
                bar.update(len(batch))
            write_shard(records, shard_path(folder, shard))
    ranks.barrier()


def read(dataset: RowPictures, workers: int) -> Iterator[list[LoadedRow]]:
    yield from DataLoader(dataset, batch_size=BATCH, collate_fn=list, num_workers=workers)  # type: ignore[misc]


def encode(
    batch: list[LoadedRow], tokenizer: VQModel, teacher: Teacher | None, device: torch.device
) -> list[dict[str, Any]]:
    """Rows of SCHEMA, in order."""
    good = [row for row in batch if row.bad is None]
    blank: dict[str, Any] = dict.fromkeys(SCHEMA.names)
    if not good:
        return [blank | {"id": row.id, "bad": row.bad} for row in batch]
    sources, targets = (
        batch_to_tensor(np.stack([getattr(row, name) for row in good])).to(device) for name in ("source", "target")
    )
    both = tokenizer.encode(torch.cat([sources, targets])).cpu().numpy().astype(np.uint16)  # (2B, N)
    features = None if teacher is None else teacher(targets).cpu().numpy()
    encoded = {}
    for index, row in enumerate(good):
        assert row.source is not None and row.target is not None and row.texts is not None
        encoded[row.id] = {
            "id": row.id,
            "task": row.task,
            "source": both[index].tobytes(),
            "target": both[len(good) + index].tobytes(),
            "forward": list(row.texts.instructions),
            "backward": list(row.texts.reversed_instructions),
            "source_picture": pack_picture(row.source) if row.texts.reversed_instructions else None,
            "target_picture": pack_picture(row.target),
            "features": None if features is None else pack_features(features[index]),
        }
    return [blank | encoded.get(row.id, {"id": row.id, "bad": row.bad}) for row in batch]


def write_shard(records: list[dict[str, Any]], path: Path) -> None:
    table = pa.Table.from_pylist(records, schema=SCHEMA)
    with atomic(path) as partial:
        pq.write_table(table, partial, row_group_size=GROUP_ROWS, compression="none", use_dictionary=False)
