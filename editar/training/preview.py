"""The sample grid of a run: source(s) | target | what the model makes of it, all through the tokenizer."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from editar.images import captioned_sheet, enlarged, save_image, side_by_side, to_uint8
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
        cells += [side_by_side([enlarged(picture, zoom) for picture in row]) for row in zip(*columns, strict=True)]
    save_image(captioned_sheet(cells, instructions), path)
    return path
