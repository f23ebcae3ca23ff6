"""Samples per second of the training stream, from 512 px pixels and from cached codes, by workers.

    python benchmarks/data_loading.py --workers 1 2 --json benchmarks/results/data_loading.json

Makes its own data: crops of scikit-image's photographs as 512 px PNG pairs (what MultiGen holds), and a
cache of 1024 + 1024 codes with a 256 px JPEG a row. Eight GPUs at 36 samples/s each read 288 samples/s,
which is 36 samples/s of each of 16 cores at twice that rate.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import statistics
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image
from skimage import data as photos
from tqdm import tqdm

from editar.config import DataConfig, SourceConfig
from editar.data import codes
from editar.data.encode import write_shard
from editar.data.loader import DrawBatchSampler, Reader, TrainStream, batches
from editar.data.mixture import Mixture
from editar.data.sources import Source
from editar.runtime.files import provenance, write_json

NEEDED = 36.0  # samples/s and core
CACHED_ROWS = 8192
CODEBOOK = 16384
MICRO_BATCH = 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--seconds", type=float, default=8.0, help="how long each measurement lasts")
    parser.add_argument("--pictures", type=int, default=192, help="how many are drawn")
    parser.add_argument("--json", help="where to write the figures")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        source = write_pixels(Path(folder), options.pictures)
        cache = write_cache(Path(folder) / "cache", source)
        readers = {"pixels, 512 px PNG": Reader(source, None, 512, np.asarray)}
        for name, in_memory in (("codes, from disk", False), ("codes, in memory", True)):
            for pictures in (True, False):
                stored = codes.CodesCache(cache.folder, cache.manifest, 0.0, CODEBOOK)
                stored.in_memory = in_memory
                codes.OPEN_SHARDS = 1  # as with millions of rows, hardly any shard is open already
                readers[f"{name}, {'with' if pictures else 'no'} teacher picture"] = Reader(
                    source, stored, 512, np.asarray if pictures else None
                )
        rows = [measure(name, reader, n, options.seconds) for name, reader in readers.items() for n in options.workers]
    for row in rows:
        rate = f"{row['samples_per_s']:9.1f} samples/s, {row['of_needed']:.1f} times a core's share"
        print(f"{row['path']:42} {row['workers']} workers {rate} {row['worker_mib']:7.0f} MiB a worker")
    if options.json:
        write_json(options.json, {"made_by": provenance(), "needed_per_core": NEEDED, "rows": rows})


def measure(name: str, reader: Reader, workers: int, seconds: float) -> dict[str, Any]:
    """Median rate over one-second stretches after the first batches."""
    size = len(reader.source) if reader.cache is None else len(reader.cache)
    stream = TrainStream([reader], Mixture({"all": 1.0}, {"all": size}, 0), 0)
    feed = batches(stream, DrawBatchSampler(0, 10**6, 0, 1, MICRO_BATCH, MICRO_BATCH), workers, torch.device("cpu"))
    for _ in range(2 * workers):
        next(feed)
    memory = worker_memory()
    rates, end = [], time.perf_counter() + seconds
    while time.perf_counter() < end:
        start, count = time.perf_counter(), 0
        while time.perf_counter() - start < 1.0:
            count += len(next(feed))
        rates.append(count / (time.perf_counter() - start))
    rate = statistics.median(rates)
    return {
        "path": name,
        "workers": workers,
        "samples_per_s": rate,
        "per_worker": rate / workers,
        "worker_mib": memory,
        "of_needed": rate / workers / NEEDED,
    }


def worker_memory() -> float:
    """Mean private memory of this process's children in MiB (Linux)."""
    sizes = []
    for child in Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split():
        lines = Path(f"/proc/{child}/smaps_rollup").read_text().splitlines()
        sizes.append(sum(int(line.split()[1]) for line in lines if line.startswith("Private_")) / 1024)
    return statistics.mean(sizes)


def write_pixels(folder: Path, count: int) -> Source:
    """A parquet of MultiGen-depth's columns, 512 px PNGs."""
    rng = np.random.default_rng(0)
    pictures = [photos.astronaut(), photos.coffee(), photos.chelsea(), photos.rocket()]
    table = []
    for index in tqdm(range(count), desc="pictures", mininterval=2):
        picture = Image.fromarray(pictures[index % len(pictures)])
        side = int(rng.integers(200, min(picture.size)))
        left, top = (int(rng.integers(0, extent - side)) for extent in picture.size)
        crop = picture.crop((left, top, left + side, top + side)).resize((512, 512), Image.Resampling.BICUBIC)
        table.append({"image": png(crop), "control_depth": png(crop.convert("L").convert("RGB")), "text": "a photo"})
    path = folder / "pixels" / "part-0.parquet"
    path.parent.mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(table), path, row_group_size=8, compression="none")
    cfg = SourceConfig("multigen_depth", path=str(path.parent))
    return Source("pixels", cfg, DataConfig(sources={"pixels": cfg}, heldout_samples=1))


def png(picture: Image.Image) -> dict[str, Any]:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return {"bytes": buffer.getvalue(), "path": None}


def write_cache(folder: Path, source: Source) -> codes.CodesCache:
    rng = np.random.default_rng(0)
    manifest = codes.CacheManifest("pixels", "benchmark", "", CACHED_ROWS, "random", 512, 32)
    jpegs = [codes.pack_picture(np.asarray(source.pair(row).target)) for row in range(min(32, len(source)))]
    for shard in range(manifest.shards):
        records = [
            {
                "id": f"pixels/{row}",
                "task": "pixels",
                "source": rng.integers(0, CODEBOOK, 1024, np.uint16).tobytes(),
                "target": rng.integers(0, CODEBOOK, 1024, np.uint16).tobytes(),
                "forward": ["a photograph of something that stands in front of something else"],
                "backward": [],
                "target_picture": jpegs[row % len(jpegs)],
            }
            for row in range(shard * codes.SHARD_ROWS, min((shard + 1) * codes.SHARD_ROWS, manifest.rows))
        ]
        write_shard(records, codes.shard_path(_made(folder / "pixels"), shard))
    (folder / "pixels" / "manifest.json").write_text(json.dumps(asdict(manifest)))
    return codes.CodesCache(folder / "pixels", manifest, 0.0, CODEBOOK)


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


if __name__ == "__main__":
    main()
