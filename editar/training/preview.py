"""The sample grid of a run: source | target | what the model makes of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from editar.data.sample import EditSample
from editar.images import contact_sheet, save_image
from editar.sampling.pipeline import EditPipeline


def write_preview(pipeline: EditPipeline, samples: list[EditSample], path: Path) -> Path:
    """Edit `samples` and write a sheet with half of them in each of two columns."""
    outputs = pipeline.edit_arrays(
        [sample.source for sample in samples], [s.instruction for s in samples], [s.id for s in samples]
    )
    rows = [[sample.source, sample.target, output] for sample, output in zip(samples, outputs, strict=True)]
    half = (len(rows) + 1) // 2
    sheet = contact_sheet([a + b for a, b in zip(rows[:half], rows[half:] or rows[:half], strict=False)])
    save_image(np.repeat(np.repeat(sheet, 2, 0), 2, 1), path)
    return path
