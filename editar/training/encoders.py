"""The frozen networks of a training: tokenizer, text encoder and teacher."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from editar.config import TrainConfig
from editar.data import codes
from editar.data.loader import Batch
from editar.errors import ConfigError
from editar.images import batch_to_tensor
from editar.models.teacher import Teacher, build_teacher
from editar.models.text import TextEncoder
from editar.models.vq import VQModel
from editar.weights.load import load_vq


@dataclass
class Encoders:
    """Pictures and instructions in, what the GPT reads out."""

    tokenizer: VQModel
    text: TextEncoder
    teacher: Teacher | None

    @classmethod
    def build(cls, cfg: TrainConfig, device: torch.device) -> Encoders:
        """Raises ConfigError, for instance when the teacher's features are not what the config says."""
        return cls(build_tokenizer(cfg, device), TextEncoder(cfg.text, device), build_teacher_of(cfg, device))

    @torch.no_grad()
    def codes(self, values: torch.Tensor) -> torch.Tensor:
        """Codes (B, K N) as they are, pictures (B, [K,] H, W, 3) uint8 through the tokenizer -> (B, K N) int64."""
        if values.dim() == 2:
            return values
        return self.tokenizer.encode(batch_to_tensor(values.view(-1, *values.shape[-3:]))).view(len(values), -1)

    def features(self, batch: Batch) -> torch.Tensor | None:
        """The teacher's features of the target (B, T, C) float32; None without a teacher."""
        if self.teacher is None or batch.features is not None:
            return batch.features
        assert batch.picture is not None
        return self.teacher(batch.picture)


def build_tokenizer(cfg: TrainConfig, device: torch.device) -> VQModel:
    if cfg.tokenizer.weights is None:
        raise ConfigError("tokenizer.weights is null; give the run folder of a trained tokenizer")
    tokenizer = VQModel(cfg.tokenizer).to(device).eval().requires_grad_(False)
    load_vq(tokenizer, cfg.tokenizer.weights)
    return tokenizer


def build_teacher_of(cfg: TrainConfig, device: torch.device) -> Teacher | None:
    grid = cfg.gpt.teacher_grid or cfg.gpt.grid // 2
    teacher = build_teacher(cfg.teacher, device, grid)
    if teacher is not None:  # tried once, before anything is encoded or trained
        black = np.zeros((cfg.image_size, cfg.image_size, 3), np.uint8)
        if cfg.data.cache and cfg.data.cache_pictures == codes.JPEG and not cfg.data.cache_features:
            black = codes.unpack_picture(codes.pack_picture(black))
        found = tuple(teacher(torch.from_numpy(teacher.prepare(black))[None]).shape[1:])
        if found != (grid * grid, cfg.teacher.dim):
            raise ConfigError(
                f"teacher={cfg.teacher.name} gives {found[0]} features of {found[1]} numbers, the config says "
                f"{grid}x{grid} of {cfg.teacher.dim}; set teacher.grid and teacher.dim"
            )
    return teacher
