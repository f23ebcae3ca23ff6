"""Any picture a person has becomes upright 8-bit RGB, or one clear line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from editar.errors import ImageError, ImageTooLarge
from editar.images import (
    FONT,
    LINES,
    batch_to_tensor,
    captioned_sheet,
    load_image,
    picture_format,
    preprocess,
    resize_and_crop,
    save_image,
    to_rgb,
    to_tensor,
    to_uint8,
)


def gradient(width: int, height: int) -> Image.Image:
    x = np.linspace(0, 255, width)[None, :].repeat(height, 0)
    y = np.linspace(0, 255, height)[:, None].repeat(width, 1)
    return Image.fromarray(np.stack([x, y, 255 - x], 2).astype(np.uint8))


def test_exif_rotation_is_applied(tmp_path: Path) -> None:
    image = gradient(40, 20)
    exif = image.getexif()
    exif[0x0112] = 6  # rotate 90 degrees clockwise to view
    image.save(tmp_path / "portrait.jpg", exif=exif, quality=95)
    loaded = load_image(tmp_path / "portrait.jpg")
    assert loaded.size == (20, 40)
    upright = np.asarray(image.transpose(Image.Transpose.ROTATE_270)).astype(int)
    assert np.abs(np.asarray(loaded).astype(int) - upright).mean() < 4


@pytest.mark.parametrize("mode", ["L", "P", "CMYK", "1", "YCbCr", "LAB", "HSV"])
def test_every_mode_becomes_rgb(mode: str) -> None:
    image = gradient(16, 16)
    converted = to_rgb(image.convert("RGB").convert(mode) if mode != "LAB" else Image.new("LAB", (16, 16)))
    assert converted.mode == "RGB"
    assert converted.size == (16, 16)


def test_alpha_is_blended_over_white(tmp_path: Path) -> None:
    pixels = np.zeros((2, 2, 4), np.uint8)
    pixels[0, 0] = (10, 20, 30, 255)
    pixels[0, 1] = (10, 20, 30, 0)
    pixels[1, 0] = (0, 0, 0, 128)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    loaded = np.asarray(load_image(tmp_path / "a.png"))
    assert loaded[0, 0].tolist() == [10, 20, 30]
    assert loaded[0, 1].tolist() == [255, 255, 255]
    assert loaded[1, 0].tolist() == [127, 127, 127]  # 127.0 exactly, truncated


def test_sixteen_bit_is_scaled(tmp_path: Path) -> None:
    values = np.array([[0, 257 * 100], [65535, 257 * 7]], np.uint16)
    Image.fromarray(values).save(tmp_path / "deep.png")
    assert np.asarray(load_image(tmp_path / "deep.png"))[..., 0].tolist() == [[0, 100], [255, 7]]


@pytest.mark.parametrize("odd", [np.nan, np.inf, -np.inf])
def test_float_pictures_with_a_value_that_is_no_number(tmp_path: Path, odd: float) -> None:
    Image.fromarray(np.array([[odd, 0.5], [1, 0]], np.float32)).save(tmp_path / "float.tiff")
    expected = 255 if odd == np.inf else 0
    assert np.asarray(load_image(tmp_path / "float.tiff"))[..., 0].tolist() == [[expected, 127], [255, 0]]


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (7, 5), (3000, 40)])
def test_any_size_becomes_the_models_square(size: tuple[int, int]) -> None:
    tensor = preprocess(gradient(*size), 64)
    assert tensor.shape == (3, 64, 64)
    assert tensor.dtype == torch.float32
    assert tensor.min() >= -1
    assert tensor.max() <= 1


def test_short_side_is_scaled_and_the_centre_kept() -> None:
    image = gradient(300, 200)
    expected = image.resize((96, 64), Image.Resampling.LANCZOS).crop((16, 0, 80, 64))
    assert np.array_equal(np.asarray(resize_and_crop(image, 64)), np.asarray(expected))


def test_uint8_truncates_and_round_trips() -> None:
    values = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1).repeat(3, 3)
    assert np.abs(to_uint8(batch_to_tensor(values)).astype(int) - values).max() <= 1
    assert to_uint8(torch.full((1, 3, 1, 1), 0.999)).max() == 254  # 254.87 is cut, not rounded
    assert to_uint8(torch.full((1, 3, 1, 1), 7.0)).max() == 255
    assert torch.equal(to_tensor(values[0])[:, 0, 0], torch.tensor([-1.0, -1.0, -1.0]))


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"<html>not found</html>", "not a readable image"), (b"", "not a readable image")],
)
def test_what_is_no_image_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "x.png").write_bytes(content)
    with pytest.raises(ImageError, match=message) as caught:
        load_image(tmp_path / "x.png")
    assert "x.png" in str(caught.value)


def test_truncated_and_missing(tmp_path: Path) -> None:
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)).save(tmp_path / "whole.png")
    (tmp_path / "half.png").write_bytes((tmp_path / "whole.png").read_bytes()[:3000])
    with pytest.raises(ImageError, match=r"half\.png: not a readable image"):
        load_image(tmp_path / "half.png")
    with pytest.raises(ImageError, match="no such image file"):
        load_image(tmp_path / "absent.png")


def test_limits_are_read_from_the_header(tmp_path: Path) -> None:
    """A strip of one pixel's width is small, but scaled to the model's size it would be 256 x 256,000,000."""
    for size in ((1, 1_000_000), (1_000_000, 1), (1, 65)):
        Image.new("L", size).save(tmp_path / "strip.png")
        with pytest.raises(ImageTooLarge, match=r"strip\.png: \d+x\d+ has one side more than 64 times the other; crop"):
            load_image(tmp_path / "strip.png")
    Image.new("L", (2, 128)).save(tmp_path / "strip.png")
    assert load_image(tmp_path / "strip.png").size == (2, 128)
    Image.new("1", (13_400, 13_400)).save(tmp_path / "big.png")
    with pytest.raises(ImageTooLarge, match=r"big\.png: too many pixels .*179560000.*; make it smaller"):
        load_image(tmp_path / "big.png")


def test_saving_is_atomic_and_names_bad_suffixes(tmp_path: Path) -> None:
    save_image(gradient(8, 8), tmp_path / "deep/er/a.png")
    assert [p.name for p in (tmp_path / "deep/er").iterdir()] == ["a.png"]
    with pytest.raises(ImageError, match=r"use a name that ends in \.png or \.jpg"):
        save_image(gradient(8, 8), tmp_path / "a.nonsense")


@pytest.mark.parametrize("suffix", ["", ".nonsense", ".psd", ".xbm", ".h5", ".blp"])
def test_formats_that_cannot_be_written(suffix: str) -> None:
    with pytest.raises(ImageError, match=rf"a{suffix}: cannot write '{suffix}' files; use a name that ends"):
        picture_format("a" + suffix)
    assert (picture_format("a.PNG"), picture_format("a.jpg")) == ("PNG", "JPEG")


def test_content_instead_of_a_file(tmp_path: Path) -> None:
    gradient(8, 6).save(tmp_path / "a.png")
    content = (tmp_path / "a.png").read_bytes()
    assert np.array_equal(np.asarray(load_image(content)), np.asarray(load_image(tmp_path / "a.png")))
    with pytest.raises(ImageError, match="pipe row 7: not a readable image"):
        load_image(content[:60], name="pipe row 7")


def test_long_texts_under_pictures_end_in_dots_and_fit() -> None:
    words = "replace the small dog by a very large and rather friendly elephant " * 9
    sheet = captioned_sheet([np.full((20, 392, 3), 255, np.uint8)], [words])
    assert sheet.shape == (20 + LINES * (FONT + 4) + 4, 392, 3)
    assert sheet.min() < 100 and (sheet[:, -1] == 255).all() and (sheet[-1] == 255).all()
