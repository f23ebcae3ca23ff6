"""Edit a benchmark into a results folder: one PNG per picture, restartable, shared by all ranks.

FOLDER/manifest.json    what made it: weights' checksum, sampling settings, instructions
FOLDER/images/NAME.png  written atomically; finished ones are never redone
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from editar.config import ConfigError
from editar.images import resize_and_crop, save_image
from editar.runtime.distributed import World
from editar.runtime.files import checksum, write_json
from editar.sampling.pipeline import EditPipeline


@dataclass(frozen=True)
class EditJob:
    """One edit. `id` chooses its random numbers, `name` its file below images/ (without suffix);
    `source()` opens the picture; `size` is the side of the result."""

    id: str
    name: str
    instruction: str
    source: Callable[[], np.ndarray]
    size: int


def generate(pipeline: EditPipeline, checkpoint: Path, jobs: list[EditJob], folder: Path, world: World) -> list[Path]:
    """Edit every job that has no file yet; returns all files in order."""
    files = [folder / "images" / f"{job.name}.png" for job in jobs]
    if world.is_main:
        claim(folder, manifest(pipeline, checkpoint, jobs))
    world.barrier()
    todo = [i for i, file in enumerate(files) if not file.is_file()]
    world.barrier()  # everybody has looked before anybody writes, so all deal the same cards
    mine = todo[world.rank :: world.size]
    size = pipeline.batch_size
    with tqdm(total=len(mine), desc=f"editing into {folder.name}", unit="image", disable=not world.is_main) as bar:
        for start in range(0, len(mine), size):
            part = mine[start : start + size]
            sources = [fit(jobs[i].source(), pipeline.cfg.image_size) for i in part]
            outputs = pipeline.edit_arrays(sources, [jobs[i].instruction for i in part], [jobs[i].id for i in part])
            for i, output in zip(part, outputs, strict=True):
                save_image(fit(output, jobs[i].size), files[i])
            bar.update(len(part))
    world.barrier()
    return files


def fit(picture: np.ndarray, size: int) -> np.ndarray:
    """(H, W, 3) uint8 at size x size, as training does it; untouched when it already is."""
    return picture if picture.shape[:2] == (size, size) else np.array(resize_and_crop(Image.fromarray(picture), size))


def manifest(pipeline: EditPipeline, checkpoint: Path, jobs: list[EditJob]) -> dict[str, object]:
    return {
        "weights_sha256": checksum(checkpoint / "model.safetensors"),
        "image_size": pipeline.cfg.image_size,
        "sampling": {k: v for k, v in asdict(pipeline.cfg.sampling).items() if k != "batch_size"},
        "instructions": {job.id: job.instruction for job in jobs},
    }


def claim(folder: Path, wanted: dict[str, object]) -> None:
    """Enter a results folder; refuses one that was made with other weights, settings or instructions."""
    file = folder / "manifest.json"
    if file.is_file():
        found = json.loads(file.read_text())
        other = [key for key in wanted if found.get(key) != json.loads(json.dumps(wanted[key]))]
        if other:
            raise ConfigError(
                f"{folder} holds results made with other {', '.join(other)}; choose another output_dir or remove it"
            )
    elif folder.exists() and any(folder.iterdir()):
        raise ConfigError(f"{folder} is in use and holds no manifest.json; choose another output_dir")
    write_json(file, wanted)
