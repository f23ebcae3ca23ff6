"""What edits a benchmark: our checkpoint or a baseline, behind one small interface."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Protocol

import numpy as np
import torch

from editar.config import EvalConfig
from editar.generation.diffusers_baselines import DiffusersEditor
from editar.runtime.files import checksum
from editar.runtime.hub import local_folder
from editar.sampling.pipeline import EditPipeline
from editar.weights.adapter import ADAPTER_FILES, FILES, adapter_folder

# A finished picture (S, S, 3) uint8, or one before it is brought to 8 bits, (3, S, S) float32 in [-1, 1] on the CPU.
Output = np.ndarray | torch.Tensor
WITHOUT_EFFECT = ("batch_size", "window")  # sampling settings that change the time, not the pictures


class Editor(Protocol):
    """Edits batches of square pictures.

    size   side of the pictures it takes and gives
    batch  how many at a time
    reads  "instruction", or "caption" where it wants a description of the wanted picture instead
    """

    size: int
    batch: int
    reads: str

    def describe(self) -> dict[str, object]:
        """What its pictures depend on; goes into the results' manifest, which must match to go on."""
        ...

    def cost(self) -> dict[str, float]:
        """What editing cost so far, for the record; {} where nothing is counted."""
        ...

    def __call__(self, sources: list[np.ndarray], texts: list[str], ids: list[str]) -> Sequence[Output]:
        """(size, size, 3) uint8 each -> the edited pictures; `ids` choose each one's random numbers."""
        ...


class ModelEditor:
    """A checkpoint of ours."""

    reads = "instruction"

    def __init__(self, pipeline: EditPipeline, checkpoint: str | Path, lora: str | Path | None = None) -> None:
        self.pipeline, self.checkpoint, self.lora = pipeline, checkpoint, lora
        self.size, self.batch = pipeline.cfg.image_size, pipeline.batch_size

    def describe(self) -> dict[str, object]:
        return describe_model(self.pipeline, self.checkpoint, self.lora)

    def cost(self) -> dict[str, float]:
        stats = self.pipeline.stats
        names = ("images", "passes_per_image", "codes_per_pass", "images_per_s")
        return {name: getattr(stats, name) for name in names} if stats.images else {}

    def __call__(self, sources: list[np.ndarray], texts: list[str], ids: list[str]) -> Sequence[Output]:
        return self.pipeline.edit_arrays(sources, texts, ids, finish=lambda made: made.float().clamp(-1, 1).cpu())


def describe_model(pipeline: EditPipeline, checkpoint: str | Path, lora: str | Path | None = None) -> dict[str, object]:
    """What the pictures of a pipeline, loaded from `checkpoint` and an adapter, depend on."""
    folder = local_folder(checkpoint, FILES)
    adapter = {} if lora is None else {"lora_sha256": checksum(adapter_folder(lora) / ADAPTER_FILES[1])}
    return adapter | {
        "weights_sha256": checksum(folder / "model.safetensors"),
        "tokenizer_sha256": checksum(folder / "tokenizer.safetensors"),
        "dtype": str(pipeline.gpt.output.weight.dtype).removeprefix("torch."),
        "sampling": {k: v for k, v in asdict(pipeline.cfg.sampling).items() if k not in WITHOUT_EFFECT},
    }


def open_editor(cfg: EvalConfig, device: torch.device) -> Editor:
    """The baseline's or the checkpoint's editor. Raises CheckpointError or ConfigError."""
    if cfg.baseline.given:
        return DiffusersEditor(cfg.baseline, cfg.benchmark, device)
    checkpoint = str(cfg.checkpoint)
    pipeline = EditPipeline.from_pretrained(
        checkpoint, device, cfg.sampling, dtype=cfg.dtype, text_name=cfg.text.name, lora=cfg.lora
    )
    return ModelEditor(pipeline, checkpoint, cfg.lora)
