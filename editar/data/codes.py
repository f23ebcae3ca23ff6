"""The codes cache: every row of a source after the frozen tokenizer, made once, read many times.

CACHE/NAME/manifest.json   what the codes depend on; a run that needs another cache is told what differs
CACHE/NAME/codes-00000.parquet   SHARD_ROWS rows each; row r of the source is row r of the cache

A row keeps both pictures' codes, its texts in both directions, and pictures for the teacher, so that
direction and wording can still be chosen when it is read: small JPEGs, which any teacher can read, or one
teacher's own input, exactly. A row that could not be read keeps its place and its reason.
"""

from __future__ import annotations

import io
import json
from collections import OrderedDict
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from editar.config import SourceConfig
from editar.data.sample import BadRow, Texts
from editar.errors import DataError, one_line
from editar.images import encode_image
from editar.runtime.files import parse_json
from editar.runtime.log import say

FORMAT = 1
JPEG = "jpeg"  # pictures of up to 256 px, that the teacher still resizes and crops
PREPROCESSING = "lanczos-short-side-centre-crop-1"  # editar.images.resize_and_crop; change with its pixels
SHARD_ROWS = 1024
GROUP_ROWS = 32  # rows of one parquet row group: what one random read costs
IN_MEMORY = 1 << 29  # bytes; smaller caches are kept in memory
OPEN_SHARDS = 64
SCHEMA = pa.schema(
    dict.fromkeys(("id", "bad", "task"), pa.string())
    | dict.fromkeys(("source", "target"), pa.binary())
    | dict.fromkeys(("forward", "backward"), pa.list_(pa.string()))
    | dict.fromkeys(("source_picture", "target_picture", "features"), pa.binary())
)


@dataclass(frozen=True)
class CacheManifest:
    """What a cache depends on. `features` names the teacher whose features are stored, if any; `pictures` is JPEG or
    names the teacher whose input is stored."""

    source: str
    revision: str
    texts: str
    rows: int
    tokenizer: str
    image_size: int
    grid: int
    features: str = ""
    pictures: str = JPEG
    preprocessing: str = PREPROCESSING
    format: int = FORMAT

    @property
    def shards(self) -> int:
        return -(-self.rows // SHARD_ROWS)

    def open_shard(self, path: Path, shard: int) -> pq.ParquetFile:
        """A shard's file, of whose pages nothing is read yet. Raises OSError, ValueError or ArrowException unless it
        has this cache's rows and columns."""
        file = pq.ParquetFile(path, memory_map=True, page_checksum_verification=True)
        rows, names = file.metadata.num_rows, file.schema_arrow.names
        if rows != (wanted := min(SHARD_ROWS, self.rows - shard * SHARD_ROWS)) or names != SCHEMA.names:
            raise ValueError(f"{rows} rows of {', '.join(names)} instead of {wanted} of {', '.join(SCHEMA.names)}")
        return file

    def has_shard(self, folder: Path, shard: int) -> bool:
        """Whether it was finished; one that was damaged since counts as missing, and is named."""
        path = shard_path(folder, shard)
        if not path.is_file():
            return False
        try:
            self.open_shard(path, shard).close()
        except (OSError, ValueError, pa.ArrowException) as error:
            say(f"{path}: not readable ({one_line(error)}); made anew")
            return False
        return True

    def read(self, folder: Path) -> CacheManifest | None:
        """The manifest in `folder`, None if there is none. Raises DataError unless it equals this one."""
        found = stored_manifest(str(folder.parent), folder.name)
        for key, value in asdict(self).items() if found is not None else ():
            if key == "features" and not value:
                continue  # stored features may stay unread
            if getattr(found, key) != value:
                raise DataError(
                    f"{folder} was cached with {key} {getattr(found, key)!r}, this run needs {value!r}; "
                    "give another data.cache, or remove that folder and make the cache anew"
                )
        return found


def stored_manifest(cache: str | None, name: str) -> CacheManifest | None:
    """What the cache of source `name` says about itself, None if there is none."""
    path = Path(cache or "") / name / "manifest.json"
    if not cache or not path.is_file():
        return None
    try:
        return CacheManifest(**parse_json(path.read_bytes()))
    except (ValueError, TypeError) as error:
        raise DataError(f"{path}: damaged ({one_line(error)}); remove {path.parent} and make the cache anew") from None


def texts_key(cfg: SourceConfig) -> str:
    """The settings that decide a row's pictures and texts (the chance of reversal does not)."""
    changed = [v for v, usual in ((cfg.images, "upright"), (cfg.canny.operator, "kornia")) if v != usual]
    return json.dumps([cfg.kind, cfg.prompt, cfg.wording, cfg.empty, cfg.removal, cfg.condition, *changed])


def unreadable(path: Path, error: Exception) -> DataError:
    return DataError(f"{path}: not readable ({one_line(error)}); remove it and run scripts/cache_codes.py")


def shard_path(folder: Path, shard: int) -> Path:
    return folder / f"codes-{shard:05d}.parquet"


@dataclass(frozen=True)
class Encoded:
    """A cached row: codes, source (k N,) and target (N,) uint16, JPEG or PNG bytes, features (T, C) float16 or None."""

    id: str
    task: str
    source: np.ndarray
    target: np.ndarray
    texts: Texts
    source_picture: bytes | None
    target_picture: bytes
    features: np.ndarray | None


class CodesCache:
    """Random access to a complete cache of one source."""

    def __init__(self, folder: Path, manifest: CacheManifest, backward_chance: float, codebook_size: int) -> None:
        found = manifest.read(folder)
        missing = [k for k in range(manifest.shards) if not shard_path(folder, k).is_file()]
        if found is None or missing:
            raise DataError(
                f"{folder}: {len(missing)} of {manifest.shards} shards of codes are missing; "
                "run scripts/cache_codes.py with the same settings (it goes on where it stopped)"
            )
        self.folder, self.manifest, self.backward_chance = folder, found, backward_chance
        self.codebook_size = codebook_size
        self.reads_features = bool(manifest.features)  # those of another teacher may lie there
        size = sum(shard_path(folder, k).stat().st_size for k in range(manifest.shards))
        self.in_memory = size <= IN_MEMORY
        self._open: OrderedDict[int, Any] = OrderedDict()

    def __len__(self) -> int:
        return self.manifest.rows

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_open": OrderedDict()}  # every worker opens its own files

    def __getitem__(self, row: int) -> Encoded:
        if not 0 <= row < len(self):
            raise IndexError(row)
        return self.decode(self._row(*divmod(row, SHARD_ROWS)))

    def _row(self, shard: int, place: int) -> dict[str, Any]:
        if shard not in self._open:
            self._open[shard] = self._open_shard(shard)
            if len(self._open) > OPEN_SHARDS and not self.in_memory:
                self._open.popitem(last=False)
        self._open.move_to_end(shard)
        table = self._open[shard]
        if not self.in_memory:
            try:
                table, place = table.read_row_group(place // GROUP_ROWS, use_threads=False), place % GROUP_ROWS
            except (OSError, pa.ArrowException) as error:
                raise unreadable(shard_path(self.folder, shard), error) from None
        return {name: table.column(name)[place].as_py() for name in SCHEMA.names}

    def _open_shard(self, shard: int) -> Any:
        """The table of a small cache, the open file of a large one. Raises DataError unless it is whole."""
        path = shard_path(self.folder, shard)
        try:
            file = self.manifest.open_shard(path, shard)
            return file.read() if self.in_memory else file
        except (OSError, ValueError, pa.ArrowException) as error:
            raise unreadable(path, error) from None

    def decode(self, row: dict[str, Any]) -> Encoded:
        """Raises BadRow for a row that could not be encoded, DataError for a damaged one."""
        if row["bad"] is not None:
            raise BadRow(row["bad"])
        try:
            found = self._encoded(row)
        except (TypeError, ValueError, AttributeError) as error:  # an entry is missing or of another length
            raise self._damaged(row, f"is damaged ({one_line(error)})") from None
        counts, wanted = (len(found.source), len(found.target)), self.manifest.grid**2
        if counts[1] != wanted or counts[0] == 0 or counts[0] % wanted:
            raise self._damaged(row, f"has {counts[0]} and {counts[1]} codes instead of {wanted}")
        if (largest := max(found.source.max(), found.target.max())) >= self.codebook_size:
            raise self._damaged(row, f"has code {largest}, of a codebook of {self.codebook_size}")
        return found

    def _encoded(self, row: dict[str, Any]) -> Encoded:
        features = None
        if self.reads_features and row["features"] is not None:
            flat = np.frombuffer(row["features"], np.float16)
            features = flat[1:].reshape(int(flat[0]), -1)  # the number of teacher tokens is stored in front
        texts = Texts(tuple(row["forward"]), tuple(row["backward"]), self.backward_chance)
        source, target = (np.frombuffer(row[key], np.uint16) for key in ("source", "target"))
        if not isinstance(row["target_picture"], bytes):
            raise TypeError("no picture")
        pictures = (row["source_picture"], row["target_picture"])
        return Encoded(row["id"], row["task"], source, target, texts, *pictures, features)

    def _damaged(self, row: dict[str, Any], what: str) -> DataError:
        return DataError(f"{self.folder}: {row['id']} {what}; remove that folder and make the cache anew")


def pack_features(features: np.ndarray) -> bytes:
    """(T, C) -> bytes: T, then the values, all float16."""
    if len(features) > 2048:
        raise DataError(f"features of {len(features)} tokens are too many for the cache (2048)")
    return np.concatenate([[len(features)], features.ravel()]).astype(np.float16).tobytes()


def pack_picture(picture: np.ndarray, size: int = 256) -> bytes:
    """(H, W, 3) uint8 -> JPEG, short side at most `size`: near what a teacher sees, which resizes it once more."""
    image = Image.fromarray(picture)
    if min(image.size) > size:
        image = image.resize((size, size), Image.Resampling.BICUBIC)
    return encode_image(image, "JPEG", quality=95, subsampling=0)


def unpack_picture(data: bytes) -> np.ndarray:
    try:
        return np.array(Image.open(io.BytesIO(data)).convert("RGB"))
    except Exception as error:  # decoders raise nearly anything at damaged files
        raise DataError(
            f"a cached picture is damaged ({one_line(error)}); remove the codes and make them anew"
        ) from None
