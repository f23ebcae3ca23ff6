"""Codes of a data set, made once by the frozen tokenizer and read many times.

A row holds source codes, target codes, text token ids and, when a teacher is on, its features of the
target. Rows are made in memory and kept beside the run, so a resumed run does not make them again.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader
from tqdm import tqdm

from editar.data.nano_world import TASKS, NanoWorld
from editar.data.sample import EditSample
from editar.encoders.teacher import Teacher
from editar.encoders.text import TextEncoder
from editar.encoders.vq import VQModel
from editar.images import batch_to_tensor
from editar.runtime.files import CheckpointError, load_weights, save_weights


@dataclass
class CodesTable:
    """n rows: source, target (n, N) int32 codes; text (n, L) int32 ids, 0 = pad; task (n,) int32
    index into TASKS; features (n, T, C) float16 or None."""

    source: torch.Tensor
    target: torch.Tensor
    text: torch.Tensor
    task: torch.Tensor
    features: torch.Tensor | None = None

    def __len__(self) -> int:
        return len(self.source)

    def select(self, rows: np.ndarray, device: torch.device) -> CodesTable:
        """The given rows on `device`, codes and ids as int64."""
        index = torch.from_numpy(rows)
        return CodesTable(
            source=self.source[index].long().to(device),
            target=self.target[index].long().to(device),
            text=self.text[index].long().to(device),
            task=self.task[index].long().to(device),
            features=None if self.features is None else self.features[index].float().to(device),
        )

    def tensors(self) -> dict[str, torch.Tensor]:
        return {name: value for name, value in vars(self).items() if value is not None}


def fingerprint(tokenizer: VQModel, world: NanoWorld, text: TextEncoder, teacher: str) -> str:
    """What a table depends on, as one short hash."""
    digest = hashlib.sha256()
    for name, value in sorted(tokenizer.state_dict().items()):
        if name != "quantize.codebook_used":
            digest.update(value.detach().cpu().float().numpy().tobytes())
    digest.update(f"{world.split} {world.samples} {world.seed} {text.cfg} {teacher}".encode())
    return digest.hexdigest()[:16]


def load_or_build(
    path: Path, world: NanoWorld, tokenizer: VQModel, text: TextEncoder, teacher: Teacher | None, teacher_name: str,
    workers: int, device: torch.device,
) -> CodesTable:  # fmt: skip
    """The table at `path` when it was made from the same things, else a new one written there."""
    mark = fingerprint(tokenizer, world, text, teacher_name)
    file = path.with_name(f"{path.name}_{mark}.safetensors")
    if file.is_file():
        try:
            return CodesTable(**load_weights(file))
        except CheckpointError:
            file.unlink()
    table = build_table(world, tokenizer, text, teacher, workers, device)
    save_weights(table.tensors(), file)
    return table


@torch.no_grad()
def build_table(
    world: NanoWorld, tokenizer: VQModel, text: TextEncoder, teacher: Teacher | None, workers: int, device: torch.device
) -> CodesTable:
    """Encode every sample of `world`, in order."""
    loader: DataLoader = DataLoader(world, batch_size=64, collate_fn=list, num_workers=workers)
    parts: list[CodesTable] = []
    batch: list[EditSample]
    for batch in tqdm(loader, desc=f"encoding {world.split}", unit="batch", mininterval=2):
        source = batch_to_tensor(np.stack([sample.source for sample in batch])).to(device)
        target = batch_to_tensor(np.stack([sample.target for sample in batch])).to(device)
        codes = tokenizer.encode(torch.cat([source, target])).int().cpu()
        parts.append(
            CodesTable(
                source=codes[: len(batch)],
                target=codes[len(batch) :],
                text=text.tokenize([sample.instruction for sample in batch]).ids.int(),
                task=torch.tensor([TASKS.index(sample.task) for sample in batch], dtype=torch.int32),
                features=None if teacher is None else teacher(target).half().cpu(),
            )
        )
    return CodesTable(**{name: torch.cat([getattr(part, name) for part in parts]) for name in parts[0].tensors()})
