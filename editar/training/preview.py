"""The sample grid of a run: source(s) | target | what the model makes of it, all through the tokenizer."""

from __future__ import annotations

import textwrap
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from editar.images import contact_sheet, save_image, side_by_side, to_uint8
from editar.sampling.pipeline import EditPipeline

FONT, LINES = 14, 3  # pixels, at most this many lines


def write_preview(
    pipeline: EditPipeline,
    source: torch.Tensor,
    target: torch.Tensor,
    instructions: list[str],
    ids: list[str],
    path: Path,
    absent: torch.Tensor | None = None,
) -> Path:
    """Edit source codes (B, K N), of which images `absent` (B, K) bool are missing, and write a sheet with half of the
    samples in each of two columns, the instructions below."""
    size = pipeline.batch_size
    cells: list[np.ndarray] = []
    zoom = max(1, 128 // pipeline.cfg.image_size)
    for start in range(0, len(ids), size):
        part = slice(start, start + size)
        missing = None if absent is None else absent[part]
        output = pipeline.edit_codes(
            source[part], instructions[part], ids[part], pipeline.cfg.sampling, drop_image=missing
        )
        given = source[part].split(target.shape[1], dim=1)
        columns = [to_uint8(pipeline.decode(codes)) for codes in (*given, target[part], output)]
        cells += [side_by_side([p.repeat(zoom, 0).repeat(zoom, 1) for p in row]) for row in zip(*columns, strict=True)]
    width = cells[0].shape[1]
    texts = [wrapped(text, width) for text in instructions]
    most = max(map(len, texts))
    cells = [np.concatenate([cell, caption(text, width, most)]) for cell, text in zip(cells, texts, strict=True)]
    half = (len(cells) + 1) // 2
    if half > 1 and len(cells) % 2:
        cells.append(np.full_like(cells[0], 255))
    save_image(contact_sheet([cells[k::half] for k in range(half)]), path)
    return path


def font() -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(FONT)


def wrapped(text: str, width: int) -> list[str]:
    """At most LINES lines of about `width` pixels."""
    return textwrap.wrap(text, max(4, int(width / font().getlength("n"))), max_lines=LINES, placeholder=" ...")


def caption(lines: list[str], width: int, most: int) -> np.ndarray:
    """Black on white, with room for `most` lines, (H, width, 3) uint8."""
    picture = Image.new("RGB", (width, (FONT + 4) * most + 4), "white")
    ImageDraw.Draw(picture).multiline_text((2, 0), "\n".join(lines), "black", font(), spacing=4)
    return np.asarray(picture)
