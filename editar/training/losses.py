"""What the GPT is trained on, by name; the total is the sum (paper eq. 4)."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from editar.config import DropConfig, LossConfig
from editar.model.gpt import GPTOutput


def token_loss(logits: torch.Tensor, target_codes: torch.Tensor) -> torch.Tensor:
    """Mean cross entropy over all (B, N) target codes; logits (B, N, V) float32."""
    return F.cross_entropy(logits.flatten(0, 1), target_codes.flatten())


def distill_loss(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """Mean squared error of (B, T, C) features (paper eq. 3)."""
    if student.shape != teacher.shape:
        raise ValueError(
            f"student features {tuple(student.shape)} do not match the teacher's {tuple(teacher.shape)}; "
            "set teacher.grid and teacher.dim to the teacher's map"
        )
    return F.mse_loss(student, teacher)


def losses(
    output: GPTOutput, target_codes: torch.Tensor, teacher: torch.Tensor | None, cfg: LossConfig
) -> dict[str, torch.Tensor]:
    """Weighted scalars by name."""
    terms = {"token": token_loss(output.logits, target_codes)}
    if output.features is not None and teacher is not None:
        terms["distill"] = cfg.distill_weight * distill_loss(output.features, teacher)
    return terms


def condition_drops(uniform: torch.Tensor, cfg: DropConfig) -> tuple[torch.Tensor, torch.Tensor]:
    """One number in [0, 1) per sample -> (drop_image, drop_text), (B,) bool.

    EditAR compares strictly in float32: r < both drops both, r < both + image the image alone,
    r > 1 - text the text alone.
    """
    r = uniform.float()
    drop_image = r < torch.tensor(cfg.both + cfg.image)
    drop_text = (r < torch.tensor(cfg.both)) | (r > torch.tensor(1 - cfg.text))
    return drop_image, drop_text
