"""What the GPT is trained on, by name; the total is the sum (paper eq. 4).

`Objective` is what DDP and FSDP wrap. Only the N target positions get logits, and these are never
whole in memory: `ChunkedCrossEntropy` makes them, their softmax and both gradients a chunk at a time.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from editar.config import DropConfig, LossConfig
from editar.models.gpt import GPT

CHUNK_LOGITS = 2**26  # logits alive at once: 256 MB in float32, a thirty-second of a micro-batch of 8 at 512 px


class LossOutput(NamedTuple):
    """Weighted losses by name (scalars), and per sample (B,) float32 what they say about the tokens:
    mean negative log-likelihood and share of codes that are the most likely one (both detached)."""

    terms: dict[str, torch.Tensor]
    nll: torch.Tensor
    accuracy: torch.Tensor


class Objective(nn.Module):
    """A GPT and its losses. Training and held-out evaluation both go through here."""

    def __init__(self, gpt: GPT, cfg: LossConfig) -> None:
        super().__init__()
        self.gpt, self.cfg = gpt, cfg

    def forward(
        self,
        source_codes: torch.Tensor,
        text: torch.Tensor,
        target_codes: torch.Tensor,
        drop_image: torch.Tensor | None = None,
        drop_text: torch.Tensor | None = None,
        teacher: torch.Tensor | None = None,
    ) -> LossOutput:
        """Arguments as `GPT.forward`; teacher (B, T, C) float32 or None (no distillation)."""
        hidden = self.gpt.hidden(source_codes, text, target_codes, drop_image, drop_text)  # (B, N, D)
        token, nll, hits = token_loss(hidden, self.gpt.output.weight, target_codes)
        terms = {"token": token}
        if teacher is not None:
            terms["distill"] = self.cfg.distill_weight * distill_loss(self.gpt.align(hidden), teacher)
        return LossOutput(terms, nll.mean(dim=1), hits.float().mean(dim=1))


def token_loss(
    hidden: torch.Tensor, weight: torch.Tensor, target_codes: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Mean cross entropy of the codes that `hidden` (B, N, D) predicts through the output layer
    `weight` (V, D), target_codes (B, N) int64 -> scalar, and detached per code: its negative
    log-likelihood (B, N) float32 and whether it is the most likely one (B, N) bool.

    The product runs in autocast's dtype where that is on, softmax and loss in float32.
    """
    if torch.is_autocast_enabled(hidden.device.type):
        hidden, weight = (tensor.to(torch.get_autocast_dtype(hidden.device.type)) for tensor in (hidden, weight))
    loss, nll, hits = ChunkedCrossEntropy.apply(hidden.flatten(0, 1), weight, target_codes.flatten())
    return loss, nll.view_as(target_codes), hits.view_as(target_codes)


class ChunkedCrossEntropy(torch.autograd.Function):
    """Mean cross entropy of rows (R, D) times weight (V, D) against targets (R,).

    The gradients are made in the forward pass, while a chunk's logits are at hand, and only scaled in
    the backward pass: as many products as usual, no (R, V) tensor kept. (The idea is that of Liger
    kernel's fused linear cross entropy.)
    """

    @staticmethod
    def forward(
        ctx: Any, rows: torch.Tensor, weight: torch.Tensor, target: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        count, chunk = rows.shape[0], max(1, CHUNK_LOGITS // weight.shape[0])
        nll = torch.empty(count, device=rows.device)
        hits = torch.empty(count, device=rows.device, dtype=torch.bool)
        rows_grad = torch.empty_like(rows) if ctx.needs_input_grad[0] else None
        weight_grad = torch.zeros_like(weight, dtype=torch.float32) if ctx.needs_input_grad[1] else None  # or frozen
        with torch.autocast(rows.device.type, enabled=False):
            for start in range(0, count, chunk):
                part = slice(start, min(start + chunk, count))
                logits = (rows[part] @ weight.T).float()  # (r, V)
                index = target[part, None]
                picked = logits.gather(1, index)[:, 0]  # (r,)
                norm = logits.logsumexp(1)
                nll[part], hits[part] = norm - picked, logits.argmax(1) == target[part]
                if rows_grad is not None or weight_grad is not None:
                    logits.sub_(norm[:, None]).exp_()  # softmax, in place
                    logits.scatter_add_(1, index, torch.full_like(index, -1, dtype=torch.float32))
                    slope = logits.div_(count).type_as(rows)
                    if rows_grad is not None:
                        rows_grad[part] = slope @ weight
                    if weight_grad is not None:
                        weight_grad += slope.T @ rows[part]
        ctx.save_for_backward(rows_grad, None if weight_grad is None else weight_grad.type_as(weight))
        ctx.mark_non_differentiable(nll, hits)
        return nll.mean(), nll, hits

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor | None, None]:
        scaled = [None if grad is None else grad * grads[0].type_as(grad) for grad in ctx.saved_tensors]
        return scaled[0], scaled[1], None


def distill_loss(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """Mean squared error of (B, T, C) features (paper eq. 3), in float32."""
    if student.shape != teacher.shape:
        raise ValueError(
            f"student features {tuple(student.shape)} do not match the teacher's {tuple(teacher.shape)}; "
            "set teacher.grid and teacher.dim to the teacher's map"
        )
    return F.mse_loss(student.float(), teacher.float())


def condition_drops(uniform: torch.Tensor, cfg: DropConfig) -> tuple[torch.Tensor, torch.Tensor]:
    """One number in [0, 1) per sample -> (drop_image, drop_text), (B,) bool.

    EditAR compares strictly in float32: r < both drops both, r < both + image the image alone,
    r > 1 - text the text alone.
    """
    r = uniform.float()
    drop_image = r < torch.tensor(cfg.both + cfg.image)
    drop_text = (r < torch.tensor(cfg.both)) | (r > torch.tensor(1 - cfg.text))
    return drop_image, drop_text
