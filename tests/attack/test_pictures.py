"""Pictures from outside: huge, cut off, of odd numbers or none at all."""

from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from editar import images
from editar.errors import ImageError, UserError
from editar.images import load_image
from tests.helpers.tiny import ROOT


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "I;16", "F"])
def test_bands_change_no_pixel(monkeypatch: pytest.MonkeyPatch, mode: str) -> None:
    rng = np.random.default_rng(0)
    grey = rng.integers(0, 65536, (37, 29)).astype(np.uint16)
    picture = {
        "RGBA": lambda: Image.fromarray(rng.integers(0, 256, (37, 29, 4), np.uint8), "RGBA"),
        "LA": lambda: Image.fromarray(rng.integers(0, 256, (37, 29, 2), np.uint8), "LA"),
        "P": lambda: Image.fromarray((grey % 256).astype(np.uint8)).convert("P"),
        "I;16": lambda: Image.fromarray(grey),
        "F": lambda: Image.fromarray((grey / 65535).astype(np.float32)),
    }[mode]()
    if mode == "P":
        picture.info["transparency"] = 7
    whole = np.asarray(images.to_rgb(picture))
    assert whole.shape == (37, 29, 3)
    for pixels in (1, 29, 100):
        monkeypatch.setattr(images, "BAND_PIXELS", pixels)
        assert np.array_equal(np.asarray(images.to_rgb(picture)), whole)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["RGBA", "I;16"])
def test_a_huge_picture_takes_little_more_than_its_own_size(tmp_path: Path, mode: str) -> None:
    """120 megapixels; blended at once in float64, RGBA would take about 8 GB."""
    path = tmp_path / "huge.png"
    Image.new(mode, (12000, 10000), (255, 0, 0, 128) if mode == "RGBA" else 30000).save(path, compress_level=1)
    code = f"from editar.images import load_image; load_image({str(path)!r})\n"
    code += "import resource; print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert int(done.stdout) * 1024 < 2.5e9, f"{int(done.stdout) / 1e6:.1f} GB"


@pytest.mark.slow
def test_pictures_nobody_can_use(tmp_path: Path) -> None:
    """Sizes that lie, devices, pipes, loops of links, other formats: one line each, and no memory."""
    limit = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    good = images.encode_image(Image.new("RGB", (64, 64)))

    def header(width: int, height: int) -> bytes:
        return good[:16] + width.to_bytes(4, "big") + height.to_bytes(4, "big") + good[24:]

    contents = {
        "empty": b"", "text": b"hello" * 50, "half": good[: len(good) // 2], "zero": header(0, 0),
        "wide": header(2**31 - 1, 1), "large": header(100_000, 100_000), "svg": b"<svg/>", "pdf": b"%PDF-1.4\n%%EOF",
        "bmp": b"BM" + b"\xff" * 100, "tiff": b"II*\0\x08\0\0\0\x00\x00\x08\0\0\0",
        "eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n%%EndComments\n%%EOF\n",
    }  # fmt: skip
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    odd = [*contents, "loop", "dangling", ".", "absent", "x" * 5000, "/dev/null", "/dev/zero", "/proc/self/mem"]
    for name in odd:
        with pytest.raises(UserError) as error:
            images.load_image(tmp_path / name)
        assert "\n" not in str(error.value), name
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - limit < 500_000
    print(f"{len(odd)} pictures refused")


def test_a_picture_of_no_numbers(tmp_path: Path) -> None:
    values = np.full((8, 8), np.nan, np.float32)
    Image.fromarray(values).save(tmp_path / "a.tiff")
    with pytest.raises(ImageError, match=r"a\.tiff: none of its pixels is a finite number"):
        load_image(tmp_path / "a.tiff")
    values[0, 0] = 1
    Image.fromarray(values).save(tmp_path / "a.tiff")
    assert load_image(tmp_path / "a.tiff").getpixel((0, 0)) == (255, 255, 255)
