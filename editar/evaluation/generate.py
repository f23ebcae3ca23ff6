"""Edit a benchmark into a results folder: one PNG per sample, restartable.

results/
  manifest.json    what made it: checkpoint checksum, sampling settings, instructions, count
  images/ID.png    one picture per sample, written atomically; finished ones are never redone
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from editar.config import ConfigError
from editar.data.sample import EditSample
from editar.images import save_image
from editar.runtime.files import checksum, write_json
from editar.sampling.pipeline import EditPipeline


def generate(
    pipeline: EditPipeline, checkpoint: Path, samples: list[EditSample], instructions: list[str], folder: Path
) -> list[np.ndarray]:
    """Edit every sample with its instruction; returns the pictures in order, (S, S, 3) uint8."""
    claim(folder, manifest(pipeline, checkpoint, samples, instructions))
    files = [folder / "images" / f"{sample.id}.png" for sample in samples]
    todo = [i for i, file in enumerate(files) if not file.is_file()]
    size = pipeline.cfg.sampling.batch_size
    with tqdm(
        total=len(samples), initial=len(samples) - len(todo), desc=f"editing into {folder.name}", unit="image"
    ) as bar:
        for start in range(0, len(todo), size):
            part = todo[start : start + size]
            outputs = pipeline.edit_arrays(
                [samples[i].source for i in part], [instructions[i] for i in part], [samples[i].id for i in part]
            )
            for i, output in zip(part, outputs, strict=True):
                save_image(output, files[i])
            bar.update(len(part))
    return [np.asarray(Image.open(file)) for file in files]


def manifest(
    pipeline: EditPipeline, checkpoint: Path, samples: list[EditSample], instructions: list[str]
) -> dict[str, object]:
    return {
        "weights_sha256": checksum(checkpoint / "model.safetensors"),
        "sampling": {k: v for k, v in asdict(pipeline.cfg.sampling).items() if k != "batch_size"},
        "instructions": dict(zip([sample.id for sample in samples], instructions, strict=True)),
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
