"""Which run made a results folder, and every picture in it.

FOLDER/manifest.json    what the pictures depend on: weights, settings, sources, instructions
FOLDER/images/NAME.png  carries the manifest's checksum and its own name in a text chunk, so that a picture of
                        another run that was copied in, or one under another's name, is noticed
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from editar.errors import BenchmarkError, ImageError
from editar.images import load_image, save_image
from editar.runtime.files import parse_json

MANIFEST = "manifest.json"
CHUNK = "editar manifest sha256"
SIGNATURE, END = b"\x89PNG\r\n\x1a\n", b"IEND\xaeB`\x82"  # the first and last bytes of every PNG


@dataclass(frozen=True)
class ResultManifest:
    """A results folder's manifest, as its file holds it."""

    file: Path
    values: dict[str, Any]

    @property
    def stamp(self) -> str:
        """The checksum; the stamp of a picture is this, a space and KIND/NAME.png."""
        return hashlib.sha256(json.dumps(self.values, sort_keys=True).encode()).hexdigest()

    @property
    def generated_with(self) -> dict[str, Any]:
        """Without the instructions."""
        return {key: value for key, value in self.values.items() if key != "instructions"}

    def check(self, pictures: Iterable[Path]) -> None:
        """Every picture was made under this manifest and this name. Raises BenchmarkError that counts and names the
        others, ImageError for a file that is no picture."""
        found = {path: (read_stamp(path) or "").partition(" ") for path in pictures}
        wrong = {path: self._wrong(path, run, name) for path, (run, _, name) in found.items()}
        wrong = {path: why for path, why in wrong.items() if why}
        if wrong:
            first, why = next(iter(wrong.items()))
            raise BenchmarkError(
                f"{len(wrong)} of {len(found)} pictures do not belong to {self.file}: first {first}, which {why}; "
                "remove them and let stage=generate make them again"
            )

    def _wrong(self, path: Path, run: str, name: str) -> str:
        """Why a picture with this stamp is not the manifest's; empty if it is. Older stamps have no name."""
        if run != self.stamp:
            return "was made by another run" if run else "carries no stamp of the run that made it"
        return "" if path.as_posix().endswith(name) else f"was made as {name}"


def read_result_manifest(source: Path) -> ResultManifest | None:
    """The manifest in a results folder or beside its images/; None for pictures that are not ours.

    Raises BenchmarkError for a damaged one.
    """
    places = [source, source.parent] if source.name == "images" else [source]
    file = next((place / MANIFEST for place in places if (place / MANIFEST).is_file()), None)
    if file is None:
        return None
    try:
        values = parse_json(file.read_bytes())
    except ValueError as error:
        raise BenchmarkError(
            f"{file}: not readable JSON ({error}); stage=generate with the same settings writes it anew"
        ) from None
    ours = isinstance(values, dict) and {"image_size", "instructions"} <= set(values)
    return ResultManifest(file, values) if ours else None  # prepared data have a manifest.json too


def save_stamped(picture: np.ndarray, path: Path, stamp: str) -> None:
    """(H, W, 3) uint8 as a PNG with the stamp, atomically."""
    chunks = PngInfo()
    chunks.add_text(CHUNK, stamp)
    save_image(picture, path, pnginfo=chunks)


def spoilt(path: Path) -> bool:
    """Whether the file is the beginning of a PNG, or empty, as a power cut or a broken copy leaves it, or a picture of
    ours whose checksums say that it has changed."""
    if not path.is_file():
        return False
    with open(path, "rb") as file:
        start = file.read(len(SIGNATURE))
        file.seek(max(0, path.stat().st_size - len(END)))
        if not SIGNATURE.startswith(start) or file.read() != END:
            return SIGNATURE.startswith(start)
    try:
        if read_stamp(path) is None:
            return False
        with Image.open(path) as image:
            image.verify()
    except ImageError:  # not even its header is readable: `read_stamp` names it where it is used
        return False
    except (SyntaxError, OSError):
        return True
    return False


def read_stamp(path: Path) -> str | None:
    """Reads no pixels. Raises ImageError for a file that is no picture."""
    try:
        with Image.open(path) as image:
            stamp = image.info.get(CHUNK)
    except Exception:  # decoders raise nearly anything at damaged files; load_image says it in one line
        load_image(path)
        return None
    return stamp if isinstance(stamp, str) else None
