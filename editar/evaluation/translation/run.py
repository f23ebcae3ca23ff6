"""Table 2's tasks as benchmarks: pictures from depth maps, edges or label maps.

OUTPUT/images/0.png, 1.png, ...           one picture per prompt (protocol `editar`)
OUTPUT/images/group_0/0.png, ...          four per prompt (protocol `controlnet++`)
OUTPUT/edges/0.png, truncated/0.png, ...  what canny and depth are measured on (protocol `editar`)
OUTPUT/conditions/0.jpg, ...              what they were made from, small, for people to look at
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from editar.config import EvalConfig
from editar.data.sources import official_prompt
from editar.data.tables import open_table
from editar.errors import BenchmarkError
from editar.evaluation.benchmark import Benchmark, smaller_than
from editar.evaluation.translation.dataset import COLUMNS, EXPECTED_ROWS, TranslationCase, read_case
from editar.evaluation.translation.metrics import FID, TranslationMetrics, fid_column
from editar.evaluation.translation.protocol import SIZE, UNROUNDED, protocol, renderings
from editar.generation.generate import EditJob, Renderings
from editar.generation.result_folder import ResultFolder
from editar.images import save_image
from editar.metrics.fid import Inception, cached_statistics, frechet_distance, mean_of_groups, statistics
from editar.metrics.networks import load_or_leave
from editar.metrics.pictures import Mapped, load_in_batches, load_square
from editar.runtime.files import content_sum
from editar.tables.scores import MethodScores

THUMBNAIL = 192


class Translation(Benchmark):
    """A validation set as the protocol reads it. Raises DataError for another table."""

    tables = ("table2", "supplement_c")
    source: ClassVar[str]  # its training set's name in configs/source, which has the prompt
    caption_column: ClassVar[str] = "text"
    settings: ClassVar[tuple[str, ...]] = ("root", "protocol", "prompt", "rows", "fid_statistics")

    def __init__(self, cfg: EvalConfig) -> None:
        super().__init__(cfg)
        self.rules = replace(protocol(cfg.protocol), operator=cfg.canny.operator)
        self.protocol = self.rules.name
        self.table = open_table(self.root, COLUMNS[self.name], split="validation")
        self.count = min(len(self.table), cfg.rows or len(self.table))
        if not self.count:
            raise BenchmarkError(f"{self.root}: holds no rows; is the download complete?")
        self.fingerprint = f"{self.table.revision} {self.name} {self.rules.geometry} official {self.count}"

    def case(self, index: int) -> TranslationCase:
        return read_case(self.name, self.table[index], str(index), self.rules)

    def photograph(self, index: int) -> np.ndarray:
        """FID's reference, (512, 512, 3) uint8."""
        return self.case(index).image

    @cached_property
    def captions(self) -> list[str]:
        """Read from their own column, without the pictures."""
        table = open_table(self.root, [self.caption_column], split="validation")
        return [str(table[index][self.caption_column]) for index in range(self.count)]

    def renderings(self) -> Renderings:
        return renderings(self.name, self.rules)

    def groups(self) -> list[list[str]]:
        """Names of the result pictures: per group, one for each row."""
        rows = [str(index) for index in range(self.count)]
        if self.rules.images_per_prompt == 1:
            return [rows]
        return [[f"group_{group}/{row}" for row in rows] for group in range(self.rules.images_per_prompt)]

    def jobs(self) -> list[EditJob]:
        prompt = self.cfg.prompt or official_prompt(self.source)
        return [
            EditJob(name, name, prompt.replace("{}", caption), caption, partial(self.condition, index), SIZE)
            for group in self.groups()
            for index, (name, caption) in enumerate(zip(group, self.captions, strict=True))
        ]

    def condition(self, index: int) -> np.ndarray:
        return self.case(index).condition

    def sources_sum(self) -> str:
        return content_sum([*self.table.files, *(self.table.images.files if self.table.images else [])])

    def names(self) -> dict[str, str]:
        return {name: f"{name}.png" for group in self.groups() for name in group}

    def scorer(self, device: torch.device) -> TranslationScorer:
        return TranslationScorer(self, device)


class Depth(Translation):
    name, title, source = "depth", "Depth to picture", "multigen_depth"
    networks: ClassVar = {"depth": ("depth_rmse",), **FID["depth"]}


class Canny(Translation):
    name, title, source = "canny", "Edges to picture", "multigen_canny"
    settings = (*Translation.settings, "canny")
    networks: ClassVar = FID["canny"]

    def __init__(self, cfg: EvalConfig) -> None:
        super().__init__(cfg)
        if self.rules.operator != "kornia":
            self.protocol += f" {self.rules.operator}"
        found = open_table(self.root, split="validation").columns
        self.set = "depth_eval" if "control_depth" in found else "canny_eval"

    def sources_sum(self) -> str:
        return super().sources_sum() + ("" if self.rules.operator == "kornia" else f" {self.rules.operator}")


class CocoStuff(Translation):
    name, title, source, caption_column = "cocostuff", "Segmentation to picture", "cocostuff", "prompt"
    networks: ClassVar = {"segmenter": ("cocostuff_accuracy", "cocostuff_miou", "cocostuff_macc"), **FID["cocostuff"]}


class TranslationScorer:
    """Scores every method's pictures of every row, and their FID."""

    def __init__(self, benchmark: Translation, device: torch.device) -> None:
        self.benchmark = benchmark
        cfg = benchmark.cfg
        self.metrics = TranslationMetrics(benchmark.name, benchmark.rules, cfg.networks, device)
        self.fid = Fid(benchmark, device)
        self.missing = self.metrics.missing + self.fid.missing
        self.columns = self.metrics.columns + ([] if self.fid.missing else [self.fid.column])

    def __call__(self, name: str, results: ResultFolder) -> MethodScores:
        self.metrics.begin()
        benchmark, made, unrounded = self.benchmark, results.generated_with, dict[str, Path]()
        if benchmark.rules.unrounded and benchmark.name in UNROUNDED:
            unrounded = results.beside(UNROUNDED[benchmark.name], benchmark.names())
        rows = list(self.rows(results, unrounded))
        whole, reasons = self.metrics.whole() | self.fid(results), self.incomparable(made)
        if benchmark.rules.unrounded and benchmark.name in UNROUNDED and not unrounded:
            reasons.append(f"{benchmark.name} scored on 8-bit pictures, the paper's on the output before rounding")
        return MethodScores(name, str(results.source), rows, {}, whole, reasons, made)

    def rows(self, results: ResultFolder, unrounded: dict[str, Path]) -> Iterator[dict[str, Any]]:
        """A row per prompt, in order."""
        benchmark, cfg = self.benchmark, self.benchmark.cfg
        names, thumbnails = list(zip(*benchmark.groups(), strict=True)), benchmark.thumbnails("conditions")
        cases = Mapped(partial(label_and_results, benchmark, results, unrounded), list(enumerate(names)))
        with tqdm(total=benchmark.count, desc="scoring", unit="prompt", mininterval=2) as bar, torch.inference_mode():
            for batch in load_in_batches(cases, cfg.score_batch, cfg.num_workers):
                labels, pictures = (np.stack(values) for values in zip(*batch, strict=True))
                for values in self.metrics(labels, pictures):
                    yield {
                        "id": str(bar.n),
                        "instruction": benchmark.captions[bar.n],
                        "source": str(thumbnails / f"{bar.n}.jpg"),
                        "result": str(results.path(names[bar.n][0], f"{names[bar.n][0]}.png")),
                    } | values
                    bar.update()

    def incomparable(self, made: dict[str, Any] | None) -> list[str]:
        """Why the result must not be read against the paper's rows; [] if it may."""
        benchmark, reasons = self.benchmark, list[str]()
        rules = benchmark.rules
        if benchmark.count != EXPECTED_ROWS:
            reasons.append(f"{benchmark.count} prompts instead of {EXPECTED_ROWS}")
        if isinstance(benchmark, Canny) and benchmark.set != rules.canny_set:
            reasons.append(f"pictures of {benchmark.set}, {rules.name} takes those of {rules.canny_set}")
        return [*reasons, *smaller_than(made, SIZE, "made")]


def label_and_results(
    benchmark: Translation, results: ResultFolder, unrounded: dict[str, Path], row: tuple[int, tuple[str, ...]]
) -> tuple[np.ndarray, np.ndarray]:
    """A row's number and result names -> label (512, 512) and pictures (G, 512, 512, 3), edges (G, 512, 512) where
    `unrounded` has them; leaves a thumbnail."""
    case = benchmark.case(row[0])
    thumbnail = Image.fromarray(case.condition).resize((THUMBNAIL, THUMBNAIL))
    # Written again each time: the folder may hold those of another root.
    save_image(thumbnail, benchmark.thumbnails("conditions") / f"{row[0]}.jpg")
    files = [unrounded.get(name) or results.path(name, f"{name}.png") for name in row[1]]
    pictures = np.stack([load_square(file, SIZE) for file in files])
    return case.label, pictures[..., 0] if unrounded and benchmark.name == "canny" else pictures


class Fid:
    """FID of a method's pictures against the photographs; a column that is missing without Inception's file.

    Raises BenchmarkError for statistics that do not fit or cannot be kept.
    """

    def __init__(self, benchmark: Translation, device: torch.device) -> None:
        cfg = benchmark.cfg
        self.column = fid_column(benchmark.name)
        self.benchmark, self.device, self.workers = benchmark, device, cfg.num_workers
        cache = Path(cfg.fid_statistics or beside(benchmark))
        inception, missing = load_or_leave(
            "inception", cfg.networks.inception, (self.column.name,), lambda source: Inception(source, device)
        )
        self.inception, self.missing = inception, [missing] if missing else []
        if inception is not None:  # now, before an hour of scoring, in case it fails
            real = Mapped(benchmark.photograph, range(benchmark.count))
            made_of = (benchmark.fingerprint, inception, inception.checksum)
            self.reference = cached_statistics(cache, real, *made_of, device, self.workers)

    def __call__(self, results: ResultFolder) -> dict[str, float]:
        """Column -> FID, averaged over the protocol's groups; {} without the network."""
        if self.inception is None:
            return {}
        network, sum = self.inception, self.inception.checksum
        distances = []
        for group in self.benchmark.groups():
            files = [results.path(name, f"{name}.png") for name in group]
            pictures = Mapped(partial(load_square, size=SIZE), files)
            made = statistics(pictures, content_sum(files), network, sum, self.device, self.workers)
            distances.append(frechet_distance(self.reference, made))
        return {self.column.name: mean_of_groups(distances)}


def beside(benchmark: Translation) -> Path:
    """Where the photographs' statistics lie by default: in the root, or beside a root that is one file."""
    name, root = f"fid_{benchmark.name}_{benchmark.rules.geometry}_{benchmark.count}.npz", Path(benchmark.root)
    return root.with_name(f"{root.stem}_{name}") if root.is_file() else root / name
