"""PIE-Bench as a benchmark: its 700 pictures to edit, any folders of results to score, for Tables 1 and 3."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from editar.config import EvalConfig
from editar.evaluation.benchmark import Benchmark, describe_row, smaller_than
from editar.evaluation.pie_bench import dataset
from editar.evaluation.pie_bench.dataset import PICTURES, SIZE, PieItem, load_result, load_source
from editar.evaluation.pie_bench.metrics import NETWORKS, PieBatch, PieMetrics, paper_units
from editar.generation.generate import EditJob
from editar.generation.result_folder import ResultFolder
from editar.images import save_image
from editar.metrics.pictures import Mapped, load_in_batches
from editar.runtime.files import content_sum
from editar.tables.scores import MethodScores


class PieBench(Benchmark):
    name, title, settings = "pie_bench", "PIE-Bench", ("root", "evaluator")
    tables, networks = ("table1", "table3"), NETWORKS
    load_result = staticmethod(load_result)

    def __init__(self, cfg: EvalConfig) -> None:
        super().__init__(cfg)
        self.protocol = f"pnpinversion-{cfg.evaluator}"
        self.items = dataset.load_items(self.root)

    def jobs(self) -> list[EditJob]:
        jobs = []
        for item in self.items:
            name, caption = str(Path(item.path).with_suffix("")), dataset.plain_caption(item.target_caption)
            jobs.append(EditJob(item.id, name, item.instruction, caption, partial(load_source, self.root, item), SIZE))
        return jobs

    def source_file(self, item: PieItem) -> Path:
        return Path(self.root) / PICTURES / item.path

    def sources_sum(self) -> str:
        return content_sum(self.source_file(item) for item in self.items)

    def names(self) -> dict[str, str]:
        return {item.id: item.path for item in self.items}

    def scorer(self, device: torch.device) -> PieScorer:
        return PieScorer(self, device)


class PieScorer:
    """Scores one method after the other with whatever networks are there."""

    def __init__(self, benchmark: PieBench, device: torch.device) -> None:
        self.benchmark = benchmark
        self.metrics, self.missing = PieMetrics.load(benchmark.cfg.networks, device, benchmark.cfg.evaluator)
        self.columns = [column.shown for column in self.metrics.columns()]

    def __call__(self, name: str, results: ResultFolder) -> MethodScores:
        benchmark, items = self.benchmark, self.benchmark.items
        masks = benchmark.thumbnails("masks")
        rows = [
            describe_row(job, results, item.path, benchmark.source_file(item), mask=masks / f"{item.id}.png") | values
            for job, item, values in zip(benchmark.jobs(), items, self.values(results), strict=True)
        ]
        groups = {
            "edit type": [item.edit_name for item in items],
            "category": [" ".join(filter(None, (item.origin, item.subject))) or "-" for item in items],
        }
        reasons = [*filter(None, [dataset.incomplete(items)]), *smaller_than(results.generated_with, SIZE, "edited")]
        return MethodScores(name, str(results.source), rows, groups, {}, reasons, results.generated_with)

    def values(self, results: ResultFolder) -> Iterator[dict[str, float]]:
        """Every item's values in the paper's units, in order."""
        cfg, items = self.benchmark.cfg, self.benchmark.items
        pictures = Mapped(partial(item_pictures, self.benchmark, results), items)
        with tqdm(total=len(items), desc="scoring", unit="image", mininterval=2) as bar, torch.inference_mode():
            for batch in load_in_batches(pictures, cfg.score_batch, cfg.num_workers):
                sources, outputs, masks, captions = zip(*batch, strict=True)
                rows = self.metrics(PieBatch(np.stack(sources), np.stack(outputs), np.stack(masks), list(captions)))
                yield from map(paper_units, rows)
                bar.update(len(batch))


def item_pictures(
    benchmark: PieBench, results: ResultFolder, item: PieItem
) -> tuple[np.ndarray, np.ndarray, np.ndarray, str]:
    """(source, result, mask, caption) of an item; leaves the mask as a picture."""
    mask = item.mask()
    save_image(mask, benchmark.thumbnails("masks") / f"{item.id}.png")
    result = load_result(results.path(item.id, item.path))
    return load_source(benchmark.root, item), result, mask, item.target_caption
