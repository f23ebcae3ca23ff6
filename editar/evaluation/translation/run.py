"""Table 2's tasks: make pictures from depth maps, edges or label maps, score any folders of them.

OUTPUT/images/0.png, 1.png, ...           one picture per prompt (protocol `editar`)
OUTPUT/images/group_0/0.png, ...          four per prompt (protocol `controlnet++`)
OUTPUT/conditions/0.jpg, ...              what they were made from, small, for people to look at
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import OmegaConf
from PIL import Image
from torch.utils.data import Dataset
from tqdm import tqdm

from editar.config import CONFIG_DIR, EvalConfig
from editar.data.tables import open_table
from editar.evaluation.translation.dataset import COLUMNS, EXPECTED_ROWS, TranslationCase, read_case
from editar.evaluation.translation.metrics import TranslationMetrics
from editar.evaluation.translation.protocol import SIZE, protocol
from editar.generation.editors import open_editor
from editar.generation.generate import EditJob, generate
from editar.generation.result_folder import Results
from editar.images import save_image
from editar.metrics.fid import (
    Inception,
    PictureFiles,
    cached_statistics,
    frechet_distance,
    mean_of_groups,
    statistics,
)
from editar.metrics.loading import batches
from editar.metrics.networks import judge_records, try_judge, unofficial
from editar.metrics.pictures import load_square
from editar.runtime.device import pick_device
from editar.runtime.distributed import World
from editar.runtime.files import content_sum
from editar.runtime.log import say
from editar.tables.scores import Column, Evaluation, MethodScores, missing_columns

SOURCES = {"depth": "multigen_depth", "canny": "multigen_canny", "cocostuff": "cocostuff"}
THUMBNAIL = 192


class Cases(Dataset[TranslationCase]):
    """The rows of a validation set as the protocol reads them. Raises DataError for another table."""

    def __init__(self, cfg: EvalConfig) -> None:
        self.task, self.rules = cfg.benchmark, protocol(cfg.protocol)
        self.root = str(cfg.root)
        self.table = open_table(self.root, COLUMNS[self.task], split="validation")
        self.count = min(len(self.table), cfg.rows or len(self.table))
        self.fingerprint = f"{self.table.revision} {self.task} {self.rules.geometry} {self.count}"

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> TranslationCase:
        return read_case(self.task, self.table[index], str(index), self.rules)

    @cached_property
    def captions(self) -> list[str]:
        """Read from their own column, without the pictures."""
        column = "prompt" if self.task == "cocostuff" else "text"
        table = open_table(self.root, [column], split="validation")
        return [str(table[index][column]) for index in range(self.count)]

    def content_sum(self) -> str:
        """SHA-256 over the table's files."""
        return content_sum([*self.table.files, *(self.table.images.files if self.table.images else [])])

    def groups(self) -> list[list[str]]:
        """Names of the result pictures: per group, one for each row."""
        rows = [str(index) for index in range(len(self))]
        if self.rules.images_per_prompt == 1:
            return [rows]
        return [[f"group_{group}/{row}" for row in rows] for group in range(self.rules.images_per_prompt)]


def edit(cfg: EvalConfig, cases: Cases, world: World) -> None:
    prompt = cfg.prompt or OmegaConf.load(CONFIG_DIR / "source" / f"{SOURCES[cases.task]}.yaml").prompt
    jobs = [
        EditJob(
            id=name,
            name=name,
            instruction=prompt.format(cases.captions[index]),
            caption=cases.captions[index],
            source=lambda index=index: cases[index].condition,  # type: ignore[misc]
            size=SIZE,
        )
        for group in cases.groups()
        for index, name in enumerate(group)
    ]
    generate(open_editor(cfg, world.device), jobs, Path(cfg.output_dir), world, cases.content_sum)


def score(cfg: EvalConfig, cases: Cases) -> Evaluation:
    """Score every method's pictures of every row."""
    methods, device = {name: Results(source) for name, source in cfg.named_results().items()}, pick_device(cfg.device)
    for results in methods.values():
        results.check({name: f"{name}.png" for group in cases.groups() for name in group})
    metrics, missing = TranslationMetrics.load(cases.task, cases.rules, cfg.judges, device)
    fid = Fid(cfg, cases, device)
    missing += fid.missing
    for item in missing:
        say(f"scoring {item}")
    columns = metrics.columns + ([] if fid.missing else [fid.column])
    judges = judge_records(cfg.judges, [column.name for column in columns])
    scored = [score_method(cfg, cases, metrics, fid, name, results) for name, results in methods.items()]
    for method in scored:
        method.why_not += unofficial(judges) if metrics.comparable else []
    return Evaluation(cases.task, cases.rules.name, str(cfg.root), columns, scored, missing_columns(missing), judges)


def score_method(
    cfg: EvalConfig, cases: Cases, metrics: TranslationMetrics, fid: Fid, name: str, results: Results
) -> MethodScores:
    metrics.begin()
    rows = list(score_rows(cfg, cases, metrics, results))
    manifest = results.generated_with
    reasons = incomparable(cases, metrics, manifest)
    return MethodScores(name, str(results.source), rows, {}, metrics.whole() | fid(results), reasons, manifest)


def score_rows(
    cfg: EvalConfig, cases: Cases, metrics: TranslationMetrics, results: Results
) -> Iterator[dict[str, Any]]:
    """A row per prompt, in order."""
    names, thumbnails = list(zip(*cases.groups(), strict=True)), Path(cfg.output_dir) / "conditions"
    dataset = Scored(cases, results, thumbnails)
    with tqdm(total=len(cases), desc="scoring", unit="prompt", mininterval=2) as bar, torch.inference_mode():
        for batch in batches(dataset, cfg.score_batch, cfg.num_workers):
            labels, pictures = (np.stack(values) for values in zip(*batch, strict=True))
            for values in metrics(labels, pictures):
                yield {
                    "id": str(bar.n),
                    "instruction": cases.captions[bar.n],
                    "source": str(thumbnails / f"{bar.n}.jpg"),
                    "result": str(results.path(names[bar.n][0], f"{names[bar.n][0]}.png")),
                } | values
                bar.update()


class Scored(Dataset[tuple[np.ndarray, np.ndarray]]):
    """(label (512, 512), pictures (G, 512, 512, 3)) of each row, decoded in workers; leaves a thumbnail."""

    def __init__(self, cases: Cases, results: Results, thumbnails: Path) -> None:
        self.cases, self.results, self.thumbnails = cases, results, thumbnails
        self.names = list(zip(*cases.groups(), strict=True))

    def __len__(self) -> int:
        return len(self.cases)

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        case = self.cases[index]
        thumbnail = Image.fromarray(case.condition).resize((THUMBNAIL, THUMBNAIL))
        save_image(thumbnail, self.thumbnails / f"{index}.jpg")  # anew: the folder may hold another root's
        files = [self.results.path(name, f"{name}.png") for name in self.names[index]]
        return case.label, np.stack([load_square(file, SIZE) for file in files])


class RealPictures(Dataset[np.ndarray]):
    """The photographs themselves, FID's reference."""

    def __init__(self, cases: Cases) -> None:
        self.cases = cases

    def __len__(self) -> int:
        return len(self.cases)

    def __getitem__(self, index: int) -> np.ndarray:
        return self.cases[index].image


class Fid:
    """FID of a method's pictures against the photographs; a column that is missing without Inception's file.

    Raises BenchmarkError for statistics that do not fit or cannot be kept.
    """

    def __init__(self, cfg: EvalConfig, cases: Cases, device: torch.device) -> None:
        self.column = Column(f"{cases.task}_fid", "FID", "FID", "lower")
        self.cases, self.device, self.workers = cases, device, cfg.num_workers
        self.cache = Path(cfg.fid_statistics or beside(cases))
        inception, missing = try_judge(
            "inception", cfg.judges.inception, (self.column.name,), lambda source: Inception(source, device)
        )
        self.inception, self.missing = inception, [missing] if missing else []
        if inception is not None:  # now, before an hour of scoring, in case it fails
            self.reference = cached_statistics(
                self.cache, RealPictures(cases), cases.fingerprint, inception, inception.checksum, device, self.workers
            )

    def __call__(self, results: Results) -> dict[str, float]:
        """Column -> FID, averaged over the protocol's groups; {} without the network."""
        if self.inception is None:
            return {}
        network, sum = self.inception, self.inception.checksum
        distances = []
        for group in self.cases.groups():
            files = [results.path(name, f"{name}.png") for name in group]
            made = statistics(PictureFiles(files), content_sum(files), network, sum, self.device, self.workers)
            distances.append(frechet_distance(self.reference, made))
        return {self.column.name: mean_of_groups(distances)}


def beside(cases: Cases) -> Path:
    """Where the photographs' statistics lie by default: in the root, or beside a root that is one file."""
    name, root = f"fid_{cases.task}_{cases.rules.geometry}_{len(cases)}.npz", Path(cases.root)
    return root.with_name(f"{root.stem}_{name}") if root.is_file() else root / name


def incomparable(cases: Cases, metrics: TranslationMetrics, manifest: dict[str, Any] | None) -> list[str]:
    """Why the result must not be read against the paper's rows; [] if it may."""
    reasons = []
    if len(cases) != EXPECTED_ROWS:
        reasons.append(f"{len(cases)} prompts instead of {EXPECTED_ROWS}")
    if cases.rules.name != "editar":
        reasons.append(f"protocol {cases.rules.name}, the paper's rows follow `editar`")
    if not metrics.comparable:
        reasons.append("another segmenter than the published DeepLabV3")
    if manifest is not None and manifest["image_size"] != SIZE:
        reasons.append(f"made at {manifest['image_size']} px, enlarged to {SIZE}")
    return reasons
