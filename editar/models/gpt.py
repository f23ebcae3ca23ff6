"""The transformer: LlamaGen's GPT with EditAR's prefix, in LlamaGen's parameter names.

Shape letters: B batch, N image tokens (grid * grid), K source images, L text tokens, S = K N + L + N positions,
D width, H heads, V vocabulary, C width of the text embeddings.

The sequence is [K N source codes | L text embeddings | N target codes], fully causal, without any padding
mask. The last text token predicts target code 0. Text conditions are dropped before the caption MLP, source
images after the embedding lookup (EditAR gpt_edit.py). EditAR has K = 1; with more, target codes still are
those of an edited first image.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from editar.config import GPTConfig
from editar.models.rope import apply_rope, rope_table


class GPTOutput(NamedTuple):
    logits: torch.Tensor  # (B, N, V) float32, row j predicts target code j
    features: torch.Tensor | None  # (B, T, teacher_dim), the student's side of the distillation loss


class KVCache:
    """Keys and values of one generation, made by the caller and handed to prefill and decode."""

    def __init__(self, cfg: GPTConfig, batch: int, device: torch.device, dtype: torch.dtype) -> None:
        heads = cfg.n_kv_head or cfg.n_head
        shape = (cfg.n_layer, batch, heads, cfg.sequence_tokens, cfg.head_dim)
        self.keys = torch.zeros(shape, device=device, dtype=dtype)
        self.values = torch.zeros(shape, device=device, dtype=dtype)

    def write(self, layer: int, start: int, k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Store k, v (B, Hkv, s, hd) at start and return everything up to there, (B, Hkv, start + s, hd)."""
        end = start + k.shape[2]
        self.keys[layer, :, :, start:end] = k
        self.values[layer, :, :, start:end] = v
        return self.keys[layer, :, :, :end], self.values[layer, :, :, :end]


class GPT(nn.Module):
    img_uncond_embedding: torch.Tensor

    def __init__(self, cfg: GPTConfig) -> None:
        super().__init__()
        self.cfg = cfg
        # Null embeddings are frozen random tables in EditAR (buffers, never seen by an optimiser).
        self.register_buffer("img_uncond_embedding", torch.empty(cfg.image_tokens, cfg.dim))
        self.cls_embedding = CaptionEmbedder(cfg)
        self.tok_embeddings = nn.Embedding(cfg.vocab_size, cfg.dim)
        if cfg.rope.learned:
            self.pos_embeddings = LearnedPositions(cfg)
        self.tok_dropout = nn.Dropout(cfg.token_dropout)
        self.layers = nn.ModuleList(Block(cfg) for _ in range(cfg.n_layer))
        self.norm = RMSNorm(cfg.dim, cfg.norm_eps)
        self.output = nn.Linear(cfg.dim, cfg.vocab_size, bias=False)
        if cfg.teacher_dim is not None:
            self.alignment = nn.Conv2d(cfg.dim, cfg.teacher_dim, 2, stride=2)
        self.recompute = False  # activation checkpointing: keep each block's input only, run it again backwards
        self._rope: torch.Tensor | None = None
        self.init_weights()

    def init_weights(self) -> None:
        """Linears and embeddings N(0, 0.02), output zero, null tables N(0, 1)/sqrt(width),
        the alignment convolution at torch's default (LlamaGen, EditAR)."""
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Embedding)):
                nn.init.normal_(module.weight, std=self.cfg.initializer_range)
        nn.init.zeros_(self.output.weight)
        for table in (self.img_uncond_embedding, self.cls_embedding.uncond_embedding):
            nn.init.normal_(table, std=1 / math.sqrt(table.shape[1]))

    # --- three ways through ---

    def forward(
        self,
        source_codes: torch.Tensor,
        text: torch.Tensor,
        target_codes: torch.Tensor,
        drop_image: torch.Tensor | None = None,
        drop_text: torch.Tensor | None = None,
    ) -> GPTOutput:
        """Teacher forcing -> logits of every target code and the student's features.

        source_codes (B, K N) and target_codes (B, N) int64; text (B, L, C) float; drop_text (B,) and drop_image
        (B,), or (B, K) for each image, bool, True where that condition is replaced by its null table.
        """
        hidden = self.hidden(source_codes, text, target_codes, drop_image, drop_text)  # (B, N, D)
        logits = self.output(hidden).float()  # (B, N, V)
        return GPTOutput(logits, self.align(hidden) if self.cfg.teacher_dim is not None else None)

    def hidden(
        self,
        source_codes: torch.Tensor,
        text: torch.Tensor,
        target_codes: torch.Tensor,
        drop_image: torch.Tensor | None = None,
        drop_text: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Teacher forcing up to the final norm, at the positions that predict target codes -> (B, N, D);
        arguments as `forward`."""
        prefix = self._embed_prefix(source_codes, text, drop_image, drop_text)  # (B, K N + L, D)
        target = self.tok_embeddings(target_codes[:, :-1])  # (B, N - 1, D)
        x = self._add_positions(torch.cat([prefix, target.type_as(prefix)], dim=1), 0)  # (B, S - 1, D)
        rope = self.rope(x.device)[: x.shape[1]]  # (S - 1, hd/2, 2)
        for layer in self.layers:
            if self.recompute and torch.is_grad_enabled():
                x = checkpoint(layer, x, rope, use_reentrant=False)
            else:
                x = layer(x, rope)
        return self.norm(x[:, self.cfg.prefix_tokens - 1 :])  # (B, N, D)

    def prefill(
        self,
        source_codes: torch.Tensor,
        text: torch.Tensor,
        cache: KVCache,
        drop_image: torch.Tensor | None = None,
        drop_text: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Read the prefix once, fill the cache -> logits of target code 0, (B, V) float32."""
        x = self._embed_prefix(source_codes, text, drop_image, drop_text)  # (B, K N + L, D)
        return self._cached(x, 0, cache)

    def decode(self, codes: torch.Tensor, position: int, cache: KVCache) -> torch.Tensor:
        """Read target code `position` of each sample, (B,) int64 -> logits of the next, (B, V) float32."""
        x = self.tok_embeddings(codes)[:, None]  # (B, 1, D)
        return self._cached(x, self.cfg.prefix_tokens + position, cache)

    def _cached(self, x: torch.Tensor, start: int, cache: KVCache) -> torch.Tensor:
        x = self._add_positions(x, start)  # (B, s, D)
        rope = self.rope(x.device)[start : start + x.shape[1]]
        for index, layer in enumerate(self.layers):
            x = layer(x, rope, cache, index, start)
        return self.output(self.norm(x[:, -1])).float()  # (B, V)

    # --- parts ---

    def _embed_prefix(
        self,
        source_codes: torch.Tensor,
        text: torch.Tensor,
        drop_image: torch.Tensor | None,
        drop_text: torch.Tensor | None,
    ) -> torch.Tensor:
        image = self.embed_images(source_codes, drop_image)  # (B, K N, D)
        caption = self.tok_dropout(self.cls_embedding(text, drop_text))  # (B, L, D)
        return torch.cat([image, caption.type_as(image)], dim=1)

    def embed_images(self, source_codes: torch.Tensor, drop_image: torch.Tensor | None) -> torch.Tensor:
        """Source codes (B, K N) -> (B, K N, D), the null table in place of images that are dropped."""
        image = self.tok_embeddings(source_codes)
        if drop_image is None:
            return image
        dropped = drop_image if drop_image.dim() == 2 else drop_image[:, None]  # (B, K or 1)
        null = self.img_uncond_embedding.type_as(image).repeat(self.cfg.images, 1)
        return torch.where(dropped.repeat_interleave(image.shape[1] // dropped.shape[1], dim=1)[..., None], null, image)

    def _add_positions(self, x: torch.Tensor, start: int) -> torch.Tensor:
        return x + self.pos_embeddings(start, x.shape[1]).type_as(x) if self.cfg.rope.learned else x

    def rope(self, device: torch.device) -> torch.Tensor:
        """The rotary table on `device`, float32 whatever the model's dtype (a plain attribute, never saved)."""
        if self._rope is None or self._rope.device != device:
            self._rope = rope_table(self.cfg).to(device)
        return self._rope

    def align(self, hidden: torch.Tensor) -> torch.Tensor:
        """Final-normed hidden states of the target, (B, N, D) -> (B, T, teacher_dim) (paper eq. 3).

        An odd last row or column of the map is ignored by the stride-2 convolution.
        """
        b, _, d = hidden.shape
        features = self.alignment(hidden.transpose(1, 2).reshape(b, d, self.cfg.grid, self.cfg.grid))
        if self.cfg.teacher_grid is not None:
            size = (self.cfg.teacher_grid, self.cfg.teacher_grid)
            features = F.interpolate(features.float(), size, mode="bilinear", antialias=True)  # no bf16 on CPUs
        return features.flatten(2).transpose(1, 2)


class CaptionEmbedder(nn.Module):
    """Text embeddings -> model width; a dropped caption becomes the null table before the MLP."""

    uncond_embedding: torch.Tensor

    def __init__(self, cfg: GPTConfig) -> None:
        super().__init__()
        self.register_buffer("uncond_embedding", torch.empty(cfg.null_text_rows, cfg.text_dim))
        self.cap_proj = CaptionMLP(cfg.text_dim, cfg.dim)

    def forward(self, text: torch.Tensor, drop: torch.Tensor | None) -> torch.Tensor:
        if drop is not None:
            null = self.uncond_embedding[: text.shape[1]].type_as(text)
            text = torch.where(drop[:, None, None], null, text)
        return self.cap_proj(text)  # (B, L, D)


class CaptionMLP(nn.Module):
    def __init__(self, text_dim: int, dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(text_dim, dim, bias=False)
        self.fc2 = nn.Linear(dim, dim, bias=False)

    def forward(self, text: torch.Tensor) -> torch.Tensor:
        return self.fc2(F.gelu(self.fc1(text), approximate="tanh"))


class LearnedPositions(nn.Module):
    """Trained absolute positions (`rope.learned`): one grid for all images, one row per text token, one vector per
    segment (first image, text, target, further images). A target position carries the place it predicts."""

    def __init__(self, cfg: GPTConfig) -> None:
        super().__init__()
        self.grid = nn.Embedding(cfg.image_tokens, cfg.dim)
        self.text = nn.Embedding(cfg.text_tokens, cfg.dim)
        self.segment = nn.Embedding(2 + cfg.images, cfg.dim)

    def forward(self, start: int, length: int) -> torch.Tensor:
        grid, text, segment = self.grid.weight, self.text.weight, self.segment.weight
        target = torch.cat([grid[1:], grid[-1:]])
        images = [grid + vector for vector in (segment[0], *segment[3:])]
        table = torch.cat([*images, text + segment[1], target + segment[2]])  # (S, D)
        return table[start : start + length]


class Block(nn.Module):
    def __init__(self, cfg: GPTConfig) -> None:
        super().__init__()
        self.attention = Attention(cfg)
        self.feed_forward = FeedForward(cfg)
        self.attention_norm = RMSNorm(cfg.dim, cfg.norm_eps)
        self.ffn_norm = RMSNorm(cfg.dim, cfg.norm_eps)

    def forward(
        self, x: torch.Tensor, rope: torch.Tensor, cache: KVCache | None = None, layer: int = 0, start: int = 0
    ) -> torch.Tensor:
        x = x + self.attention(self.attention_norm(x), rope, cache, layer, start)
        return x + self.feed_forward(self.ffn_norm(x))


class Attention(nn.Module):
    def __init__(self, cfg: GPTConfig) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.head_dim = cfg.n_head, cfg.n_kv_head or cfg.n_head, cfg.head_dim
        self.wqkv = nn.Linear(cfg.dim, (self.heads + 2 * self.kv_heads) * cfg.head_dim, bias=False)
        self.wo = nn.Linear(cfg.dim, cfg.dim, bias=False)
        self.attn_dropout = cfg.attn_dropout
        self.resid_dropout = nn.Dropout(cfg.resid_dropout)

    def forward(
        self, x: torch.Tensor, rope: torch.Tensor, cache: KVCache | None, layer: int, start: int
    ) -> torch.Tensor:
        b, s, d = x.shape
        q, k, v = self.wqkv(x).split([n * self.head_dim for n in (self.heads, self.kv_heads, self.kv_heads)], dim=-1)
        q = apply_rope(q.view(b, s, self.heads, -1), rope).transpose(1, 2)  # (B, H, s, hd)
        k = apply_rope(k.view(b, s, self.kv_heads, -1), rope).transpose(1, 2)  # (B, Hkv, s, hd)
        v = v.view(b, s, self.kv_heads, -1).transpose(1, 2)
        if cache is not None:
            k, v = cache.write(layer, start, k, v)  # (B, Hkv, start + s, hd)
        if self.kv_heads != self.heads:
            k, v = (t.repeat_interleave(self.heads // self.kv_heads, dim=1) for t in (k, v))
        out = causal_attention(q, k, v, self.attn_dropout if self.training else 0.0)  # (B, H, s, hd)
        return self.resid_dropout(self.wo(out.transpose(1, 2).reshape(b, s, d)))


def causal_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, dropout: float) -> torch.Tensor:
    """q (B, H, s, hd), k and v (B, H, t, hd) -> (B, H, s, hd). A single query (s = 1) sees every key.

    On a CPU bfloat16 inputs are multiplied in float32: torch's bfloat16 kernel there has a backward pass
    that is six times slower.
    """
    causal = q.shape[2] > 1
    if q.device.type == "cpu" and q.dtype == torch.bfloat16:
        with torch.autocast("cpu", enabled=False):
            out = F.scaled_dot_product_attention(q.float(), k.float(), v.float(), is_causal=causal, dropout_p=dropout)
        return out.type_as(q)
    return F.scaled_dot_product_attention(q, k, v, is_causal=causal, dropout_p=dropout)


class FeedForward(nn.Module):
    def __init__(self, cfg: GPTConfig) -> None:
        super().__init__()
        self.w1 = nn.Linear(cfg.dim, cfg.ffn_dim, bias=False)
        self.w3 = nn.Linear(cfg.dim, cfg.ffn_dim, bias=False)
        self.w2 = nn.Linear(cfg.ffn_dim, cfg.dim, bias=False)
        self.ffn_dropout = nn.Dropout(cfg.ffn_dropout)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.ffn_dropout(self.w2(F.silu(self.w1(x)) * self.w3(x)))


class RMSNorm(nn.Module):
    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        wide = x.float()
        normed = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        return normed.type_as(x) * self.weight
