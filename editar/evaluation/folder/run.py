"""Own pairs as a benchmark: ROOT/pairs.jsonl names sources, targets and instructions (as `data=folder` reads them).

A result is compared with its target at the result's own size, the target's short side resized and its centre
cropped as in training.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from editar.config import EvalConfig
from editar.data.folder import FolderTable
from editar.errors import BenchmarkError
from editar.evaluation.benchmark import Benchmark, describe_row
from editar.generation.generate import EditJob
from editar.generation.result_folder import ResultFolder
from editar.images import load_image, resize_and_crop
from editar.metrics.networks import Missing
from editar.metrics.ssim import mse, psnr, ssim
from editar.runtime.files import content_sum
from editar.tables.scores import Column, MethodScores


class OwnPairs(Benchmark):
    name, title, protocol = "folder", "Own pairs", "pairs-v1"

    def __init__(self, cfg: EvalConfig) -> None:
        super().__init__(cfg)
        self.table = FolderTable(self.root)
        self.pairs = [self.table[index] for index in range(min(len(self.table), cfg.rows or len(self.table)))]
        if not self.pairs:
            raise BenchmarkError(f"{self.root}/pairs.jsonl: no pair in it; write one line per pair")
        for index, pair in enumerate(self.pairs, 1):
            for picture in (pair["source"], pair["target"]):
                if not picture["bytes"]:
                    raise BenchmarkError(f"{self.root}/pairs.jsonl line {index}: {picture['path']} is missing or empty")

    def file(self, index: int, key: str) -> Path:
        return Path(self.pairs[index][key]["path"])

    def jobs(self) -> list[EditJob]:
        jobs = []
        for index, pair in enumerate(self.pairs):
            text, source = pair["instruction"], partial(self.load_result, self.file(index, "source"))
            jobs.append(EditJob(str(index), str(index), text, text, source, None))
        return jobs

    def sources_sum(self) -> str:
        return content_sum(self.file(index, "source") for index in range(len(self.pairs)))

    def names(self) -> dict[str, str]:
        return {str(index): f"{index}.png" for index in range(len(self.pairs))}

    def scorer(self, device: torch.device) -> PairScorer:
        return PairScorer(self)


class PairScorer:
    """Distance of each result to its target, whole pictures."""

    def __init__(self, benchmark: OwnPairs) -> None:
        self.benchmark, self.missing = benchmark, list[Missing]()
        self.columns = [
            Column("l1", "L1", "x1e2", "lower"),
            Column("psnr", "PSNR", "dB", "higher"),
            Column("ssim", "SSIM", "x1e2", "higher"),
        ]

    def __call__(self, name: str, results: ResultFolder) -> MethodScores:
        rows = []
        for index, job in enumerate(self.benchmark.jobs()):
            file = f"{job.id}.png"
            numbers = self.compare(results.path(job.id, file), self.benchmark.file(index, "target"))
            rows.append(describe_row(job, results, file, self.benchmark.file(index, "source")) | numbers)
        return MethodScores(name, str(results.source), rows, generated_with=results.generated_with)

    def compare(self, result: Path, target: Path) -> dict[str, float]:
        output = load_image(result)
        if output.width != output.height:
            raise BenchmarkError(f"{result}: {output.width}x{output.height}, own pairs are scored as squares")
        true = resize_and_crop(load_image(target), output.width)
        a, b = (pixels(picture) for picture in (output, true))
        return {
            "l1": 100 * float((a - b).abs().mean()),
            "psnr": float(psnr(mse(a, b))),
            "ssim": 100 * float(ssim(a, b)),
        }


def pixels(picture: Image.Image) -> torch.Tensor:
    """(1, 3, H, W) float32 in [0, 1]."""
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None].float() / 255
