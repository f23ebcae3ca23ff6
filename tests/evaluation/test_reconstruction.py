"""Scores of a tokenizer: what they are made of, and that a damaged picture is left out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from editar.config import PicturesConfig
from editar.errors import CheckpointError, DataError
from editar.evaluation.reconstruction import open_tokenizer, score_reconstructions
from editar.images import batch_to_tensor, to_uint8
from tests.helpers.tiny_networks import write_inception

CPU = torch.device("cpu")


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    generator = np.random.default_rng(0)
    for i in range(5):
        Image.fromarray(generator.integers(0, 256, (64, 64, 3), np.uint8)).save(folder / f"{i}.png")
    (folder / "9.png").write_bytes((folder / "0.png").read_bytes()[:500])
    return folder


def test_scores_are_of_the_reconstructions(
    tiny_tokenizer: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    inception = str(write_inception(tmp_path / "inception"))
    found = score_reconstructions(tiny_tokenizer, PicturesConfig(path=str(pictures)), CPU, inception=inception)
    assert (found["pictures"], found["unreadable"], found["size"], found["codes"]) == (5, 1, 64, 64)
    assert "warning: 9.png is left out" in capsys.readouterr().err
    model, _ = open_tokenizer(tiny_tokenizer)
    images = np.stack([np.asarray(Image.open(pictures / f"{i}.png")) for i in range(5)])
    with torch.no_grad():
        codes = model.encode(batch_to_tensor(images))
        made = to_uint8(model.decode(codes))
    errors = np.square(images / 255.0 - made / 255.0).mean((1, 2, 3))
    assert found["psnr_db"] == pytest.approx(float(np.mean(-10 * np.log10(errors))), abs=1e-3)
    assert found["codes_used"] == codes.unique().numel()
    assert found["rfid"] > 0
    some = score_reconstructions(tiny_tokenizer, PicturesConfig(path=str(pictures)), CPU, rows=2, size=32)
    assert some["pictures"] == 2 and some["size"] == 32 and "rfid" not in some


def test_a_gpts_folder_has_a_tokenizer_too(tiny_run: Path, tiny_tokenizer: Path) -> None:
    models = [open_tokenizer(folder)[0] for folder in (tiny_run, tiny_tokenizer)]
    assert torch.equal(models[0].quantize.embedding.weight, models[1].quantize.embedding.weight)


def test_what_is_missing_is_named(tiny_tokenizer: Path, pictures: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"config\.yaml not found"):
        open_tokenizer(tmp_path)
    for i in range(5):
        (pictures / f"{i}.png").unlink()
    with pytest.raises(DataError, match="none of 1 pictures can be read"):
        score_reconstructions(tiny_tokenizer, PicturesConfig(path=str(pictures)), CPU)
