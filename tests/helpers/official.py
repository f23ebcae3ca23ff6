"""The official projects' checkpoints in miniature, and the configuration that fits them."""

from __future__ import annotations

import argparse
import functools
from pathlib import Path
from typing import Any

import torch

from editar.config import GPTConfig, TrainConfig
from editar.models.gpt import GPT
from editar.runtime.entry import load_config
from tests.helpers import tiny

GOLDEN = tiny.GOLDEN / "release_ckpt"
RELEASE, T2I, VQ = (GOLDEN / name for name in ("editar_release_tiny.pt", "t2i_tiny.pt", "vq_tiny.pt"))
TINY = [
    "experiment=editar_xl", "gpt.dim=16", "gpt.n_layer=2", "gpt.n_head=2", "text.dim=24", "image_size=8",
    "tokenizer.ch=32", "tokenizer.encoder_ch_mult=[1,1]", "tokenizer.decoder_ch_mult=[1,1]",
    "tokenizer.z_channels=16", "tokenizer.codebook_size=64",
]  # fmt: skip


@functools.cache
def config(*more: str) -> TrainConfig:
    return load_config(TrainConfig, "train", ["output_dir=x", *TINY, *more])


def gpt(*more: str) -> GPT:
    return GPT(config(*more).gpt)


def official(path: Path) -> dict[str, Any]:
    with torch.serialization.safe_globals([argparse.Namespace]):
        return torch.load(path, weights_only=True)


def same(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and a == b


def fake_gpt(cfg: GPTConfig, path: Path) -> Path:
    """A checkpoint of any size without its bytes: every tensor is one stored number, expanded."""
    with torch.device("meta"):
        shapes = {key: value.shape for key, value in GPT(cfg).state_dict().items()}
    torch.save({"model": {key: torch.zeros(()).expand(shape) for key, shape in shapes.items()}}, path)
    return path
