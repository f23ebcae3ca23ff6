"""The sample grid of a run: pictures in two columns, every instruction below its own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from editar.images import FONT, LINES
from editar.sampling.pipeline import EditPipeline
from editar.training.preview import write_preview


@pytest.mark.parametrize("count", [1, 2, 3])
def test_every_sample_is_there_with_its_instruction(tiny_run: Path, tmp_path: Path, count: int) -> None:
    pipeline = EditPipeline.from_pretrained(str(tiny_run), device="cpu")
    codes = torch.zeros(count, pipeline.gpt.cfg.image_tokens, dtype=torch.long)
    texts = ["make the red circle blue", "add a cat " * 40, ""][:count]
    file = write_preview(pipeline, codes, codes, texts, [str(i) for i in range(count)], tmp_path / "sheet.png")
    sheet = np.asarray(Image.open(file).convert("L"))
    width = 3 * 128 + 2 * 4
    height = 128 + (FONT + 4) * (LINES if count > 1 else 1) + 4
    lines, columns = (count + 1) // 2, min(count, 2)
    assert sheet.shape == (lines * height + (lines - 1) * 4, columns * width + (columns - 1) * 4)
    first = sheet[128:height, :width]
    assert first.min() < 100 and 0.01 < (first < 128).mean() < 0.5  # letters on white
    if count == 3:  # the third, without words, stands beside the first, and nothing beside the second
        assert (sheet[128:height, width + 4 :] == 255).all() and (sheet[height + 4 :, width + 4 :] == 255).all()
