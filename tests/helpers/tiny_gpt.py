"""A GPT of toy size under each positional design."""

from __future__ import annotations

import torch

from editar.config import GPTConfig, RopeConfig
from editar.models.gpt import GPT

ROPES = {
    "editar": RopeConfig(),
    "identity": RopeConfig(text="identity"),
    "shared": RopeConfig("shared", "identity", "output", True, 50.0),
}


def config(rope: RopeConfig | None = None, **changes: object) -> GPTConfig:
    base = GPTConfig(
        dim=32, n_layer=2, n_head=4, multiple_of=16, vocab_size=23, grid=3, text_tokens=5, text_dim=12,
        null_text_rows=5, teacher_dim=7, token_dropout=0.0, resid_dropout=0.0, ffn_dropout=0.0,
        rope=rope or RopeConfig(),
    )  # fmt: skip
    for key, value in changes.items():
        setattr(base, key, value)
    return base


def model(cfg: GPTConfig) -> GPT:
    gpt = GPT(cfg)
    torch.nn.init.normal_(gpt.output.weight, std=0.2)  # the initial zeros would hide everything
    return gpt
