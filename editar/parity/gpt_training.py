"""The transformer in training: condition dropout, gradients and three optimiser steps."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import torch

from editar.config import DropConfig, LossConfig, OptimConfig
from editar.models.gpt import GPT
from editar.parity.checks import Check, Entries, Golden
from editar.training.losses import Objective, condition_drops
from editar.training.optim import make_optimizers


def prompts(golden: Golden, inputs: Entries) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Source codes (B, N), text (B, L, C), target codes (B, N) on the device."""
    keys = ("input_img_indices", "input_txt_embs", "edited_img_indices")
    source, text, target = (golden.put(inputs[key]) for key in keys)
    return source, text, target


def drops(golden: Golden, rand: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(drop_image, drop_text), (B,) bool, as training draws them from `rand` (B,) float32."""
    drop_image, drop_text = condition_drops(rand, DropConfig())
    return drop_image.to(golden.device), drop_text.to(golden.device)


def check_drops(golden: Golden) -> Iterator[Check]:
    table = golden.json("dropout_table.json")
    uniform = torch.tensor([row["rand"] for row in table], dtype=torch.float64)
    for kind, dropped in zip(("image", "text"), drops(golden, uniform), strict=True):
        yield golden.identical(f"dropout table, {kind}", dropped, [row[f"{kind}_dropped"] for row in table])


def check_gradients(golden: Golden, model: GPT, inputs: Entries) -> Iterator[Check]:
    """Gradients of the cross entropy, NaN standing for none (the alignment layer has no part in it)."""
    rands = golden.tensors("train_forward.pt")
    model.train()
    for buffer in model.buffers():
        buffer.requires_grad_(True)  # as officially, where the null tables are parameters in disguise
    for name, stored in golden.tensors("grads.pt").items():
        model.zero_grad()
        for buffer in model.buffers():
            buffer.grad = None
        given = (*prompts(golden, inputs), *drops(golden, rands[name]["rand"]))
        loss = Objective(model, LossConfig())(*given).terms["token"]
        loss.backward()
        yield golden.scaled(f"gradients {name} loss", loss, stored["loss"])
        yield from compare_gradients(golden, f"gradients {name}", model, stored)


def compare_gradients(golden: Golden, title: str, model: GPT, stored: Entries) -> Iterator[Check]:
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    yield golden.same(f"{title} names", sorted(gradients), sorted(stored["norms"]))
    norms, expected = norms_of(gradients, stored["norms"])
    yield golden.elements(f"{title} norms", norms, expected)
    total = math.sqrt(sum(norm**2 for norm in norms if not math.isnan(norm)))
    yield golden.elements(f"{title} total norm", total, stored["total_norm"])
    buffers = {name: buffer.grad for name, buffer in model.named_buffers()}
    yield golden.elements(f"{title} null table norms", *norms_of(buffers, stored["buffer_grad_norms"]))
    for part in (stored["full"], stored["slice_8x8"], stored.get("buffer_grad_slice_4x4", {})):
        for name, value in part.items():
            yield golden.relative(f"{title} {name}", corner((gradients | buffers).get(name), value), value)


def norms_of(
    tensors: Mapping[str, torch.Tensor | None], stored: Mapping[str, float]
) -> tuple[list[float], list[float]]:
    """Norms of the named tensors, NaN where there is none, and the stored ones."""
    found = {name: tensor.detach().float().norm().item() for name, tensor in tensors.items() if tensor is not None}
    return [found.get(name, math.nan) for name in stored], [float(norm) for norm in stored.values()]


def corner(tensor: torch.Tensor | None, like: torch.Tensor) -> torch.Tensor:
    """The leading part of `tensor` with the shape of `like`; NaN where there is none."""
    if tensor is None:
        return torch.full_like(like, math.nan)
    return tensor[tuple(slice(0, size) for size in like.shape)]


def check_steps(golden: Golden, model: GPT, inputs: Entries) -> Iterator[Check]:
    """A few AdamW steps on one batch, with the distillation loss and gradient clipping."""
    stored = golden.tensors("train_steps.pt")
    beta1, beta2 = stored["betas"]
    cfg = OptimConfig(lr=stored["lr"], beta1=beta1, beta2=beta2, eps=stored["eps"], weight_decay=stored["weight_decay"])
    optimizers = make_optimizers(model, cfg)
    tables = {name: buffer.clone() for name, buffer in model.named_buffers()}
    for number, expected in enumerate(stored["steps"]):
        found = one_step(golden, model, inputs, optimizers, stored)
        yield golden.scaled(f"step {number} token loss", found["token"], expected["ce"], 10 * golden.tolerance.forward)
        for ours, theirs in (("distill", "weighted_distill"), ("total", "total"), ("norm", "grad_norm_before_clip")):
            yield golden.elements(f"step {number} {theirs}", found[ours], expected[theirs])
    yield from compare_parameters(golden, model, stored)
    for name, buffer in model.named_buffers():
        yield golden.identical(f"after steps {name} unchanged", buffer, tables[name])


def one_step(
    golden: Golden, model: GPT, inputs: Entries, optimizers: list[torch.optim.Optimizer], stored: Entries
) -> dict[str, float]:
    """One clipped update -> token, distill, total loss and the gradient norm before clipping."""
    source, text, target = prompts(golden, inputs)
    masks = drops(golden, torch.full((len(target),), float(stored["rand"])))
    objective = Objective(model.train(), LossConfig(distill_weight=stored["distill_loss_weight"]))
    terms = objective(source, text, target, *masks, golden.put(stored["distill_target"])).terms
    total = torch.stack([term.float() for term in terms.values()]).sum()
    model.zero_grad()
    total.backward()
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), stored["max_grad_norm"])
    for optimizer in optimizers:
        optimizer.step()
    return {name: term.item() for name, term in terms.items()} | {"total": total.item(), "norm": norm.item()}


def compare_parameters(golden: Golden, model: GPT, stored: Entries) -> Iterator[Check]:
    parameters = dict(model.named_parameters())
    for name, value in stored["params_after"].items():
        found = corner(parameters.get(name), value)
        yield golden.absolute(f"after steps {name}", found, value, golden.tolerance.steps)
    norms = stored["param_norms_after"]
    yield golden.same("after steps parameter names", sorted(parameters), sorted(norms))
    yield golden.elements("after steps parameter norms", *norms_of(parameters, norms))
