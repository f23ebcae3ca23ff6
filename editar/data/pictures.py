"""Pictures without instructions, for a tokenizer: a folder of picture files, of parquet or arrow files, or of tars.

As in the GPT's data, what draw i is depends on (seed, i) alone, and a picture that cannot be read is replaced by the
next one and named.
"""

from __future__ import annotations

import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset

from editar.config import PicturesConfig
from editar.data import stream
from editar.data.loader import RETRIES
from editar.data.mixture import Mixture
from editar.data.sample import BadRow, EditSample
from editar.data.sources import picture
from editar.data.tables import open_table
from editar.errors import DataError, ImageError, one_line
from editar.images import batch_to_tensor, load_image, resize_and_crop

SMALLEST_CROP = 0.8  # side of a training crop, as a share of the picture's short side (ADM, LlamaGen)
CROP, LEFT, TOP, FLIP = 1, 2, 3, 4  # streams of `stream.uniform`


class Pictures:
    """Random access to RGB pictures: `pictures[i]`, or BadRow; `name(i)` is what a person calls it."""

    def __init__(self, cfg: PicturesConfig) -> None:
        """Raises DataError for a folder that holds no pictures, or several kinds of files with them."""
        self.root, self.column = Path(str(cfg.path)), cfg.column
        if not self.root.is_dir():
            raise DataError(f"data.path={self.root}: no such folder; give one of pictures, *.parquet or *.tar")
        known = Image.registered_extensions()
        files = sorted(path for path in self.root.rglob("*") if path.is_file())
        images, tars = [[f for f in files if wanted(f)] for wanted in (lambda f: f.suffix.lower() in known, is_tar)]
        rows = [f for f in files if f.suffix in (".parquet", ".arrow")]
        found = {"pictures": images, "parquet or arrow files": rows, "tars": tars}
        kinds = [kind for kind, some in found.items() if some]
        if len(kinds) > 1 and not (self.root / "contact_sheet.png").is_file():  # of a prepared folder
            raise DataError(f"data.path={self.root} holds {' and '.join(kinds)}; give a folder of one kind")
        if not kinds:
            raise DataError(f"data.path={self.root}: no picture, *.parquet or *.tar in it")
        self.table = open_table(self.root, [self.column]) if rows else None
        self.members = [member for tar in tars for member in tar_members(tar, known)]
        self.files = [] if rows or tars else images
        if tars and not self.members:
            raise DataError(f"data.path={self.root}: no picture in its {len(tars)} tars")

    def __len__(self) -> int:
        return len(self.files or self.members or self.table or ())

    def name(self, index: int) -> str:
        if self.table is not None:
            return f"row {index}"
        return str(self.files[index].relative_to(self.root)) if self.files else self.members[index].name

    def __getitem__(self, index: int) -> Image.Image:
        if self.table is not None:
            return picture(self.table[index], self.column)
        try:
            return load_image(self.files[index] if self.files else self.members[index].read())
        except (ImageError, OSError) as error:
            raise BadRow(one_line(error)) from None


@dataclass(frozen=True)
class TarMember:
    """A file in an uncompressed tar, read by its place."""

    tar: Path
    name: str
    offset: int
    size: int

    def read(self) -> bytes:
        with open(self.tar, "rb") as file:
            file.seek(self.offset)
            return file.read(self.size)


def is_tar(path: Path) -> bool:
    return path.name.endswith((".tar", ".tar.gz", ".tgz"))


def check_end(tar: tarfile.TarFile) -> None:
    """After the last member: whether the empty block is there that ends every tar. `tarfile` takes one that was cut
    between two members for whole. Raises tarfile.ReadError."""
    if tar.fileobj is None or tar.fileobj.tell() - tar.offset < tarfile.BLOCKSIZE:
        raise tarfile.ReadError("no end mark after the last member")


def tar_members(path: Path, suffixes: dict[str, str] | set[str]) -> list[TarMember]:
    """Files in a tar whose names end in one of `suffixes`. Raises DataError for one that is compressed or cut."""
    try:
        with tarfile.open(path, "r:") as tar:
            found = [info for info in tar if info.isfile() and Path(info.name).suffix.lower() in suffixes]
            check_end(tar)
    except tarfile.TarError as error:
        raise DataError(f"{path}: not a whole uncompressed tar ({one_line(error)}); get it anew or unpack it") from None
    return [TarMember(path, f"{path.name}/{info.name}", info.offset_data, info.size) for info in found]


@dataclass
class PictureBatch:
    """B pictures, (B, 3, H, W) float32 in [-1, 1]; `untouched` (B / 2, H, W) bool where they are sources and targets in
    turn: the pixels that the edit leaves alone. `replaced`: (picture, reason) of those that could not be read."""

    images: torch.Tensor
    untouched: torch.Tensor | None
    replaced: Sequence[tuple[str, str]] = ()

    def __len__(self) -> int:
        return len(self.images)


class PictureStream(Dataset[tuple[np.ndarray, tuple[tuple[str, str], ...]]]):
    """`stream[draw]` -> (S, S, 3) uint8, a random crop, flipped or not, and the pictures it stands in for. The last
    `heldout` pictures are never drawn."""

    def __init__(self, cfg: PicturesConfig, size: int, seed: int) -> None:
        self.pictures, self.size, self.seed = Pictures(cfg), size, seed
        self.heldout = min(cfg.heldout_samples, len(self.pictures) // 2)
        if len(self.pictures) < 2:
            raise DataError(f"data.path={cfg.path} holds one picture; a training needs some more to be held out")
        self.mixture = Mixture({"pictures": 1.0}, {"pictures": len(self.pictures) - self.heldout}, seed)

    def __getitem__(self, draw: int) -> tuple[np.ndarray, tuple[tuple[str, str], ...]]:
        number = np.array([draw], np.uint64)
        chance = [float(stream.uniform(number, self.seed, use)[0]) for use in (CROP, LEFT, TOP, FLIP)]
        replaced: list[tuple[str, str]] = []
        for retry in range(RETRIES + 1):
            row = int(self.mixture.locate(number, retry)[1][0])
            try:
                return random_crop(self.pictures[row], self.size, chance), tuple(replaced)
            except BadRow as error:
                replaced.append((self.pictures.name(row), str(error)))
        raise DataError(f"{self.pictures.root}: {RETRIES} pictures one after the other cannot be read: {replaced[-1]}")

    def heldout_batch(self, most: int) -> torch.Tensor:
        """The first `most` held-out pictures that can be read, centre crops, (B, 3, S, S)."""
        found: list[np.ndarray] = []
        for index in range(len(self.pictures) - self.heldout, len(self.pictures)):
            if len(found) < most:
                try:
                    found.append(np.array(resize_and_crop(self.pictures[index], self.size)))
                except BadRow:
                    continue
        if not found:
            raise DataError(f"{self.pictures.root}: none of the last {self.heldout} pictures, held out, can be read")
        return batch_to_tensor(np.stack(found))


def random_crop(image: Image.Image, size: int, chance: Sequence[float]) -> np.ndarray:
    """(size, size, 3) uint8: the short side is resized to between `size` and `size / SMALLEST_CROP`, a square cut out
    anywhere and mirrored half of the time; `chance`: four numbers in [0, 1)."""
    scaled = size + int(chance[0] * (int(size / SMALLEST_CROP) - size + 1))
    ratio = scaled / min(image.size)
    width, height = (max(size, round(side * ratio)) for side in image.size)
    left, top = int(chance[1] * (width - size + 1)), int(chance[2] * (height - size + 1))
    resized = image.resize((width, height), Image.Resampling.LANCZOS).crop((left, top, left + size, top + size))
    pixels = np.array(resized)
    return np.ascontiguousarray(pixels[:, ::-1]) if chance[3] < 0.5 else pixels


def collate_pictures(items: list[tuple[np.ndarray, tuple[tuple[str, str], ...]]]) -> PictureBatch:
    return PictureBatch(
        batch_to_tensor(np.stack([image for image, _ in items])),
        None,
        [row for _, replaced in items for row in replaced],
    )


def collate_pairs(samples: list[EditSample]) -> PictureBatch:
    """Sources and targets of P samples, interleaved."""
    images = np.stack([image for sample in samples for image in (sample.source, sample.target)])
    return PictureBatch(batch_to_tensor(images), torch.from_numpy(np.stack([~sample.mask for sample in samples])))
