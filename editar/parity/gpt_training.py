"""The transformer in training: condition dropout, gradients and three optimiser steps."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch

from editar.config import DropConfig, LossConfig, OptimConfig
from editar.models.gpt import GPT
from editar.parity.checks import Check, Entries, Golden
from editar.training.losses import Objective, condition_drops
from editar.training.optim import make_optimizers


def check_drops(golden: Golden) -> Iterator[Check]:
    table = golden.json("dropout_table.json")
    uniform = torch.tensor([row["rand"] for row in table], dtype=torch.float64)
    drop_image, drop_text = condition_drops(uniform, DropConfig())
    yield golden.identical("dropout table, image", drop_image, [row["image_dropped"] for row in table])
    yield golden.identical("dropout table, text", drop_text, [row["text_dropped"] for row in table])


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
        loss = cross_entropy(golden, model, inputs, rands[name]["rand"])
        loss.backward()
        yield golden.scaled(f"gradients {name} loss", loss, stored["loss"])
        yield from compare_gradients(golden, f"gradients {name}", model, stored)


def cross_entropy(golden: Golden, model: GPT, inputs: Entries, rand: torch.Tensor) -> torch.Tensor:
    masks = (mask.to(golden.device) for mask in condition_drops(rand, DropConfig()))
    target = golden.put(inputs["edited_img_indices"])
    objective = Objective(model, LossConfig())
    scores = objective(golden.put(inputs["input_img_indices"]), golden.put(inputs["input_txt_embs"]), target, *masks)
    return scores.terms["token"]


def compare_gradients(golden: Golden, title: str, model: GPT, stored: Entries) -> Iterator[Check]:
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    names = sorted(stored["norms"])
    yield golden.same(f"{title} names", sorted(gradients), names)
    norms = [norm_or_nan(gradients.get(name)) for name in names]
    yield golden.elements(f"{title} norms", norms, [float(stored["norms"][name]) for name in names])
    total = math.sqrt(sum(norm**2 for norm in norms if not math.isnan(norm)))
    yield golden.elements(f"{title} total norm", total, stored["total_norm"])
    for part in ("full", "slice_8x8"):
        for name, value in stored[part].items():
            yield golden.relative(f"{title} {name}", corner(gradients.get(name), value), value)
    buffers = {name: buffer.grad for name, buffer in model.named_buffers()}
    tables = sorted(stored["buffer_grad_norms"])
    norms = [norm_or_nan(buffers.get(name)) for name in tables]
    expected = [float(stored["buffer_grad_norms"][name]) for name in tables]
    yield golden.elements(f"{title} null table norms", norms, expected)
    for name, value in stored.get("buffer_grad_slice_4x4", {}).items():
        yield golden.relative(f"{title} {name}", corner(buffers.get(name), value), value)


def norm_or_nan(gradient: torch.Tensor | None) -> float:
    return math.nan if gradient is None else gradient.detach().float().norm().item()


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
    target = golden.put(inputs["edited_img_indices"])
    uniform = torch.full((len(target),), float(stored["rand"]))
    masks = (mask.to(golden.device) for mask in condition_drops(uniform, DropConfig()))
    model.train()
    objective = Objective(model, LossConfig(distill_weight=stored["distill_loss_weight"]))
    source, text = golden.put(inputs["input_img_indices"]), golden.put(inputs["input_txt_embs"])
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
    names = sorted(stored["param_norms_after"])
    yield golden.same("after steps parameter names", sorted(parameters), names)
    norms = [norm_or_nan(parameters.get(name)) for name in names]
    expected = [float(stored["param_norms_after"][name]) for name in names]
    yield golden.elements("after steps parameter norms", norms, expected)
