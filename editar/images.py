"""Pictures in and out: the only place that opens, flattens, resizes, crops or quantises an image.

Sources of the rules: EditAR's data sets (Lanczos on the short side, centre crop, [-1, 1]) and its
sampling scripts (truncation, not rounding, to uint8).
"""

from __future__ import annotations

import io
import os
import textwrap
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont, ImageOps, PngImagePlugin

from editar.errors import ImageError, ImageTooLarge
from editar.runtime.files import atomic

MAX_ASPECT = 64  # the short side is scaled to the model's size, so the long one becomes up to 64 times that
FONT, LINES = 14, 3  # under pictures: its height in pixels, and the most lines of a text
BAND_PIXELS = 1 << 20  # computed in float64 at once, so that large pictures take little more than their own size

# MultiGen-20M has PNGs whose text chunks exceed Pillow's limits (1 MB each, 64 MB in all).
PngImagePlugin.MAX_TEXT_CHUNK = 64 << 20
PngImagePlugin.MAX_TEXT_MEMORY = 256 << 20


def load_image(source: str | Path | bytes, name: str | None = None, official: bool = False) -> Image.Image:
    """Open any picture a person has, a file or a file's content, as upright 8-bit RGB.

    `official`: Pillow's `convert("RGB")` alone, as in EditAR's data sets: no EXIF, alpha is dropped.

    Nothing is decoded of more than Pillow's limit of 178,956,970 pixels, or of a shape beyond MAX_ASPECT.
    Handles EXIF rotation, palettes, alpha (over white), CMYK, grey, 16-bit and float images.
    Raises ImageError for a missing, unreadable, truncated, empty, too large or too narrow file; its text
    begins with `name` (default: the path).
    """
    name = name or ("image" if isinstance(source, bytes) else str(source))
    if not isinstance(source, bytes) and not os.path.isfile(source):  # False for impossible names too
        raise ImageError(f"{name}: no such image file")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as image:
                if image.format == "EPS":  # Pillow would have Ghostscript run it
                    raise ImageError(f"{name}: EPS files are programs, and are not run; convert it to PNG")
                width, height = image.size
                if max(width, height) > MAX_ASPECT * min(width, height):
                    raise ImageTooLarge(
                        f"{name}: {width}x{height} has one side more than {MAX_ASPECT} times the other; crop it"
                    )
                image.load()
                if official:
                    return image.convert("RGB")
                if image.mode == "F" and not any(np.isfinite(np.asarray(band)).any() for band in _bands(image)):
                    raise ImageError(f"{name}: none of its pixels is a finite number")
                ImageOps.exif_transpose(image, in_place=True)
    except ImageError:
        raise
    except Image.DecompressionBombError as error:
        raise ImageTooLarge(f"{name}: too many pixels ({error}); make it smaller") from None
    except Exception as error:  # decoders raise nearly anything at damaged files: struct.error, EOFError, KeyError
        raise ImageError(f"{name}: not a readable image ({error})") from None
    return to_rgb(image)


def to_rgb(image: Image.Image) -> Image.Image:
    """Any PIL mode to 8-bit RGB; transparency is blended over white, 16-bit is scaled to 8, NaN is black."""
    if image.mode in ("I;16", "I;16B", "I;16L", "I", "F"):
        brightest = max(_brightest(band) for band in _bands(image))
        divisor = 257.0 if image.mode != "F" and brightest > 255 else 1.0
        factor = 255.0 if image.mode == "F" and brightest <= 1 else 1.0
        return _in_bands(image, "L", lambda band: _to_grey(band, divisor, factor)).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        return _in_bands(image, "RGB", flatten_alpha)
    return image.convert("RGB")


def _bands(image: Image.Image) -> Iterator[Image.Image]:
    """The picture cut into strips of its full width, from the top, of about BAND_PIXELS each."""
    width, height = image.size
    rows = max(1, BAND_PIXELS // width)
    for top in range(0, height, rows):
        yield image.crop((0, top, width, min(top + rows, height)))


def _in_bands(image: Image.Image, mode: str, convert: Callable[[Image.Image], np.ndarray]) -> Image.Image:
    """A picture of `mode` whose bands are `convert`(band), uint8."""
    made, top = Image.new(mode, image.size), 0
    for band in _bands(image):
        made.paste(Image.fromarray(convert(band)), (0, top))
        top += band.size[1]
    return made


def _brightest(image: Image.Image) -> float:
    """The largest finite value, at least 0."""
    values = np.asarray(image)
    return float(values.max(initial=0, where=np.isfinite(values)))


def _to_grey(image: Image.Image, divisor: float, factor: float) -> np.ndarray:
    values = np.asarray(image).astype(np.float64)
    values[np.isnan(values)] = 0
    return np.clip(values / divisor * factor, 0, 255).astype(np.uint8)


def flatten_alpha(image: Image.Image) -> np.ndarray:
    """Blend over white in float64 and truncate -> (H, W, 3) uint8 (EditAR `whiten_transparency`).

    The official data sets call `convert("RGB")` first, so there transparency is discarded and this
    blend never acts; it acts on the pictures people hand to `editar.edit`.
    """
    rgba = np.asarray(image.convert("RGBA")).astype(np.float64)
    alpha = rgba[..., 3:] / 255.0
    return ((1.0 - alpha) * 255.0 + alpha * rgba[..., :3]).astype(np.uint8)


def resize_and_crop(
    image: Image.Image, size: int, resample: Image.Resampling = Image.Resampling.LANCZOS
) -> Image.Image:
    """Scale the short side to `size` (sides rounded half to even), then crop the centre."""
    width, height = image.size
    if (width, height) != (size, size):
        scale = size / min(width, height)
        image = image.resize((max(size, round(width * scale)), max(size, round(height * scale))), resample)
    left, top = (image.size[0] - size) // 2, (image.size[1] - size) // 2
    return image.crop((left, top, left + size, top + size))


def to_tensor(image: Image.Image | np.ndarray) -> torch.Tensor:
    """RGB picture, uint8 (H, W, 3) -> (3, H, W) float32 in [-1, 1]; float64 inside, as EditAR."""
    array = np.asarray(image).astype(np.float64) / 255.0 * 2.0 - 1.0
    return torch.from_numpy(array.transpose(2, 0, 1).astype(np.float32))


def preprocess(image: Image.Image, size: int) -> torch.Tensor:
    """RGB picture -> (3, size, size) float32 in [-1, 1]."""
    return to_tensor(resize_and_crop(image, size))


def batch_to_tensor(images: np.ndarray | torch.Tensor) -> torch.Tensor:
    """(B, H, W, 3) uint8 -> (B, 3, H, W) float32 in [-1, 1]."""
    if isinstance(images, np.ndarray):
        images = np.require(images, requirements="W")  # views of PIL pictures are not, of which torch warns
    return torch.as_tensor(images).permute(0, 3, 1, 2).float().div(127.5).sub(1.0)


def to_uint8(images: torch.Tensor) -> np.ndarray:
    """(B, 3, H, W) in [-1, 1] -> (B, H, W, 3) uint8, clamped and truncated as the official scripts do."""
    scaled = (images.detach().float().clamp(-1, 1) + 1) / 2 * 255
    return scaled.to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()


def round_to_uint8(images: torch.Tensor) -> np.ndarray:
    """As `to_uint8`, but rounded half up, as torchvision's `save_image` does it."""
    scaled = (images.detach().float().clamp(-1, 1) + 1) / 2 * 255 + 0.5
    return scaled.to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()


def save_image(image: Image.Image | np.ndarray, path: str | Path, **options: Any) -> None:
    """Write atomically, in the format of the name's suffix; `options` are Pillow's for it."""
    format = picture_format(path)
    with atomic(path) as partial:
        partial.write_bytes(encode_image(image, format, **options))


def picture_format(path: str | Path) -> str:
    """Pillow's name of the format that the path's suffix asks for. Raises ImageError if it cannot be written."""
    suffix = Path(path).suffix.lower()
    format = Image.registered_extensions().get(suffix, "")
    try:
        encode_image(Image.new("RGB", (1, 1)), format)
    except (KeyError, OSError, ValueError):  # unknown, only read, without colours, or in need of another library
        raise ImageError(f"{path}: cannot write {suffix!r} files; use a name that ends in .png or .jpg") from None
    return format


def encode_image(image: Image.Image | np.ndarray, format: str = "PNG", **options: Any) -> bytes:
    """A picture as the content of a file; `options` are Pillow's for the format."""
    buffer = io.BytesIO()
    (Image.fromarray(image) if isinstance(image, np.ndarray) else image).save(buffer, format, **options)
    return buffer.getvalue()


def side_by_side(images: list[np.ndarray], gap: int = 4) -> np.ndarray:
    """Pictures of one height, (H, W, 3) uint8 each, in a row on white."""
    white = np.full((images[0].shape[0], gap, 3), 255, np.uint8)
    return np.concatenate([part for image in images for part in (white, image)][1:], axis=1)


def contact_sheet(rows: list[list[np.ndarray]], gap: int = 4) -> np.ndarray:
    """Rows of equally sized pictures as one picture on white."""
    lines = [side_by_side(row, gap) for row in rows]
    white = np.full((gap, lines[0].shape[1], 3), 255, np.uint8)
    return np.concatenate([part for line in lines for part in (white, line)][1:], axis=0)


def enlarged(picture: np.ndarray, factor: int) -> np.ndarray:
    """(H, W, 3) uint8, every pixel as a square of `factor` pixels."""
    return picture.repeat(factor, 0).repeat(factor, 1)


def captioned_sheet(pictures: list[np.ndarray], texts: list[str]) -> np.ndarray:
    """Pictures of one size, (H, W, 3) uint8, with a text under each, in two columns: the first half left."""
    font, width = ImageFont.load_default(FONT), pictures[0].shape[1]
    letters = max(4, int(width / font.getlength("n")))
    lines = [textwrap.wrap(text, letters, max_lines=LINES, placeholder=" ...") for text in texts]
    cells, room = [], (FONT + 4) * max(map(len, lines)) + 4
    for picture, words in zip(pictures, lines, strict=True):
        card = Image.new("RGB", (width, room), "white")
        ImageDraw.Draw(card).multiline_text((2, 0), "\n".join(words), "black", font, spacing=4)
        cells.append(np.concatenate([picture, np.asarray(card)]))
    half = (len(cells) + 1) // 2
    if half > 1 and len(cells) % 2:
        cells.append(np.full_like(cells[0], 255))
    return contact_sheet([cells[row::half] for row in range(half)])
