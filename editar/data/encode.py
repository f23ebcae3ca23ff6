"""Filling the codes cache: rows in workers, codes on the device, one shard at a time.

Shards are divided among the ranks, and each gets its name when it is whole. So a killed job goes on where it
stopped, and the bytes do not depend on ranks, workers or interruptions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from editar.config import TrainConfig
from editar.data import codes
from editar.data.codes import SCHEMA, SHARD_ROWS, CacheManifest, CodesCache
from editar.data.sample import BadRow, resize_pair
from editar.data.sources import Source
from editar.errors import ConfigError
from editar.images import batch_to_tensor, encode_image
from editar.models.teacher import Teacher
from editar.models.vq import VQModel
from editar.runtime.device import usable_workers
from editar.runtime.distributed import Ranks
from editar.runtime.files import atomic, write_json
from editar.runtime.log import say

BATCH = 32  # pairs encoded at once


class RawRows(Dataset[dict[str, Any]]):
    """Rows of SCHEMA, whose source and target are still pictures, (k, size, size, 3) and (size, size, 3) uint8; made in
    a worker."""

    def __init__(self, source: Source, rows: range, size: int, pack: Callable[[np.ndarray], bytes]) -> None:
        self.source, self.rows, self.size, self.pack = source, rows, size, pack

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        blank: dict[str, Any] = dict.fromkeys(SCHEMA.names)
        try:
            pair = self.source.pair(self.rows[index])
            source, target = resize_pair(pair, self.size)
        except BadRow as error:
            return blank | {"id": self.source.row_id(self.rows[index]), "bad": str(error)}
        backward = list(pair.texts.reversed_instructions)
        return blank | {
            "id": pair.id,
            "task": pair.task,
            "source": source,
            "target": target,
            "forward": list(pair.texts.instructions),
            "backward": backward,
            "source_picture": self.pack(source[0]) if backward else None,
            "target_picture": self.pack(target),
        }


def pack_prepared(prepare: Callable[[np.ndarray], np.ndarray], picture: np.ndarray) -> bytes:
    """(H, W, 3) uint8 -> PNG of what the teacher is about to see."""
    return encode_image(prepare(picture))


def expected_manifest(cfg: TrainConfig, source: Source, checksum: str) -> CacheManifest:
    """What `source`'s cache must have been made of under this config."""
    features = f"{cfg.teacher.identity}:{cfg.gpt.teacher_grid or cfg.gpt.grid // 2}"
    pictures = f"exact:{cfg.teacher.identity}" if cfg.data.cache_pictures == "exact" else codes.JPEG
    if cfg.teacher.name == "none" or cfg.data.cache_features:  # no picture is read: any will do
        found = codes.stored_manifest(cfg.data.cache, source.name)
        pictures = found.pictures if found else codes.JPEG
    return CacheManifest(
        source=source.name,
        revision=source.revision,
        texts=codes.texts_key(source.cfg),
        rows=len(source) + source.heldout,
        tokenizer=checksum,
        image_size=cfg.image_size,
        grid=cfg.gpt.grid,
        features=features if cfg.data.cache_features else "",
        pictures=pictures,
    )


def open_cache(cfg: TrainConfig, source: Source, checksum: str) -> CodesCache:
    folder = Path(str(cfg.data.cache)) / source.name
    return CodesCache(
        folder, expected_manifest(cfg, source, checksum), source.cfg.backward, cfg.tokenizer.codebook_size
    )


def build_cache(
    cfg: TrainConfig, source: Source, tokenizer: VQModel, checksum: str, teacher: Teacher | None, ranks: Ranks
) -> None:
    """Write this rank's share of the shards that `source`'s cache still lacks."""
    folder = Path(str(cfg.data.cache)) / source.name
    wanted = expected_manifest(cfg, source, checksum)
    if wanted.features and source.cfg.backward > 0:
        raise ConfigError(f"data.cache_features=true cannot hold {source.name}, whose pairs are used backwards too")
    pack: Callable[[np.ndarray], bytes] = codes.pack_picture
    if wanted.pictures != codes.JPEG:
        if teacher is None:
            raise ConfigError(f"{folder} keeps pictures {wanted.pictures}; give that teacher to go on")
        pack = partial(pack_prepared, teacher.prepare)
    teacher = teacher if wanted.features else None
    found = wanted.read(folder)
    ranks.barrier()  # every rank must have listed what is missing before any writes
    if found is None and ranks.is_main:
        write_json(folder / "manifest.json", asdict(wanted))
    todo = [k for k in range(wanted.shards) if not wanted.has_shard(folder, k)]
    mine = todo[ranks.rank :: ranks.size]
    if todo and ranks.is_main:
        say(f"{source.name}: encoding {len(todo)} of {wanted.shards} shards ({wanted.rows} rows) into {folder}")
    rows = sum(min(SHARD_ROWS, wanted.rows - k * SHARD_ROWS) for k in mine)
    with tqdm(total=rows, desc=source.name, unit="row", mininterval=2, disable=not (mine and ranks.is_main)) as bar:
        for shard in mine:
            last = min((shard + 1) * SHARD_ROWS, wanted.rows)
            dataset = RawRows(source, range(shard * SHARD_ROWS, last), cfg.image_size, pack)
            records: list[dict[str, Any]] = []
            for batch in DataLoader(
                dataset, batch_size=BATCH, collate_fn=list, num_workers=usable_workers(cfg.num_workers)
            ):
                encode([row for row in batch if row["bad"] is None], tokenizer, teacher, ranks.device)
                records += batch
                bar.update(len(batch))
            write_shard(records, codes.shard_path(folder, shard))
    ranks.barrier()


def encode(rows: list[dict[str, Any]], tokenizer: VQModel, teacher: Teacher | None, device: torch.device) -> None:
    """Put codes in place of the pictures of `rows`, and the teacher's features beside them."""
    if not rows:
        return
    pictures = np.concatenate([part for row in rows for part in (row["source"], row["target"][None])])
    found = tokenizer.encode(batch_to_tensor(pictures).to(device)).cpu().numpy().astype(np.uint16)
    ends = np.cumsum([len(row["source"]) + 1 for row in rows])
    packed: Iterable[bytes | None] = [None] * len(rows)
    if teacher is not None:
        seen = torch.from_numpy(np.stack([teacher.prepare(row["target"]) for row in rows]))
        packed = map(codes.pack_features, teacher(seen).cpu().numpy())
    for row, of_row, features in zip(rows, np.split(found, ends[:-1]), packed, strict=True):
        row |= {"source": of_row[:-1].tobytes(), "target": of_row[-1].tobytes(), "features": features}


def write_shard(records: list[dict[str, Any]], path: Path) -> None:
    table = pa.Table.from_pylist(records, schema=SCHEMA)
    with atomic(path) as partial:
        options = {"compression": "none", "use_dictionary": False, "write_page_checksum": True}
        pq.write_table(table, partial, row_group_size=codes.GROUP_ROWS, **options)
