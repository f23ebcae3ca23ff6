"""Rotary positions of the sequence [source images | text | target image].

EditAR (gpt_edit.py, `precompute_freqs_cis_2d` on a doubled grid): the source takes the top-left
block of a 2g x 2g grid, the target the bottom-right, text rows are all zero. A zero row makes the
rotated q and k exactly zero, so every score with a text query or key is 0: text queries average
their prefix, image queries give each text key weight exp(0). Further source images, which EditAR does not
have, continue to the right of the first. Other designs: `RopeConfig`.
"""

from __future__ import annotations

import torch

from editar.config import GPTConfig


def rope_table(cfg: GPTConfig) -> torch.Tensor:
    """(S, head_dim / 2, 2) float32, last axis (cos, sin).

    The first half of the channel pairs turns with the row, the second half with the column;
    pair i turns by place * base^(-2i / (head_dim / 2)).
    """
    rows, columns, is_text = grid_positions(cfg)
    half = cfg.head_dim // 2
    exponents = torch.arange(0, half, 2)[: half // 2].float() / half
    frequencies = 1.0 / cfg.rope.base**exponents  # (hd/4,)
    angles = torch.cat(
        [torch.outer(rows.float(), frequencies), torch.outer(columns.float(), frequencies)], dim=1
    )  # (S, hd/2)
    table = torch.stack([angles.cos(), angles.sin()], dim=-1)  # (S, hd/2, 2)
    table[is_text] = torch.tensor([0.0, 0.0] if cfg.rope.text == "zero" else [1.0, 0.0])
    return table


def grid_positions(cfg: GPTConfig) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Row, column (S,) int64 and is_text (S,) bool of every position, S = K N + L + N of K source images.

    With `query: output` target position j carries the place of code j + 1, which it predicts, and
    the last text position that of code 0; the last target position is read but predicts nothing.
    """
    n, length, g = cfg.image_tokens, cfg.text_tokens, cfg.grid
    index = torch.arange(n)
    text = torch.zeros(length, dtype=torch.long)
    offset = g if cfg.rope.layout == "quadrants" else 0
    sources = cfg.source_tokens
    is_text = torch.zeros(cfg.sequence_tokens, dtype=torch.bool)
    is_text[sources : sources + length] = True
    target = index
    if cfg.rope.query == "output":
        target = (index + 1).clamp(max=n - 1)
        text = text.clone()
        is_text[sources + length - 1] = False
        text_offset = torch.zeros(length, dtype=torch.long)
        text_offset[-1] = offset
        text = text + text_offset
    rows = torch.cat([*[index // g] * cfg.images, text, target // g + offset])
    columns = torch.cat([*(index % g + image * offset for image in range(cfg.images)), text, target % g + offset])
    return rows, columns, is_text


def apply_rope(x: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    """Rotate adjacent channel pairs of x (B, S, H, hd) by table (S, hd/2, 2), in float32, cast back."""
    pairs = x.float().unflatten(-1, (-1, 2))  # (B, S, H, hd/2, 2)
    if not torch.compiler.is_compiling():  # as one complex product: eager code pays for every small step
        turned = torch.view_as_complex(pairs) * torch.view_as_complex(table)[:, None]
        return torch.view_as_real(turned).flatten(-2).type_as(x)
    cos, sin = table[None, :, None, :, 0], table[None, :, None, :, 1]
    even, odd = pairs[..., 0], pairs[..., 1]
    turned = torch.stack([even * cos - odd * sin, odd * cos + even * sin], dim=-1)
    return turned.flatten(-2).type_as(x)
