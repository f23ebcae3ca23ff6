"""The square that is edited and the way back into the picture."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from editar.errors import ConfigError
from editar.images import resize_and_crop
from editar.sampling.fit import Region, fit_picture, read_picture, soft_mask, surround
from editar.sampling.pipeline import EditPipeline


@pytest.fixture(scope="module")
def pipeline(tiny_run: Path) -> EditPipeline:
    return EditPipeline.from_pretrained(tiny_run)


def noise(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 255, (height, width, 3), np.uint8))


def rectangle(size: tuple[int, int], box: tuple[int, int, int, int]) -> np.ndarray:
    mask = np.zeros(size[::-1], bool)
    mask[box[1] : box[3], box[0] : box[2]] = True
    return mask


@pytest.mark.parametrize("size", [(300, 200), (200, 300), (64, 64), (40, 31), (65, 64)])
def test_pixels_away_from_changed_codes_stay_bit_for_bit(size: tuple[int, int]) -> None:
    picture = noise(*size)
    fitted = fit_picture(picture, 64, "restore")
    changed = np.zeros((8, 8), bool)
    changed[3, 4] = True
    result = np.asarray(fitted.result(np.full((64, 64, 3), 255, np.uint8), changed))
    assert result.shape == (size[1], size[0], 3)
    side = min(size)
    left, top, code = (size[0] - side) // 2, (size[1] - side) // 2, side / 8
    near = rectangle(size, tuple(round(v) for v in (left + 3 * code, top + 2 * code, left + 6 * code, top + 5 * code)))
    differs = (result != np.asarray(picture)).any(-1)
    assert not differs[~near].any()
    inner = rectangle(
        size,
        tuple(round(v) for v in (left + 4 * code + 1, top + 3 * code + 1, left + 5 * code - 1, top + 4 * code - 1)),
    )
    assert (result[inner] >= 254).all()  # the changed code is taken whole
    assert np.array_equal(np.asarray(fitted.result(fitted.source, np.zeros((8, 8), bool))), np.asarray(picture))


def test_the_edit_fades_where_the_square_ends_within_the_picture() -> None:
    everything = np.ones((8, 8), bool)
    wide = np.asarray(soft_mask(everything, Region(100, 0, 200), (400, 200))).astype(int)
    assert wide[:, [0, -1]].max() <= 10 and wide[[0, -1], 100].tolist() == [255, 255]
    assert np.abs(np.diff(wide, axis=1)).max() <= 255 / 25 + 1  # over the 25 pixels of a code: no seam
    whole = np.asarray(soft_mask(everything, Region(0, 0, 200), (200, 200)))
    assert (whole == 255).all()


def test_the_square_without_restoring_is_trainings() -> None:
    picture = noise(301, 200)
    fitted = fit_picture(picture, 64, "square")
    assert np.array_equal(fitted.source, np.asarray(resize_and_crop(picture, 64)))
    edited = np.zeros((64, 64, 3), np.uint8)
    assert fitted.result(edited, np.ones((8, 8), bool)).size == (64, 64)


def test_a_region_is_what_the_model_sees() -> None:
    picture = noise(300, 200)
    fitted = fit_picture(picture, 64, "restore", (10, 20, 64))
    assert np.array_equal(fitted.source, np.asarray(picture)[20:84, 10:74])
    for wrong in ((250, 20, 64), (-1, 0, 64), (0, 0, 0), (0, 150, 64)):
        with pytest.raises(ConfigError, match="is no square within the 300x200 picture"):
            fit_picture(picture, 64, "restore", wrong)
    for wrong in ((1, 2), (1.5, 2, 3)):
        with pytest.raises(ConfigError, match="is not x,y,side in whole pixels"):
            fit_picture(picture, 64, "restore", wrong)


def test_the_mask_chooses_the_square(capsys: pytest.CaptureFixture[str]) -> None:
    assert surround((1000, 500, 1100, 600), 64, (4000, 3000)) == Region(950, 450, 200)  # twice the mask
    assert surround((1000, 500, 1010, 505), 64, (4000, 3000)) == Region(973, 470, 64)  # never enlarged
    assert surround((0, 0, 100, 30), 64, (4000, 3000)) == Region(0, 0, 200)  # within the picture
    assert surround((0, 0, 400, 30), 64, (400, 300)) == Region(50, 0, 300)
    picture = noise(300, 200)
    fitted = fit_picture(picture, 64, "restore", mask=rectangle(picture.size, (0, 100, 40, 120)))
    assert fitted.region == Region(0, 70, 80)
    assert fitted.mask is not None and fitted.mask.mean() == pytest.approx(0.125, abs=0.02)
    assert not capsys.readouterr().err
    fit_picture(picture, 64, "restore", mask=rectangle(picture.size, (0, 0, 300, 20)))
    assert "the mask reaches beyond the square" in capsys.readouterr().err
    with pytest.raises(ConfigError, match=r"outside of the square .* choose it with region=x,y,side"):
        fit_picture(picture, 64, "square", mask=rectangle(picture.size, (0, 0, 30, 30)))


def test_a_picture_much_longer_than_the_square_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    fit_picture(noise(500, 100), 64, "restore")
    told = capsys.readouterr().err
    assert "sees 20 % of the 500x100 picture" in told and "region=200,0,100" in told
    fit_picture(noise(150, 100), 64, "restore")
    assert not capsys.readouterr().err


def test_pictures_come_as_arrays_too() -> None:
    grey = np.zeros((10, 20), np.uint8)
    assert read_picture(grey).size == (20, 10)
    assert read_picture(np.zeros((10, 20, 4), np.uint8)).getpixel((0, 0)) == (255, 255, 255)
    for wrong in (np.zeros((10, 20, 3)), np.zeros((10, 20, 2), np.uint8), np.zeros(3, np.uint8)):
        with pytest.raises(ConfigError, match=r"a picture as an array is \(height, width, 3\) uint8"):
            read_picture(wrong)


def test_an_edit_keeps_the_rest_of_a_photograph(pipeline: EditPipeline) -> None:
    """Through a model: with a mask only the place around it changes, at full size."""
    picture = noise(300, 200)
    mask = rectangle(picture.size, (100, 80, 140, 120))
    (edited,) = pipeline(picture, "remove the star", mask=mask, seed=1)
    assert edited.size == picture.size
    differs = (np.asarray(edited) != np.asarray(picture)).any(-1)
    assert differs[85:115, 105:135].mean() > 0.5
    assert not differs[~rectangle(picture.size, (60, 40, 180, 160))].any()
