"""The arithmetic behind MFU and the dry run, against what torch counts and keeps."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from editar.config import GPTConfig, LossConfig
from editar.models.gpt import GPT
from editar.training.losses import Objective
from editar.training.planning.cost import block_bytes, checkpoint_bytes, memory, parameters, training_flops
from tests.helpers.tiny import train_config

SMALL = GPTConfig(
    dim=128, n_layer=3, n_head=4, grid=8, text_tokens=8, text_dim=32, null_text_rows=8, vocab_size=96, teacher_dim=None
)


def test_flops_are_what_torch_counts() -> None:
    """torch counts the square of attention in full, and chunked logits like any product."""
    gpt = GPT(SMALL)
    codes = torch.randint(SMALL.vocab_size, (2, SMALL.image_tokens))
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        text = torch.randn(2, SMALL.text_tokens, SMALL.text_dim)
        Objective(gpt, LossConfig())(codes, text, codes).terms["token"].backward()
    square = 6 * (SMALL.sequence_tokens - 1) ** 2 * SMALL.dim * SMALL.n_layer
    counted = counter.get_total_flops() / 2
    no_text_gradient = 2 * SMALL.text_tokens * SMALL.text_dim * SMALL.dim  # text is data: one product less
    assert counted == pytest.approx(training_flops(SMALL) + square - no_text_gradient, rel=1e-3)


@pytest.mark.parametrize("drop", [0.0, 0.1])
def test_a_block_keeps_what_the_formula_says(drop: float) -> None:
    cfg = replace(SMALL, resid_dropout=drop, ffn_dropout=drop)
    gpt = GPT(cfg).train()
    length = cfg.sequence_tokens - 1
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    x = torch.randn(2, length, cfg.dim, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t), torch.autocast("cpu", torch.bfloat16):
        gpt.layers[0](x, gpt.rope(x.device)[:length])
    weights = {tuple(p.shape) for p in gpt.layers[0].parameters()}
    activations = [t for t in kept.values() if tuple(t.shape) not in weights | {s[::-1] for s in weights}]
    measured = sum(t.untyped_storage().nbytes() for t in activations) / (2 * length)
    cpu_masks = 2 * cfg.dim if drop else 0  # a GPU keeps dropout masks as one byte, a CPU as two
    cpu_attention = 6 * cfg.dim  # a CPU multiplies queries, keys and values in float32 (`causal_attention`)
    assert measured == pytest.approx(block_bytes(cfg) + cpu_attention + cpu_masks, rel=0.02)


def test_the_papers_model() -> None:
    cfg = train_config("experiment=editar_xl")
    assert parameters(replace(cfg.gpt, teacher_dim=None)) == 777_678_080
    assert training_flops(cfg.gpt) == pytest.approx(11e12, rel=0.02)  # per sample
    assert checkpoint_bytes(cfg) == 12 * parameters(cfg.gpt)


def test_what_makes_memory_smaller() -> None:
    whole = memory(train_config("experiment=editar_xl"), 8, 8)
    assert whole.total == pytest.approx(61e9, rel=0.05)
    checkpointed = memory(train_config("experiment=editar_xl", "activation_checkpointing=true"), 8, 8)
    assert checkpointed.activations < 0.15 * whole.activations
    sharded = memory(train_config("experiment=editar_xl", "parallel=fsdp"), 8, 8)
    assert sharded.moments == whole.moments / 8
    assert memory(train_config("experiment=editar_xl"), 8, 1).activations == whole.activations / 8
