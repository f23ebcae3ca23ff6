#!/usr/bin/env python
"""Train and score every combination of some overrides, then put them into one table and plot.

    python scripts/ablate.py runs/ablation teacher=none,hog loss.distill_weight=0.1,0.5 experiment=nano_demo \\
        tokenizer.weights=reference/nano_tokenizer data.train_samples=4000 steps=300
    python scripts/ablate.py runs/xl_ablation teacher=none,dinov2,clip experiment=editar_xl data.cache=caches/editar \\
        --launcher "torchrun --nproc-per-node=8" --eval benchmark=pie_bench root=data/pie_bench

An argument with commas is an axis, any other an override of every run. Combinations that only differ in the weight
of a distillation they do not have (teacher=none) are trained once. Runs and scores continue where they stopped.
With several seeds (seed=0,1,2) runs that differ in nothing else are also shown together. Leaves OUT/RUN (run
folders), OUT/scores/RUN and OUT/report.html, and prints the tables.
"""

from __future__ import annotations

import argparse
import itertools
import shlex
import subprocess
import sys
from pathlib import Path
from statistics import mean

from editar.config import EvalConfig, TrainConfig
from editar.errors import ConfigError, TrainingError
from editar.report.merge import ScoredFolder, load_scored
from editar.report.page import write_comparison
from editar.runtime.entry import load_config, script
from editar.runtime.log import echo, say
from editar.tables.scores import Evaluation


@script("ablate")
def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("overrides", nargs="+", metavar="KEY=VALUE[,VALUE...]")
    parser.add_argument("--launcher", default=sys.executable, help="what runs `-m editar.train` (this python)")
    parser.add_argument("--eval", nargs="+", default=[], metavar="KEY=VALUE", help="editar.eval's settings (nano)")
    options = parser.parse_args(arguments)
    for given, own in ((options.overrides, ["output_dir"]), (options.eval, ["output_dir", "checkpoint"])):
        if chosen := [key for key in own if any(override.lstrip("+").startswith(f"{key}=") for override in given)]:
            raise ConfigError(f"{chosen[0]} is chosen for every run, below {options.out}; leave it out")
    runs = grid(options.overrides)
    configs = {name: check(options.out / name, overrides) for name, overrides in runs.items()}
    load_config(EvalConfig, "eval", ["checkpoint=RUN", "output_dir=SCORES", *options.eval])  # before the first training
    scored: dict[str, ScoredFolder] = {}
    for number, (name, overrides) in enumerate(runs.items(), 1):
        say(f"== {number}/{len(runs)} {name} ==")
        run, scores = options.out / name, options.out / "scores" / name
        cache = shared_cache(options.out, configs[name])
        call(options.launcher, "editar.train", [f"output_dir={run}", *overrides, *cache])
        call(options.launcher, "editar.eval", [f"checkpoint={run}", f"output_dir={scores}", *options.eval])
        scored[name] = load_scored(f"{name}={scores}")
    write_comparison(list(scored.values()), options.out / "report.html", "Ablation", pictures=60)
    if together := over_seeds({name: item.evaluation for name, item in scored.items()}):
        echo(together)


def grid(overrides: list[str]) -> dict[str, list[str]]:
    """Name of a run (its folder) -> its overrides, for every combination of the axes. Raises ConfigError."""
    axes = [axis for axis in overrides if is_axis(axis)]
    fixed = [value for value in overrides if value not in axes]
    if not axes:
        raise ConfigError(f"no axis among {' '.join(overrides)}; give at least one key with several values: key=a,b")
    choices = [[(key, value) for value in values.split(",")] for key, values in (axis.split("=", 1) for axis in axes)]
    runs: dict[str, list[str]] = {}
    for cell in itertools.product(*choices):
        chosen = dict(cell)
        if chosen.get("teacher", "") == "none" or "teacher=none" in fixed:
            chosen.pop("loss.distill_weight", None)
        short = {key: key if key.endswith(".seed") else key.rsplit(".", 1)[-1] for key in chosen}  # `seed` is the run's
        name = "-".join(f"{short[key]}_{value}" for key, value in chosen.items())
        runs.setdefault(name, [*fixed, *(f"{key}={value}" for key, value in chosen.items())])
    return runs


def is_axis(override: str) -> bool:
    """`key=a,b`, but not a list or mapping."""
    value = override.partition("=")[2]
    return "," in value and value[0] not in "[{'\""


def check(run: Path, overrides: list[str]) -> TrainConfig:
    """A run's config, so that a mistake in the last run stops the first. Raises ConfigError."""
    return load_config(TrainConfig, "train", [f"output_dir={run}", *overrides])


def shared_cache(out: Path, cfg: TrainConfig) -> list[str]:
    """One codes cache for all runs that may share it (it holds the teacher's features), where runs make their own."""
    own = cfg.data.build_cache and str(cfg.data.cache).startswith(cfg.output_dir)
    return [f"data.cache={out / f'codes_{cfg.teacher.identity}'}"] if own else []


def over_seeds(runs: dict[str, Evaluation]) -> str:
    """A line for the runs that differ in `seed` alone, where there are several: for every column the mean of the
    seeds' means and, in brackets, the lowest and the highest. Empty without seeds."""
    groups: dict[str, list[Evaluation]] = {}
    for name, evaluation in runs.items():
        rest = "-".join(part for part in name.split("-") if not part.startswith("seed_"))
        groups.setdefault(rest or "all runs", []).append(evaluation)
    lines = []
    for name, found in groups.items():
        if len(found) > 1:
            values = {c: [e.means(e.methods[0])[c.name].mean for e in found] for c in found[0].columns}
            parts = [f"{c.title} {mean(v):.1f} [{min(v):.1f}, {max(v):.1f}] {c.unit}" for c, v in values.items()]
            lines.append(f"{name}, {len(found)} seeds: {', '.join(parts)}")
    return "\n".join(lines)


def call(launcher: str, module: str, overrides: list[str]) -> None:
    command = [*shlex.split(launcher), "-m", module, *overrides]
    if code := subprocess.run(command, check=False).returncode:
        raise TrainingError(f"{module} ended with exit code {code}: {shlex.join(command)}")


if __name__ == "__main__":
    main()
