"""The T5 encoder of the nano world: random weights from a seed, so that nothing has to be downloaded.

It computes what transformers' T5EncoderModel does with these weights, and has its parameter names. Importing that
takes longer than an edit with the nano model.
"""

from __future__ import annotations

import math
import zlib
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from editar.config import TextConfig

OFFSETS = (-1, 1, -2, 2)
PULL = 5.0


class _Output(NamedTuple):
    last_hidden_state: torch.Tensor


class NanoT5(nn.Module):
    """(B, L) ids and mask -> `last_hidden_state` (B, L, C).

    Of T5's relative-position table only one entry a head is not zero: head i is pulled to the OFFSETS[i]-th neighbour,
    so that a noun's embedding also tells its adjective. With a random table every seed mixes other, mostly useless
    words in (docs/log.md). The `vocabulary` rows end with those of `cfg.extra_words`, each a function of the seed and
    the word, so that words can be added without changing anything else.
    """

    def __init__(self, cfg: TextConfig, vocabulary: int) -> None:
        super().__init__()
        self.offsets = [OFFSETS[head % len(OFFSETS)] for head in range(cfg.nano_heads)]
        with torch.random.fork_rng(devices=[]):
            self.shared = nn.Embedding(vocabulary - len(cfg.extra_words), cfg.dim)
            blocks = nn.ModuleList(_Block(cfg.dim, cfg.nano_heads) for _ in range(cfg.nano_layers))
            self.encoder = nn.ModuleDict({"block": blocks, "final_layer_norm": _Norm(cfg.dim)})
            self._draw(cfg)
        seeds = [zlib.crc32(f"{cfg.nano_seed}/{word}".encode()) for word in cfg.extra_words]
        extra = [torch.randn(1, cfg.dim, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
        self.shared = nn.Embedding.from_pretrained(torch.cat([self.shared.weight.data, *extra]))

    @torch.no_grad()
    def _draw(self, cfg: TextConfig) -> None:
        torch.manual_seed(cfg.nano_seed)
        # transformers 5, which made this module before, drew so many numbers first. They are thrown away, so that a
        # seed still means the weights that reference/nano was trained with.
        torch.rand(5 * self.shared.weight.numel() + 30 * cfg.nano_layers * cfg.dim**2 + 96 * cfg.nano_heads)
        for name, parameter in sorted(self.named_parameters()):
            if name.endswith("layer_norm.weight"):
                continue
            parameter.normal_(std=1.0 if name == "shared.weight" else parameter.shape[-1] ** -0.5)
            if name.endswith("SelfAttention.q.weight"):  # T5 does not divide scores by the root of the head's size
                parameter.mul_((cfg.dim // cfg.nano_heads) ** -0.5)
            elif name.endswith("DenseReluDense.wo.weight"):
                parameter.mul_(0.3)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> _Output:
        x = self.shared(input_ids)
        place = torch.arange(input_ids.shape[1], device=x.device)
        distance = place[None] - place[:, None]  # of a key from its query
        bias = PULL * torch.stack([distance == offset for offset in self.offsets]).to(x.dtype)
        hidden = attention_mask[:, None, None] == 0
        bias = bias[None].masked_fill(hidden, torch.finfo(x.dtype).min)  # (B, heads, L, L)
        blocks: Any = self.encoder["block"]
        for block in blocks:
            x = block(x, bias)
        return _Output(self.encoder["final_layer_norm"](x))


class _Block(nn.Module):
    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        attention = {"SelfAttention": _Attention(dim, heads), "layer_norm": _Norm(dim)}
        feed_forward = {"DenseReluDense": _Gated(dim, 2 * dim), "layer_norm": _Norm(dim)}
        self.layer = nn.ModuleList([nn.ModuleDict(attention), nn.ModuleDict(feed_forward)])

    def forward(self, x: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        layers: Any = self.layer
        first, second = layers
        x = x + first["SelfAttention"](first["layer_norm"](x), bias)
        return x + second["DenseReluDense"](second["layer_norm"](x))


class _Norm(nn.Module):
    """Root mean square, in float32."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scale = torch.rsqrt(x.float().pow(2).mean(-1, keepdim=True) + 1e-6)
        return self.weight * (x * scale).to(self.weight.dtype)


class _Attention(nn.Module):
    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads, inner = heads, dim // heads * heads
        self.q, self.k, self.v = (nn.Linear(dim, inner, bias=False) for _ in range(3))
        self.o = nn.Linear(inner, dim, bias=False)

    def forward(self, x: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        q, k, v = (part(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in (self.q, self.k, self.v))
        return self.o(F.scaled_dot_product_attention(q, k, v, bias, scale=1.0).transpose(1, 2).flatten(-2))


class _Gated(nn.Module):
    def __init__(self, dim: int, inner: int) -> None:
        super().__init__()
        self.wi_0, self.wi_1 = (nn.Linear(dim, inner, bias=False) for _ in range(2))
        self.wo = nn.Linear(inner, dim, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.wo(gelu_new(self.wi_0(x)) * self.wi_1(x))


def gelu_new(x: torch.Tensor) -> torch.Tensor:
    """GELU by tanh, in the steps that transformers takes."""
    return 0.5 * x * (1.0 + torch.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * torch.pow(x, 3.0))))
