"""The nano world as a benchmark: held-out scenes with exact ground truth, so nothing has to be downloaded.

OUTPUT/images/ID.png       the edits            OUTPUT/grid.png            source | target | edit of the first ones
OUTPUT/ceiling/ID.png      the true targets through the checkpoint's tokenizer: the best that any GPT on it can do
OUTPUT/sources/, masks/    what was edited and where, for people to look at
"""

from __future__ import annotations

import hashlib
import math
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from editar.config import EvalConfig
from editar.data.nano.world import NanoWorld, render
from editar.data.sample import EditSample
from editar.errors import BenchmarkError
from editar.evaluation.benchmark import Benchmark, describe_row, training_data
from editar.evaluation.nano.scoring import COLUMNS, PROTOCOL, groups_of, mistakes, score_edit, shuffled
from editar.generation.editors import Editor, ModelEditor
from editar.generation.generate import EditJob
from editar.generation.result_folder import ResultFolder
from editar.images import captioned_sheet, enlarged, load_image, save_image, side_by_side
from editar.metrics.networks import Missing
from editar.runtime.log import echo
from editar.tables.scores import Column, Evaluation, MethodScores

CEILING = Column("ceiling", "Success of the tokenizer alone", "%", "higher", rate=True)


class Nano(Benchmark):
    """The held-out scenes of `data_seed`, by default of the seed that the checkpoint was trained with."""

    name, title, protocol, needs_root = "nano", "Nano world", PROTOCOL, False
    settings = ("samples", "data_seed", "shuffle_instructions")
    world: type[NanoWorld] = NanoWorld

    def __init__(self, cfg: EvalConfig) -> None:
        super().__init__(cfg)
        world = self.world("heldout", cfg.samples, seed_of(cfg))
        self.plans = [world.plan(index) for index in range(len(world))]
        self.samples = [render(plan) for plan in self.plans]

    def jobs(self) -> list[EditJob]:
        instructions = [sample.instruction for sample in self.samples]
        if self.cfg.shuffle_instructions:
            instructions = shuffled(instructions)
        return [
            EditJob(sample.id, sample.id, text, sample.target_caption, partial(np.asarray, sample.source), None)
            for sample, text in zip(self.samples, instructions, strict=True)
        ]

    def sources_sum(self) -> str:
        return hashlib.sha256(b"".join(sample.source.tobytes() for sample in self.samples)).hexdigest()

    def names(self) -> dict[str, str]:
        return {sample.id: f"{sample.id}.png" for sample in self.samples}

    def also_make(self, editor: Editor, folder: Path) -> None:
        """The true targets through the tokenizer, where a checkpoint of ours was asked."""
        if isinstance(editor, ModelEditor):
            files = {sample.id: folder / "ceiling" / f"{sample.id}.png" for sample in self.samples}
            todo = [sample for sample in self.samples if not files[sample.id].is_file()]
            for sample, picture in zip(todo, editor.pipeline.reconstruct([s.target for s in todo]), strict=True):
                save_image(picture, files[sample.id])

    def scorer(self, device: torch.device) -> NanoScorer:
        return NanoScorer(self)

    def show(self, evaluation: Evaluation, out: Path) -> None:
        for method in evaluation.methods:
            echo(f"mistakes of {method.method}: {mistakes(method)}")
        first = evaluation.methods[0]
        outputs = [np.asarray(load_image(row["result"])) for row in first.rows]
        grid = sheet(self.samples, outputs, [row["success"] > 0 for row in first.rows])
        save_image(grid, out / "grid.png")
        echo(f"pictures: {out / 'grid.png'} (source | target | output)")


class NanoScorer:
    """Compares every picture with the true target and all counterfactuals; needs no network."""

    def __init__(self, benchmark: Nano) -> None:
        self.benchmark, self.columns, self.missing = benchmark, [*COLUMNS, CEILING], list[Missing]()

    def __call__(self, name: str, results: ResultFolder) -> MethodScores:
        benchmark, made = self.benchmark, results.generated_with
        if made is not None and made["sources_sha256"] != benchmark.sources_sum():
            raise BenchmarkError(
                f"{results.source}: made from other held-out samples; give their data_seed=... and samples=..."
            )
        rows = [self.row(index, job, results) for index, job in enumerate(benchmark.jobs())]
        return MethodScores(name, str(results.source), rows, groups_of(benchmark.plans), generated_with=made)

    def row(self, index: int, job: EditJob, results: ResultFolder) -> dict[str, Any]:
        benchmark = self.benchmark
        sample, plan, name = benchmark.samples[index], benchmark.plans[index], f"{job.id}.png"
        source, mask = (benchmark.thumbnails(kind) / name for kind in ("sources", "masks"))
        save_image(sample.source, source)
        save_image(sample.mask, mask)
        output = np.asarray(load_image(results.path(job.id, name)))
        if output.shape != sample.target.shape:
            raise BenchmarkError(f"{results.path(job.id, name)}: {output.shape[:2]}, the nano world is 64x64")
        ceiling = (results.made.file.parent if results.made else results.source) / "ceiling" / name
        best = 100.0 * score_edit(plan, np.asarray(load_image(ceiling))).success if ceiling.is_file() else math.nan
        numbers = score_edit(plan, output).row() | {CEILING.name: best}
        return describe_row(job, results, name, source, mask=mask) | numbers


def seed_of(cfg: EvalConfig) -> int:
    """`data_seed`, or that of the checkpoint's training data, whose held-out scenes it has never seen."""
    data = training_data(cfg) if cfg.data_seed is None else None
    return (cfg.data_seed or 0) if data is None else data.seed


def sheet(samples: list[EditSample], outputs: list[np.ndarray], successes: list[bool], most: int = 16) -> np.ndarray:
    """source(s) | target | output of the first samples, three times as large, a green or red bar and the instruction
    below."""
    cells = []
    for sample, output, success in list(zip(samples, outputs, successes, strict=True))[:most]:
        row = side_by_side([enlarged(p, 3) for p in (sample.source, *sample.more, sample.target, output)])
        bar = np.full((5, row.shape[1], 3), (40, 160, 70) if success else (210, 50, 40), np.uint8)
        cells.append(np.concatenate([row, bar]))
    return captioned_sheet(cells, [sample.instruction for sample in samples[:most]])
