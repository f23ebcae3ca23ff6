"""`editar.eval`: which benchmark is asked for, and its two stages."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from editar.config import EvalConfig
from editar.evaluation.nano.run import evaluate_nano
from editar.evaluation.pie_bench import run as run_pie
from editar.evaluation.pie_bench.dataset import load_items
from editar.evaluation.translation import run as run_translation
from editar.evaluation.translation.run import Cases
from editar.runtime.distributed import distributed
from editar.tables.scores import write_evaluation


def evaluate(cfg: EvalConfig) -> None:
    """As `cfg.stage` says. Raises BenchmarkError before any network is loaded where files do not fit."""
    if cfg.benchmark == "nano":
        evaluate_nano(cfg)
        return
    if cfg.benchmark == "pie_bench":
        items = load_items(str(cfg.root))
        edit, score = partial(run_pie.edit, cfg, items), partial(run_pie.score, cfg, items)
    else:
        cases = Cases(cfg)
        edit, score = partial(run_translation.edit, cfg, cases), partial(run_translation.score, cfg, cases)
    with distributed(cfg.device) as world:
        if cfg.stage != "score":
            edit(world)
    if world.is_main and cfg.stage != "generate":
        write_evaluation(score(), Path(cfg.output_dir))
