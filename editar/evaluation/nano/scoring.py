"""Scoring of the nano world, where the truth and every plausible mistake can be drawn.

An edit succeeds if the output is nearer (mean squared error over the whole picture) to the true
target than to every counterfactual; otherwise it is named after the nearest one. A blurred or timid
answer fails by `half done`, a changed bystander by `damage`.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from editar.data.nano.world import Plan, counterfactuals, render
from editar.tables.scores import Column, Evaluation, MethodScores

PROTOCOL = "nano-v1"
COLUMNS = [
    Column("success", "Success", "%", "higher", rate=True),
    Column("background_psnr", "Background PSNR", "dB", "higher"),
]


@dataclass(frozen=True)
class EditScore:
    """One scored output. background_psnr (dB) is measured outside the edit mask; NaN where the mask covers
    everything (translations)."""

    outcome: str  # "success" or the counterfactual it resembles most
    background_psnr: float

    @property
    def success(self) -> bool:
        return self.outcome == "success"

    def row(self) -> dict[str, Any]:
        """As scores.json holds it."""
        return {"outcome": self.outcome, "success": 100.0 * self.success, "background_psnr": self.background_psnr}


def score_edit(plan: Plan, output: np.ndarray) -> EditScore:
    """Score one output picture, (64, 64, 3) uint8."""
    sample = render(plan)
    if output.shape != sample.target.shape:
        raise ValueError(f"{plan.id}: output is {output.shape}, the nano world is {sample.target.shape}")
    outcome, best = "success", squared_error(output, sample.target)
    for name, picture in counterfactuals(plan):
        error = squared_error(output, picture)
        if error <= best:
            outcome, best = name, error
    return EditScore(outcome, masked_psnr(output, sample.target, ~sample.mask))


def squared_error(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.square(a.astype(np.float64) - b.astype(np.float64)).mean())


def masked_psnr(a: np.ndarray, b: np.ndarray, where: np.ndarray) -> float:
    """PSNR in dB over the True pixels of `where` (H, W); NaN if there are none, at most 100."""
    if not where.any():
        return math.nan
    error = squared_error(a[where], b[where])
    return min(100.0, 10 * math.log10(255**2 / error)) if error > 0 else 100.0


def score_method(name: str, plans: Sequence[Plan], outputs: Sequence[np.ndarray]) -> MethodScores:
    """Outputs held in memory, scored like a results folder."""
    rows = [
        {"id": plan.id, "instruction": plan.instruction, "source": "", "result": ""} | score_edit(plan, output).row()
        for plan, output in zip(plans, outputs, strict=True)
    ]
    return MethodScores(name, "", rows, groups_of(plans))


def groups_of(plans: Sequence[Plan]) -> dict[str, list[str]]:
    """What nano's results are averaged by, beside all together."""
    objects = [max(len(plan.source.shapes), len(plan.target.shapes)) for plan in plans]
    return {"task": [plan.task for plan in plans], "objects": [str(count) for count in objects]}


def in_memory(methods: list[MethodScores], columns: Sequence[Column] = COLUMNS) -> Evaluation:
    return Evaluation("nano", PROTOCOL, "", list(columns), methods)


def mistakes(method: MethodScores) -> str:
    """`wrong colour 12, damage 5`, the commonest first."""
    found = Counter(row["outcome"] for row in method.rows if row["outcome"] != "success")
    return ", ".join(f"{name} {count}" for name, count in found.most_common()) or "none"


def shuffled(instructions: list[str], seed: int = 0) -> list[str]:
    """The instructions moved to other samples: a fixed random order in which nobody keeps their own place."""
    order = np.random.default_rng(seed).permutation(len(instructions))
    result = list(instructions)
    for here, there in zip(order, np.roll(order, 1), strict=True):
        result[here] = instructions[there]
    return result
