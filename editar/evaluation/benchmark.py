"""What a benchmark is. Each folder of this package holds one (or a family), found by name in `registry`.

`editar.evaluation.run` does the same with all of them: edit the jobs into a results folder, check that every
picture is there, score each method, write scores.json, tables and whatever else `show` adds.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np
import torch

from editar.config import DataConfig, EvalConfig, TrainConfig, from_yaml
from editar.errors import ConfigError
from editar.generation.editors import Editor
from editar.generation.generate import TRUNCATED, EditJob, Renderings
from editar.generation.result_folder import ResultFolder
from editar.images import load_image
from editar.metrics.networks import Missing
from editar.tables.scores import Column, Evaluation, MethodScores


class Scorer(Protocol):
    """Scores a method's pictures; networks are loaded, `missing` ones leave their columns out."""

    columns: list[Column]
    missing: list[Missing]

    def __call__(self, name: str, results: ResultFolder) -> MethodScores:
        """Rows in the order of the benchmark. Each holds `id`, `instruction`, the files `source` and `result`,
        perhaps `mask` and `target`, and a number (NaN: undefined) per column that is not one of the whole result."""
        ...


class Benchmark(ABC):
    """A benchmark opened from its settings; its files are looked at here, before any network is loaded.

    name       on the command line, with a file of that name in configs/benchmark
    title      as a heading
    protocol   name and version of the way of measuring; numbers of other protocols are never put side by side
    tables     the paper's tables it belongs to, () = none
    networks   field of NetworkSources -> the columns that it scores
    settings   those of EvalConfig's `of_benchmark` that it has; any other stops the start
    """

    name: ClassVar[str]
    title: ClassVar[str]
    protocol: str
    tables: ClassVar[tuple[str, ...]] = ()
    networks: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    needs_root: ClassVar[bool] = True
    settings: ClassVar[tuple[str, ...]] = ("root",)

    def __init__(self, cfg: EvalConfig) -> None:
        """Raises ConfigError or DataError."""
        unset = EvalConfig()
        for spec in fields(EvalConfig):
            foreign, value = spec.name not in self.settings, getattr(cfg, spec.name)
            if spec.metadata.get("of_benchmark") and foreign and value != getattr(unset, spec.name):
                raise ConfigError(f"benchmark={self.name} has no {spec.name}, found {spec.name}={value}; leave it out")
        self.cfg, self.root = cfg, str(cfg.root or "")
        if self.needs_root and not cfg.root:
            raise ConfigError(f"benchmark={self.name} needs root=FOLDER")

    @abstractmethod
    def jobs(self) -> list[EditJob]:
        """Every edit, in order."""

    @abstractmethod
    def sources_sum(self) -> str:
        """A checksum that changes with the source pictures; it belongs to what a results folder was made from."""

    @abstractmethod
    def names(self) -> dict[str, str]:
        """Id -> file name of every picture that a method must have."""

    @abstractmethod
    def scorer(self, device: torch.device) -> Scorer: ...

    def renderings(self) -> Renderings:
        """What is kept of each output of a checkpoint."""
        return TRUNCATED

    def also_make(self, editor: Editor, folder: Path) -> None:  # noqa: B027 - most benchmarks make nothing else
        """Further pictures of the editor beside images/, made by the first process."""

    def show(self, evaluation: Evaluation, out: Path) -> None:  # noqa: B027
        """What people look at besides scores.json and the tables."""

    @staticmethod
    def load_result(path: Path) -> np.ndarray:
        """A result as it is scored, (H, W, 3) uint8."""
        return np.array(load_image(path))

    def thumbnails(self, kind: str) -> Path:
        """Where the report's copies of pictures go that the results folder does not hold: sources, masks."""
        return Path(self.cfg.output_dir) / kind


def training_data(cfg: EvalConfig) -> DataConfig | None:
    """What the checkpoint was trained on, None where there is none or nothing says it. Raises ConfigError."""
    config = Path(cfg.checkpoint or "") / "config.yaml"
    return from_yaml(TrainConfig, config).data if cfg.checkpoint and config.is_file() else None


def describe_row(job: EditJob, results: ResultFolder, name: str, source: Path, **files: Path) -> dict[str, Any]:
    """What a row says besides its numbers; `files` are its `mask` and `target`, where it has them."""
    found = {"source": source, "result": results.path(job.id, name), **files}
    return {"id": job.id, "instruction": job.instruction} | {key: str(file) for key, file in found.items()}


def smaller_than(made: dict[str, object] | None, size: int, verb: str) -> Sequence[str]:
    """A reason against comparing pictures of ours that were made at another size than the benchmark's."""
    if made is None or made["image_size"] == size:
        return []
    return [f"{verb} at {made['image_size']} px, enlarged to {size}"]
