"""Scoring of the nano world, where the truth and every plausible mistake can be drawn.

An edit succeeds if the output is nearer (mean squared error over the whole picture) to the true
target than to every counterfactual; otherwise it is named after the nearest one. A blurred or timid
answer fails by `half done`, a changed bystander by `damage`.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

import numpy as np

from editar.data.nano.world import TASKS, Plan, counterfactuals, render


@dataclass(frozen=True)
class Verdict:
    """One scored output. background_psnr (dB) is measured outside the edit mask; None where the
    mask covers everything (translations)."""

    id: str
    task: str
    instruction: str
    outcome: str  # "success" or the counterfactual it resembles most
    background_psnr: float | None

    @property
    def success(self) -> bool:
        return self.outcome == "success"


def judge(plan: Plan, output: np.ndarray) -> Verdict:
    """Score one output picture, (64, 64, 3) uint8."""
    sample = render(plan)
    if output.shape != sample.target.shape:
        raise ValueError(f"{plan.id}: output is {output.shape}, the nano world is {sample.target.shape}")
    outcome, best = "success", squared_error(output, sample.target)
    for name, picture in counterfactuals(plan):
        error = squared_error(output, picture)
        if error <= best:
            outcome, best = name, error
    return Verdict(plan.id, plan.task, plan.instruction, outcome, masked_psnr(output, sample.target, ~sample.mask))


def squared_error(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.square(a.astype(np.float64) - b.astype(np.float64)).mean())


def masked_psnr(a: np.ndarray, b: np.ndarray, where: np.ndarray) -> float | None:
    """PSNR in dB over the True pixels of `where` (H, W); None if there are none, at most 100."""
    if not where.any():
        return None
    error = squared_error(a[where], b[where])
    return min(100.0, 10 * math.log10(255**2 / error)) if error > 0 else 100.0


@dataclass(frozen=True)
class Rate:
    """k successes of n with a 95 % Wilson interval, all in per cent but the counts."""

    successes: int
    count: int

    @property
    def percent(self) -> float:
        return 100 * self.successes / self.count if self.count else math.nan

    @property
    def interval(self) -> tuple[float, float]:
        if not self.count:
            return (math.nan, math.nan)
        z, n, p = 1.959964, self.count, self.successes / self.count
        centre = (p + z * z / (2 * n)) / (1 + z * z / n)
        half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
        return (100 * (centre - half), 100 * (centre + half))


@dataclass(frozen=True)
class Summary:
    """Success per task and overall, mistakes by name, mean background PSNR in dB."""

    tasks: dict[str, Rate]
    overall: Rate
    mistakes: dict[str, int]
    background_psnr: float

    def as_dict(self) -> dict[str, object]:
        def row(rate: Rate) -> dict[str, object]:
            return asdict(rate) | {"percent": rate.percent, "interval": rate.interval}

        return {
            "overall": row(self.overall),
            "tasks": {name: row(rate) for name, rate in self.tasks.items()},
            "mistakes": self.mistakes,
            "background_psnr_db": self.background_psnr,
        }


def summarise(verdicts: list[Verdict]) -> Summary:
    tasks = {}
    for task in TASKS:
        rows = [verdict for verdict in verdicts if verdict.task == task]
        if rows:
            tasks[task] = Rate(sum(row.success for row in rows), len(rows))
    mistakes: dict[str, int] = {}
    for verdict in verdicts:
        if not verdict.success:
            mistakes[verdict.outcome] = mistakes.get(verdict.outcome, 0) + 1
    psnrs = [v.background_psnr for v in verdicts if v.background_psnr is not None]
    return Summary(
        tasks=tasks,
        overall=Rate(sum(verdict.success for verdict in verdicts), len(verdicts)),
        mistakes=dict(sorted(mistakes.items(), key=lambda item: -item[1])),
        background_psnr=float(np.mean(psnrs)) if psnrs else math.nan,
    )


def table(columns: dict[str, Summary]) -> str:
    """Success per task of several systems side by side, as text with counts and intervals."""
    width = max(24, *(len(name) + 2 for name in columns))
    lines = ["task".ljust(14) + "".join(name.rjust(width) for name in columns)]
    first = next(iter(columns.values()))
    for task in [*first.tasks, "all tasks"]:
        cells = []
        for summary in columns.values():
            rate = summary.overall if task == "all tasks" else summary.tasks[task]
            low, high = rate.interval
            cells.append(f"{rate.percent:5.1f} % [{low:.0f}, {high:.0f}] n={rate.count}")
        lines.append(task.ljust(14) + "".join(cell.rjust(width) for cell in cells))
    cells = [f"{summary.background_psnr:.1f} dB" for summary in columns.values()]
    lines.append("background".ljust(14) + "".join(cell.rjust(width) for cell in cells))
    return "\n".join(lines)


def shuffled(instructions: list[str], seed: int = 0) -> list[str]:
    """The instructions moved to other samples: a fixed random order in which nobody keeps their own place."""
    order = np.random.default_rng(seed).permutation(len(instructions))
    result = list(instructions)
    for here, there in zip(order, np.roll(order, 1), strict=True):
        result[here] = instructions[there]
    return result
