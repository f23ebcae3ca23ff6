"""`editar.eval`: edit a benchmark, score results, write and show what was found; the same for every benchmark."""

from __future__ import annotations

import os
from pathlib import Path

from editar.config import EvalConfig
from editar.errors import BenchmarkError, ConfigError
from editar.evaluation.benchmark import Benchmark
from editar.evaluation.registry import benchmark_class
from editar.generation.editors import open_editor
from editar.generation.generate import generate_results, read_cost
from editar.generation.manifest import MANIFEST
from editar.generation.result_folder import ResultFolder
from editar.metrics.networks import network_records, unofficial
from editar.runtime.device import pick_device
from editar.runtime.distributed import distributed
from editar.runtime.log import say
from editar.tables.scores import Evaluation, load_evaluation, write_evaluation


def evaluate(cfg: EvalConfig) -> Evaluation | None:
    """As `cfg.stage` says; returns what was scored. Raises DataError before any network is loaded where files
    do not fit."""
    benchmark = benchmark_class(cfg.benchmark)(cfg)
    folder = Path(cfg.output_dir)
    check_scores_stay(benchmark, folder)
    with distributed(cfg.device) as ranks:
        if cfg.stage != "score":
            editor = open_editor(cfg, ranks.device)
            generate_results(editor, benchmark.jobs(), folder, ranks, benchmark.sources_sum, benchmark.renderings())
            if ranks.is_main:
                benchmark.also_make(editor, folder)
    if not ranks.is_main or cfg.stage == "generate":
        return None
    evaluation = score(benchmark)
    write_evaluation(evaluation, benchmark.tables, folder)
    benchmark.show(evaluation, folder)
    return evaluation


def check_scores_stay(benchmark: Benchmark, folder: Path) -> None:
    """Raises ConfigError where scores of another benchmark, or of the pictures in `folder`, would be replaced by those
    of other pictures."""
    own = {os.path.realpath(folder), os.path.realpath(folder / "images")}
    if (folder / MANIFEST).is_file() and own.isdisjoint(map(os.path.realpath, benchmark.cfg.named_results().values())):
        raise ConfigError(f"{folder} holds pictures and is for their scores; choose another output_dir")
    try:
        found = load_evaluation(folder).benchmark
    except BenchmarkError:  # there are none, or damaged ones, which new ones may replace
        return
    if found != benchmark.name:
        raise ConfigError(f"{folder} holds scores of benchmark={found}; choose another output_dir")


def score(benchmark: Benchmark) -> Evaluation:
    """Score every method's picture of every entry."""
    cfg = benchmark.cfg
    folders = {name: ResultFolder(source) for name, source in cfg.named_results().items()}
    for results in folders.values():
        if cfg.results is None and results.made is None:
            raise BenchmarkError(
                f"{results.source} holds no {MANIFEST} that says what made its pictures; stage=generate writes it "
                f"anew, results={results.source} takes them as somebody else's"
            )
        results.check(benchmark.names())
    scorer = benchmark.scorer(pick_device(cfg.device))
    for item in scorer.missing:
        say(f"scoring {item}")
    records = network_records(cfg.networks, benchmark.networks, [column.name for column in scorer.columns])
    methods = [scorer(name, results) for name, results in folders.items()]
    for method, results in zip(methods, folders.values(), strict=True):
        method.why_not += unofficial(records)
        method.cost = [] if results.made is None else read_cost(results.made.file.parent)
    missing = {name: item.reason for item in scorer.missing for name in item.columns}
    return Evaluation(benchmark.name, benchmark.protocol, benchmark.root, scorer.columns, methods, missing, records)
