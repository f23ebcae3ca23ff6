"""What training costs, by arithmetic: floating-point operations, memory by part, disk.

Symbols as in editar/models/gpt.py; F is the feed-forward width, P the number of parameters. Memory is
that of a GPU under bfloat16 autocast with an attention kernel that keeps no S x S scores, not compiled.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from editar.config import GPTConfig, LoraConfig, TrainConfig
from editar.models.gpt import GPT
from editar.training.losses import CHUNK_LOGITS

# Dense bfloat16 peak of one GPU in FLOP/s (vendors' data sheets, without sparsity), by a part of its name.
PEAK_FLOPS = {
    "A100": 312e12,
    "A800": 312e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "H200": 989e12,
    "H20": 148e12,
    "B200": 2250e12,
    "L40S": 362e12,
    "A6000": 155e12,
    "4090": 165e12,
    "3090": 71e12,
    "V100": 125e12,
}

BASE_BYTES = {"fp32": 4, "bf16": 2, "int8": 1}  # of a frozen weight, by lora.base


def moment_bytes(cfg: TrainConfig) -> int:
    """Of the optimiser, per parameter (Muon's few tables under AdamW counted as its own)."""
    return 8 if cfg.optim.name == "adamw" else 4


def peak_flops(device: torch.device) -> float | None:
    """The device's peak, None where it is not known (a CPU, an unlisted GPU)."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for part, peak in PEAK_FLOPS.items() if part in name), None)


def parameters(cfg: GPTConfig) -> int:
    """Counted once for each configuration: a plan asks hundreds of times, and 36 layers take a while to make."""
    key = repr(cfg)
    if key not in _counted:
        with torch.device("meta"):
            _counted[key] = sum(p.numel() for p in GPT(cfg).parameters())
    return _counted[key]


_counted: dict[str, int] = {}


def adapter_parameters(cfg: GPTConfig, lora: LoraConfig) -> int:
    """rank (in + out) of every layer that has an adapter, by the layers' shapes in editar/models/gpt.py."""
    kv = (cfg.n_kv_head or cfg.n_head) * cfg.head_dim
    once = {"fc1": cfg.text_dim + cfg.dim, "fc2": 2 * cfg.dim}
    every = {
        "wqkv": 2 * cfg.dim + 2 * kv,
        "wo": 2 * cfg.dim,
        **dict.fromkeys(("w1", "w2", "w3"), cfg.dim + cfg.ffn_dim),
    }
    sizes = {**once, **{name: cfg.n_layer * size for name, size in every.items()}}
    return lora.rank * sum(sizes[name] for name in set(lora.targets))


def trained_parameters(cfg: TrainConfig) -> int:
    return adapter_parameters(cfg.gpt, cfg.lora) if cfg.lora.rank else parameters(cfg.gpt)


def training_flops(cfg: GPTConfig, frozen: bool = False) -> float:
    """Forward and backward FLOPs of the GPT for one sample, recomputation not counted: 6 per weight and
    position, logits at the N target positions only, causal attention counted at half its square. `frozen` weights
    take 4, having no gradient; adapters on them, a few per cent, are not counted."""
    length = cfg.sequence_tokens - 1
    heads = cfg.n_head + 2 * (cfg.n_kv_head or cfg.n_head)
    block = cfg.dim * heads * cfg.head_dim + cfg.dim**2 + 3 * cfg.dim * cfg.ffn_dim
    text = cfg.text_tokens * (cfg.text_dim * cfg.dim + cfg.dim**2)
    output = cfg.image_tokens * cfg.dim * cfg.vocab_size
    attention = 6 * length**2 * cfg.dim * cfg.n_layer
    return (4.0 if frozen else 6.0) * (cfg.n_layer * block * length + text + output) + attention


def block_bytes(cfg: GPTConfig) -> float:
    """Bytes a block keeps per position for its backward pass, under bfloat16 autocast on a float32
    residual stream.

    Each norm keeps its input and its result before the weight (8 D) and the product's bfloat16 input
    (2 D); attention the qkv product (6 D without sharing of keys), the rotated q and k (4 D), its output
    as the kernel and as `wo` see it (4 D); the feed-forward w1, w3, SiLU and their product (8 F); a
    dropout its mask.
    """
    kv = (cfg.n_kv_head or cfg.n_head) / cfg.n_head
    qkv, rotated = 2 * (1 + 2 * kv) * cfg.dim, 2 * (1 + kv) * cfg.dim
    masks = ((cfg.resid_dropout > 0) + (cfg.ffn_dropout > 0)) * cfg.dim
    return 20 * cfg.dim + qkv + rotated + 4 * cfg.dim + 8 * cfg.ffn_dim + masks


@dataclass(frozen=True)
class Memory:
    """Bytes on one GPU, by part."""

    weights: float
    autocast_copies: float
    gradients: float
    moments: float
    average: float
    activations: float
    logits: float
    frozen: float

    @property
    def total(self) -> float:
        return sum(vars(self).values())


def memory(cfg: TrainConfig, world_size: int, micro_batch: int, frozen: float = 0.0) -> Memory:
    """`frozen`: bytes of tokenizer, text encoder and teacher. FSDP divides what it shards by the
    processes and gathers two blocks at a time; activation checkpointing keeps each block's float32 input
    and one block whole."""
    gpt = cfg.gpt
    count = parameters(gpt)
    sharded = world_size if cfg.parallel == "fsdp" else 1
    half = cfg.precision == "bf16"
    trained, held = (trained_parameters(cfg), BASE_BYTES[cfg.lora.base] * count) if cfg.lora.rank else (count, 0)
    copies = 2.0 * (trained if held and cfg.lora.base != "fp32" else count) if half else 0.0
    if sharded > 1:
        copies = (2 if half else 4) * (2 * count / gpt.n_layer + gpt.vocab_size * gpt.dim)
    kept = block_bytes(gpt) * (1 if half else 2)
    per_position = 4 * gpt.dim * gpt.n_layer + kept if cfg.activation_checkpointing else kept * gpt.n_layer
    return Memory(
        weights=held + 4 * trained / sharded,
        autocast_copies=copies,
        gradients=4 * trained / sharded,
        moments=moment_bytes(cfg) * trained / sharded,
        average=4 * trained / sharded if cfg.optim.ema_decay else 0.0,
        activations=per_position * (gpt.sequence_tokens - 1) * micro_batch,
        # A chunk in float32, its slope, and the output layer's gradient.
        logits=6.0 * min(CHUNK_LOGITS, micro_batch * gpt.image_tokens * gpt.vocab_size) + 4 * gpt.vocab_size * gpt.dim,
        frozen=frozen,
    )


def checkpoint_bytes(cfg: TrainConfig) -> float:
    """Disk of one checkpoint: what is trained in float32, its moments and average."""
    return trained_parameters(cfg) * (4 + moment_bytes(cfg) + (4 if cfg.optim.ema_decay else 0))
