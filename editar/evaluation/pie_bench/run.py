"""PIE-Bench as a whole: edit its 700 pictures, score any folders of results, for Tables 1 and 3."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset
from tqdm import tqdm

from editar.config import EvalConfig
from editar.evaluation.pie_bench.dataset import (
    PICTURES,
    PROTOCOL,
    SIZE,
    PieItem,
    incomplete,
    load_result,
    load_source,
    plain_caption,
)
from editar.evaluation.pie_bench.metrics import PieBatch, PieMetrics, paper_units
from editar.generation.editors import open_editor
from editar.generation.generate import EditJob, generate
from editar.generation.result_folder import Results
from editar.metrics.loading import batches
from editar.metrics.networks import judge_records, unofficial
from editar.runtime.device import pick_device
from editar.runtime.distributed import World
from editar.runtime.files import content_sum
from editar.runtime.log import say
from editar.tables.scores import Evaluation, MethodScores, missing_columns


def edit(cfg: EvalConfig, items: list[PieItem], world: World) -> None:
    jobs = [
        EditJob(
            id=item.id,
            name=str(Path(item.path).with_suffix("")),
            instruction=item.instruction,
            caption=plain_caption(item.target_caption),
            source=partial(load_source, str(cfg.root), item),
            size=SIZE,
        )
        for item in items
    ]
    pictures = [Path(str(cfg.root)) / PICTURES / item.path for item in items]
    generate(open_editor(cfg, world.device), jobs, Path(cfg.output_dir), world, lambda: content_sum(pictures))


def score(cfg: EvalConfig, items: list[PieItem]) -> Evaluation:
    """Score every method's result of every item."""
    folders = {name: Results(source) for name, source in cfg.named_results().items()}
    for results in folders.values():
        results.check({item.id: item.path for item in items})
    metrics, missing = PieMetrics.load(cfg.judges, pick_device(cfg.device))
    for item in missing:
        say(f"scoring {item}")
    columns = metrics.columns()
    judges = judge_records(cfg.judges, [column.name for column in columns])
    methods = []
    for name, results in folders.items():
        values = list(score_rows(metrics, cfg, items, results))
        manifest = results.generated_with
        rows = [describe(cfg, item, results) | value for item, value in zip(items, values, strict=True)]
        groups = {
            "edit type": [item.edit_name for item in items],
            "category": [" ".join(filter(None, (item.origin, item.subject))) or "-" for item in items],
        }
        reasons = incomparable(items, manifest) + unofficial(judges)
        methods.append(MethodScores(name, str(results.source), rows, groups, {}, reasons, manifest))
    shown = [column.shown for column in columns]
    return Evaluation("pie_bench", PROTOCOL, str(cfg.root), shown, methods, missing_columns(missing), judges)


def describe(cfg: EvalConfig, item: PieItem, results: Results) -> dict[str, Any]:
    """What a row says besides its numbers."""
    return {
        "id": item.id,
        "instruction": item.instruction,
        "source": str(Path(str(cfg.root)) / PICTURES / item.path),
        "result": str(results.path(item.id, item.path)),
    }


class Pictures(Dataset[tuple[np.ndarray, np.ndarray, np.ndarray, str]]):
    """(source, result, mask, caption) of each item, decoded in workers."""

    def __init__(self, root: str, results: Results, items: list[PieItem]) -> None:
        self.root, self.results, self.items = root, results, items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, str]:
        item = self.items[index]
        result = load_result(self.results.path(item.id, item.path))
        return load_source(self.root, item), result, item.mask(), item.target_caption


def score_rows(
    metrics: PieMetrics, cfg: EvalConfig, items: list[PieItem], results: Results
) -> Iterator[dict[str, float]]:
    """Every item's values in the paper's units, in order."""
    dataset = Pictures(str(cfg.root), results, items)
    with tqdm(total=len(items), desc="scoring", unit="image", mininterval=2) as bar, torch.inference_mode():
        for batch in batches(dataset, cfg.score_batch, cfg.num_workers):
            sources, outputs, masks, captions = zip(*batch, strict=True)
            rows = metrics(PieBatch(np.stack(sources), np.stack(outputs), np.stack(masks), list(captions)))
            yield from map(paper_units, rows)
            bar.update(len(batch))


def incomparable(items: list[PieItem], manifest: dict[str, Any] | None) -> list[str]:
    """Why the result must not be read against the paper's rows; [] if it may."""
    reasons = [reason] if (reason := incomplete(items)) else []
    if manifest is not None and manifest["image_size"] != SIZE:
        reasons.append(f"edited at {manifest['image_size']} px, enlarged to {SIZE}")
    return reasons
