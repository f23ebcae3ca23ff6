"""Keys and values of one generation in three segments, each stored once for all rows that read it.

Rows are ordered (image, branch, sample): I images, C guidance branches (1 or 2), M samples of one
image and instruction, R = I * C * M. An image here is all source images of an edit. The sequence is causal
and starts with them, so

    image   keys of the source images        one copy per image, read by its C * M rows
    text    keys of the text                 one copy per image and branch, read by M rows
    target  keys of what was written so far  one copy per row

The queries of all rows that share a copy are multiplied with it in one matrix product, so it is read from
memory once.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch

from editar.config import GPTConfig


@dataclass(frozen=True)
class BatchLayout:
    """How many images, guidance branches and samples a generation has."""

    images: int
    branches: int
    samples: int

    @property
    def rows(self) -> int:
        return self.images * self.branches * self.samples


@dataclass
class KVSegment:
    """keys, values (P, n, hd), P = images * kv heads * copies per image; `bias` (n,) is added to the scores."""

    keys: torch.Tensor
    values: torch.Tensor
    bias: torch.Tensor | None = None


class SharedCache:
    """Static buffers of one generation; `image`, `text` and `target` are one KVSegment per layer."""

    def __init__(
        self, cfg: GPTConfig, layout: BatchLayout, zero_text: torch.Tensor, device: torch.device, dtype: torch.dtype
    ) -> None:
        """zero_text (L,) bool: text positions whose rotary row is zero (`summarise`)."""
        copies = layout.images * (cfg.n_kv_head or cfg.n_head)
        self.summarised = bool(zero_text.any())
        self.zero_rows, self.other_rows = (flags.nonzero()[:, 0].to(device) for flags in (zero_text, ~zero_text))
        self.text_bias = summary_bias(zero_text).to(device, dtype)

        def segments(size: int, length: int, bias: torch.Tensor | None = None) -> list[KVSegment]:
            shape = (cfg.n_layer, size, length, cfg.head_dim)
            # Two buffers: inductor writes to a tensor in place only if its storage holds no other input.
            keys, values = (torch.zeros(shape, device=device, dtype=dtype) for _ in range(2))
            return [KVSegment(k, v, bias) for k, v in zip(keys, values, strict=True)]

        self.image = segments(copies, cfg.source_tokens)
        self.text = segments(copies * layout.branches, len(self.text_bias), self.text_bias)
        self.target = segments(copies * layout.branches * layout.samples, cfg.image_tokens)

    def store_text(self, layer: int, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Keep what decoding needs of the text's keys and values, (P, L, hd) each."""
        segment = self.text[layer]
        if not self.summarised:
            segment.keys.copy_(keys)
            segment.values.copy_(values)
            return
        segment.keys[:, 1:] = keys.index_select(1, self.other_rows)
        segment.values[:, :1] = values.index_select(1, self.zero_rows).mean(1, keepdim=True)
        segment.values[:, 1:] = values.index_select(1, self.other_rows)

    def keep(self, results: torch.Tensor, layout: BatchLayout) -> SharedCache:
        """A copy with some images of `layout` alone, or, where it has one image, with some of its samples."""
        kept = copy.copy(self)

        def select(segments: list[KVSegment], groups: int, inner: int) -> list[KVSegment]:
            """Of `groups` groups of copies, each `inner` results long, the entries `results` of the last axis."""

            def pick(x: torch.Tensor) -> torch.Tensor:
                return x.view(groups, inner, -1, *x.shape[1:]).index_select(1, results).flatten(0, 2)

            return [KVSegment(pick(s.keys), pick(s.values), s.bias) for s in segments]

        if layout.images > 1:
            kept.image, kept.text, kept.target = (
                select(segments, 1, layout.images) for segments in (self.image, self.text, self.target)
            )
        else:
            kept.target = select(self.target, len(self.target[0].keys) // layout.samples, layout.samples)
        return kept

    @property
    def prefix_bytes(self) -> int:
        return _bytes([*self.image, *self.text])

    @property
    def target_bytes(self) -> int:
        return _bytes(self.target)


def _bytes(segments: list[KVSegment]) -> int:
    return sum(segment.keys.nbytes + segment.values.nbytes for segment in segments)


def summary_bias(zero_text: torch.Tensor) -> torch.Tensor:
    """Score bias of the stored text positions.

    Keys under a zero rotary row are zero, every score with them is 0 and all have the same weight:
    n of them act as one zero key with bias log(n) whose value is their mean.
    """
    count = int(zero_text.sum())
    if count == 0:
        return torch.zeros(len(zero_text))
    bias = torch.zeros(1 + len(zero_text) - count)
    bias[0] = torch.tensor(float(count)).log()
    return bias


def attend(query: torch.Tensor, segments: list[KVSegment], last_mask: torch.Tensor | None = None) -> torch.Tensor:
    """One softmax over several segments.

    query (I, Hkv, C * M, rep, s, hd), already scaled; of the last segment the s queries may see what
    last_mask allows, an additive 0 or -inf, (s, n) or (I, 1, C * M, 1, s, n). Returns the query's shape.
    """
    flat, width = query.shape[:-1], query.shape[-1]
    scores = []
    for segment in segments:
        rows = query.view(segment.keys.shape[0], -1, width)  # all queries that read this copy
        score = torch.bmm(rows, segment.keys.transpose(1, 2))
        if segment.bias is not None:
            score = score + segment.bias
        scores.append(score.view(*flat, -1))
    if last_mask is not None:
        scores[-1] = scores[-1] + last_mask
    weights = torch.cat(scores, dim=-1).float().softmax(-1).to(query.dtype)
    out = torch.zeros_like(query)
    for segment, weight in zip(
        segments, weights.split([segment.keys.shape[1] for segment in segments], dim=-1), strict=True
    ):
        copies, positions, _ = segment.keys.shape
        out = torch.baddbmm(out.view(copies, -1, width), weight.reshape(copies, -1, positions), segment.values)
    return out.view(*flat, width)
