"""PIE-Bench as a whole: edit its 700 pictures, score any folder of results, print Tables 1 and 3.

OUTPUT/scores.json            protocol, counts, means with intervals, per edit type and category, every row
OUTPUT/table1.{txt,md,tex,csv}  the paper's rows and this one; table3 likewise
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from editar.config import EvalConfig
from editar.evaluation.benchmark import BenchmarkError, absent
from editar.evaluation.generate import EditJob, generate
from editar.evaluation.paper_rows import paper_tables
from editar.evaluation.pie_bench import (
    PICTURES,
    PROTOCOL,
    SIZE,
    PieItem,
    incomplete,
    load_items,
    load_result,
    load_source,
    result_path,
)
from editar.evaluation.pie_metrics import SCALE, PieBatch, PieMetrics
from editar.evaluation.statistics import Mean, means, means_by
from editar.evaluation.tables import FORMATS, OurRow, text_table
from editar.runtime.device import pick_device
from editar.runtime.distributed import World, distributed
from editar.runtime.files import provenance, write_json, write_text
from editar.runtime.log import say
from editar.sampling.pipeline import EditPipeline

TABLES = ("table1", "table3")


def evaluate_pie(cfg: EvalConfig) -> None:
    """As `cfg.stage` says. Raises BenchmarkError before any network is loaded where files do not fit."""
    items = load_items(str(cfg.root))
    with distributed(cfg.device) as world:
        if cfg.stage != "score":
            edit(cfg, items, world)
    if world.is_main and cfg.stage != "generate":
        score(cfg, items)


def edit(cfg: EvalConfig, items: list[PieItem], world: World) -> None:
    pipeline = EditPipeline.from_pretrained(str(cfg.checkpoint), world.device, cfg.sampling)
    jobs = [
        EditJob(
            id=item.id,
            name=str(Path(item.path).with_suffix("")),
            instruction=item.instruction,
            source=partial(load_source, str(cfg.root), item),
            size=SIZE,
        )
        for item in items
    ]
    generate(pipeline, Path(str(cfg.checkpoint)), jobs, Path(cfg.output_dir), world)


def score(cfg: EvalConfig, items: list[PieItem]) -> dict[str, Any]:
    """Score every item's result, write scores.json and the tables, print Table 1. Returns the scores."""
    out = Path(cfg.output_dir)
    results = Path(cfg.results) if cfg.results else out / "images"
    check_complete(results, items)
    metrics, missing = PieMetrics.load(cfg.judges, pick_device(cfg.device))
    for item in missing:
        say(f"scoring {item}")
    rows = list(score_rows(metrics, cfg, items, results))
    overall = means(rows)
    reasons = incomparable(items, out, cfg)
    scores: dict[str, Any] = {
        "protocol": PROTOCOL,
        "method": cfg.method,
        "results": str(results),
        "pictures": len(items),
        "comparable": not reasons,
        "why_not": reasons,
        "missing_columns": {name: item.reason for item in missing for name in item.columns},
        "made_by": provenance(),
        "generated_with": generated_with(out) if cfg.results is None else None,
        "mean": in_paper_units(overall),
        "by_edit_type": _grouped(rows, [item.edit_name for item in items]),
        "by_category": _grouped(rows, [" ".join(filter(None, (item.origin, item.subject))) or "-" for item in items]),
        "rows": [{"id": item.id} | row for item, row in zip(items, rows, strict=True)],
    }
    write_json(out / "scores.json", scores)
    ours = [OurRow(cfg.method, {name: mean["mean"] for name, mean in scores["mean"].items()}, "; ".join(reasons))]
    for name in TABLES:
        for suffix, render in FORMATS.items():
            write_text(out / f"{name}.{suffix}", render(paper_tables()[name], ours) + "\n")
    print(text_table(paper_tables()["table1"], ours))
    left_out = {name: mean["excluded"] for name, mean in scores["mean"].items() if mean["excluded"]}
    if left_out:
        print(f"left out as undefined: {', '.join(f'{name} {count}' for name, count in left_out.items())}")
    print(f"{len(items)} pictures, protocol {PROTOCOL}; all numbers: {out / 'scores.json'}")
    return scores


def check_complete(results: Path, items: list[PieItem]) -> None:
    """Every item has a result and there is nothing else. Raises BenchmarkError that counts and names."""
    if not results.is_dir():
        raise BenchmarkError(f"{results}: no such folder; make it with stage=generate or give results=FOLDER")
    root = results / PICTURES if (results / PICTURES).is_dir() else results
    missing = absent(root, [item.path for item in items])
    if missing:
        raise BenchmarkError(
            f"{results}: {len(missing)} of {len(items)} results are missing, first {missing[0]}; "
            "stage=generate makes the missing ones"
        )
    known = {result_path(results, item).resolve() for item in items}
    extra = [path for path in sorted(root.rglob("*")) if path.is_file() and path.resolve() not in known]
    extra = [path for path in extra if not path.name.startswith(".")]
    if extra:
        raise BenchmarkError(f"{results}: {len(extra)} files belong to no picture of the benchmark, first {extra[0]}")


class Pictures(Dataset[tuple[np.ndarray, np.ndarray, np.ndarray, str]]):
    """(source, result, mask, caption) of each item, decoded in workers."""

    def __init__(self, root: str, results: Path, items: list[PieItem]) -> None:
        self.root, self.results, self.items = root, results, items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, str]:
        item = self.items[index]
        return load_source(self.root, item), load_result(self.results, item), item.mask(), item.target_caption


def score_rows(metrics: PieMetrics, cfg: EvalConfig, items: list[PieItem], results: Path) -> Iterator[dict[str, float]]:
    """Raw values of every item, in order."""
    dataset = Pictures(str(cfg.root), results, items)
    loader: DataLoader[Any] = DataLoader(
        dataset, batch_size=cfg.score_batch, num_workers=cfg.num_workers, collate_fn=list
    )
    with tqdm(total=len(items), desc="scoring", unit="image", mininterval=2) as bar, torch.inference_mode():
        for batch in loader:
            sources, outputs, masks, captions = zip(*batch, strict=True)
            yield from metrics(PieBatch(np.stack(sources), np.stack(outputs), np.stack(masks), list(captions)))
            bar.update(len(batch))


def incomparable(items: list[PieItem], out: Path, cfg: EvalConfig) -> list[str]:
    """Why the result must not be read against the paper's rows; [] if it may."""
    reasons = [reason] if (reason := incomplete(items)) else []
    made = generated_with(out) if cfg.results is None else None
    if made is not None and made["image_size"] != SIZE:
        reasons.append(f"edited at {made['image_size']} px, enlarged to {SIZE}")
    return reasons


def generated_with(out: Path) -> dict[str, Any] | None:
    """The manifest of our own results, without the instructions; None for anybody else's."""
    file = out / "manifest.json"
    if not file.is_file():
        return None
    return {key: value for key, value in json.loads(file.read_text()).items() if key != "instructions"}


def in_paper_units(columns: dict[str, Mean]) -> dict[str, dict[str, Any]]:
    scaled = {}
    for name, mean in columns.items():
        values = asdict(mean)
        scaled[name] = values | {key: values[key] * SCALE[name] for key in ("mean", "low", "high")}
    return scaled


def _grouped(rows: list[dict[str, float]], groups: list[str]) -> dict[str, dict[str, Any]]:
    found = {group: in_paper_units(columns) for group, columns in means_by(rows, groups).items()}
    return {
        group: {name: None if math.isnan(mean["mean"]) else mean for name, mean in columns.items()}
        for group, columns in found.items()
    }
