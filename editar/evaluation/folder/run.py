"""Own pairs as a benchmark: ROOT/pairs.jsonl names sources, targets and instructions (as `data=folder` reads them).

Of pairs that the checkpoint was trained on, only those that its training held out are edited. A result is compared
with its target at the result's own size, the target's short side resized and its centre cropped as in training.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from editar.config import DataConfig, EvalConfig, SourceConfig
from editar.data.folder import FolderTable
from editar.data.sources import heldout_rows
from editar.errors import BenchmarkError, ConfigError
from editar.evaluation.benchmark import Benchmark, describe_row, training_data
from editar.generation.generate import EditJob
from editar.generation.result_folder import ResultFolder
from editar.images import load_image, resize_and_crop
from editar.metrics.lpips_clip import ClipSimilarity, Lpips
from editar.metrics.networks import Missing, load_or_leave
from editar.metrics.ssim import RADIUS, mse, psnr, ssim
from editar.runtime.files import content_sum
from editar.runtime.log import say
from editar.tables.scores import Column, MethodScores

COLUMNS = (
    Column("l1", "L1", "x1e2", "lower"),
    Column("psnr", "PSNR", "dB", "higher"),
    Column("ssim", "SSIM", "x1e2", "higher"),
    Column("lpips", "LPIPS", "x1e3", "lower"),
    Column("clip", "CLIP, result and target", "100 x cosine", "higher"),
)
SMALLEST = 2 * RADIUS + 1  # pixels of SSIM's window
NETWORKS = {"lpips": ("lpips",), "clip": ("clip",)}


class OwnPairs(Benchmark):
    """All pairs of the folder or, where the checkpoint was trained on it, those that its training held out."""

    name, title, protocol, networks, needs_root = "folder", "Own pairs", "pairs-v1", NETWORKS, False
    settings = ("root", "prompt", "rows", "pairs")

    def __init__(self, cfg: EvalConfig) -> None:
        super().__init__(cfg)
        data = training_data(cfg)
        trained = [] if data is None else [source for source in data.sources.values() if source.kind == "folder"]
        if not self.root and len({source.path for source in trained}) != 1:
            names = ", ".join(sorted({str(source.path) for source in trained})) or "none"
            raise ConfigError(f"benchmark=folder needs root=FOLDER with pairs.jsonl; checkpoint was trained on {names}")
        self.root = self.root or str(trained[0].path)
        self.table = FolderTable(self.root)
        if not len(self.table):
            raise BenchmarkError(f"{self.table.listing}: no pair in it; write one line per pair")
        known = [source for source in trained if Path(str(source.path)).resolve() == Path(self.root).resolve()]
        self.prompt = cfg.prompt or (known[0] if known else SourceConfig()).prompt
        self.rows = self.chosen(data if known else None)[: cfg.rows]

    def chosen(self, data: DataConfig | None) -> range:
        """Rows by `cfg.pairs`; `data` is what the checkpoint was trained on, None if not on these pairs. Raises
        ConfigError."""
        count, checkpoint = len(self.table), self.cfg.checkpoint
        if self.cfg.pairs == "heldout" and data is None:
            raise ConfigError(f"pairs=heldout: {checkpoint} was not trained on {self.root}; give pairs=all")
        if self.cfg.pairs == "all" or data is None:
            return range(count)
        heldout = heldout_rows(count, data)
        say(f"{self.root} holds {count} pairs; the last {heldout}, which the training held out, are scored")
        return range(count - heldout, count)

    def jobs(self) -> list[EditJob]:
        jobs = []
        for row in self.rows:
            text = self.prompt.replace("{}", self.table.instruction(row))
            source = partial(self.load_sources, row)
            jobs.append(EditJob(str(row), str(row), text, text, source, None))
        return jobs

    def load_sources(self, row: int) -> list[np.ndarray]:
        return [self.load_result(file) for file in self.table.sources(row)]

    def sources_sum(self) -> str:
        return content_sum(file for row in self.rows for file in self.table.sources(row))

    def names(self) -> dict[str, str]:
        return {str(row): f"{row}.png" for row in self.rows}

    def scorer(self, device: torch.device) -> PairScorer:
        return PairScorer(self, device)


class PairScorer:
    """Distance of each result to its target, whole pictures, with the networks that are there."""

    def __init__(self, benchmark: OwnPairs, device: torch.device) -> None:
        self.benchmark, sources = benchmark, benchmark.cfg.networks
        load_lpips, load_clip = partial(Lpips.load, device=device), partial(ClipSimilarity.load, device=device)
        self.lpips, no_lpips = load_or_leave("lpips", sources.lpips, NETWORKS["lpips"], load_lpips)
        self.clip, no_clip = load_or_leave("clip", sources.clip, NETWORKS["clip"], load_clip)
        self.missing: list[Missing] = [missing for missing in (no_lpips, no_clip) if missing]
        lacking = {name for missing in self.missing for name in missing.columns}
        self.columns = [column for column in COLUMNS if column.name not in lacking]

    def __call__(self, name: str, results: ResultFolder) -> MethodScores:
        rows = []
        for job in tqdm(self.benchmark.jobs(), "scoring", unit="image"):
            source, target = (self.benchmark.table.file(int(job.id), key) for key in ("source", "target"))
            file = f"{job.id}.png"
            numbers = self.compare(results.path(job.id, file), target)
            rows.append(describe_row(job, results, file, source, target=target) | numbers)
        return MethodScores(name, str(results.source), rows, generated_with=results.generated_with)

    def compare(self, result: Path, target: Path) -> dict[str, float]:
        output = load_image(result)
        if output.width != output.height:
            raise BenchmarkError(f"{result}: {output.width}x{output.height}, own pairs are scored as squares")
        if output.width < SMALLEST:
            raise BenchmarkError(f"{result}: {output.width} pixels wide; SSIM needs {SMALLEST}")
        true = resize_and_crop(load_image(target), output.width)
        grey = [np.array(picture)[None] for picture in (output, true)]  # (1, H, W, 3) uint8 each
        a, b = (torch.from_numpy(picture).permute(0, 3, 1, 2).float() / 255 for picture in grey)
        values = {
            "l1": 100 * float((a - b).abs().mean()),
            "psnr": float(psnr(mse(a, b))),
            "ssim": 100 * float(ssim(a, b)),
        }
        if self.lpips is not None:
            values["lpips"] = 1000 * float(self.lpips(a, b))
        if self.clip is not None:
            values["clip"] = float(self.clip.between(*grey))
        return values
