"""The sample grid of a run: source(s) | target | what the model makes of it, all through the tokenizer."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from editar.images import contact_sheet, save_image, to_uint8
from editar.sampling.pipeline import EditPipeline


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
    samples in each of two columns."""
    size = pipeline.batch_size
    rows: list[list[np.ndarray]] = []
    for start in range(0, len(ids), size):
        part = slice(start, start + size)
        missing = None if absent is None else absent[part]
        output = pipeline.edit_codes(
            source[part], instructions[part], ids[part], pipeline.cfg.sampling, drop_image=missing
        )
        given = source[part].split(target.shape[1], dim=1)
        columns = [to_uint8(pipeline.decode(codes)) for codes in (*given, target[part], output)]
        rows += [list(pictures) for pictures in zip(*columns, strict=True)]
    half = (len(rows) + 1) // 2
    sheet = contact_sheet([a + b for a, b in zip(rows[:half], rows[half:] or rows[:half], strict=False)])
    zoom = max(1, 128 // pipeline.cfg.image_size)
    save_image(sheet.repeat(zoom, 0).repeat(zoom, 1), path)
    return path
