"""`editar.eval`: which benchmark is asked for."""

from __future__ import annotations

from editar.config import EvalConfig
from editar.evaluation.run_nano import evaluate_nano
from editar.evaluation.run_pie import evaluate_pie


def evaluate(cfg: EvalConfig) -> None:
    if cfg.benchmark == "pie_bench":
        evaluate_pie(cfg)
    else:
        evaluate_nano(cfg)
