"""FID through clean-fid's network and resizing, with statistics of our own reference pictures.

clean-fid keeps custom statistics under a bare name inside its own package folder; here they are one
.npz where the caller wants it, with the pictures' and the network's checksums inside, so that a stale
cache is noticed. The published protocol: 5,000 pictures at 512x512, mode "clean" (Pillow's bicubic to
299x299 on floats); ControlNet++ averages the FID of its four groups.
"""

from __future__ import annotations

import os
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import default_collate

from editar.errors import BenchmarkError, CheckpointError
from editar.metrics.pictures import Mapped, load_in_batches
from editar.runtime.files import atomic, checksum

Network = Callable[[torch.Tensor], torch.Tensor]  # (B, 3, 299, 299) in 0..255 -> (B, 2048)
ELSEWHERE = "give fid_statistics=FILE.npz"


@dataclass(frozen=True)
class FidStatistics:
    """Mean (C,) and covariance (C, C) of `count` pictures' features, float64. `pictures` and
    `network` say what they were made from: a fingerprint and a SHA-256 sum."""

    mean: np.ndarray
    covariance: np.ndarray
    count: int
    pictures: str
    network: str

    def save(self, path: Path) -> None:
        """Raises BenchmarkError where it cannot be written."""
        try:
            with atomic(path) as partial, open(partial, "wb") as file:
                np.savez(file, **{field.name: getattr(self, field.name) for field in fields(self)})
        except OSError as error:
            raise BenchmarkError(f"{path}: cannot be written ({error.strerror}); {ELSEWHERE}") from None

    @classmethod
    def load(cls, path: str | Path) -> FidStatistics:
        """Raises BenchmarkError for a damaged file or one of another kind."""
        try:
            with np.load(path, allow_pickle=False) as file:
                arrays = (file["mean"], file["covariance"])
                return cls(*arrays, int(file["count"]), str(file["pictures"]), str(file["network"]))
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise BenchmarkError(f"{path}: not a file of FID statistics ({error}); remove it") from None

    @cached_property
    def half(self) -> np.ndarray:
        """(C, R): half @ half.T is the covariance, whose rank R few pictures keep small. Where there are fewer
        pictures than features, `statistics` sets it from the features themselves, which takes no decomposition."""
        values, vectors = np.linalg.eigh(self.covariance)
        kept = values > values[-1] * 1e-14
        return vectors[:, kept] * np.sqrt(values[kept])


def check_place(path: Path) -> None:
    """The folder of a cache can be written to; makes it. Raises BenchmarkError."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BenchmarkError(f"{path}: no place for FID statistics ({error.strerror}); {ELSEWHERE}") from None
    if path.is_dir() or not os.access(path.parent, os.W_OK):
        why = "is a folder" if path.is_dir() else "its folder is read-only"
        raise BenchmarkError(f"{path}: no place for FID statistics ({why}); {ELSEWHERE}")


class Inception:
    """clean-fid's Inception v3 from the exported inception-2015-12-05.pt."""

    def __init__(self, path: str | Path, device: torch.device) -> None:
        """Raises CheckpointError for a missing or unreadable file."""
        from cleanfid.inception_torchscript import InceptionV3W

        path = Path(path)
        if not path.is_file():
            raise CheckpointError(f"no {path}; get it with `python scripts/fetch_weights.py inception_fid`")
        if path.name != "inception-2015-12-05.pt":
            raise CheckpointError(f"{path}: clean-fid wants the file name inception-2015-12-05.pt")
        try:
            self.network = InceptionV3W(str(path.parent), download=False).to(device).eval()
        except RuntimeError as error:
            raise CheckpointError(f"{path}: not a readable TorchScript file ({str(error).splitlines()[0]})") from None
        self.checksum = checksum(path)

    def __call__(self, pictures: torch.Tensor) -> torch.Tensor:
        return self.network(pictures)


def features(pictures: Mapped, network: Network, device: torch.device, batch: int = 64, workers: int = 0) -> np.ndarray:
    """(N, C) float64 of (H, W, 3) uint8 pictures in their given order, brought to 299x299 by clean-fid's "clean"
    resizing."""
    from cleanfid.fid import get_batch_features
    from cleanfid.resize import build_resizer

    resized = Mapped(partial(_load_resized, pictures.load, build_resizer("clean")), pictures.items)
    parts = load_in_batches(resized, batch, workers, default_collate)
    return np.concatenate([get_batch_features(part, network, device) for part in parts]).astype(np.float64)


def _load_resized(load: Callable[[Any], np.ndarray], resize: Callable[[np.ndarray], np.ndarray], item: Any) -> Any:
    """(3, 299, 299) float32 in 0..255."""
    return torch.from_numpy(resize(load(item))).permute(2, 0, 1)


def statistics(
    pictures: Mapped, fingerprint: str, network: Network, network_sum: str, device: torch.device, workers: int = 0
) -> FidStatistics:
    """Statistics of pictures. Raises BenchmarkError for fewer than two."""
    count = len(pictures)
    if count < 2:
        raise BenchmarkError(f"FID needs at least two pictures, {count} given")
    values = features(pictures, network, device, workers=workers)
    made = FidStatistics(values.mean(0), np.cov(values, rowvar=False), count, fingerprint, network_sum)
    if count <= values.shape[1]:
        vars(made)["half"] = (values - made.mean).T / np.sqrt(count - 1)
    return made


def cached_statistics(
    cache: Path,
    pictures: Mapped,
    fingerprint: str,
    network: Network,
    network_sum: str,
    device: torch.device,
    workers: int = 0,
) -> FidStatistics:
    """The reference's statistics from `cache`, or made and written there. `fingerprint` changes with
    the pictures (`content_sum`, or a data set's revision).

    Raises BenchmarkError when the cache was made from other pictures or another network, which would
    otherwise go unnoticed into every table, and where it cannot be written.
    """
    if not cache.is_file():
        check_place(cache)
        made = statistics(pictures, fingerprint, network, network_sum, device, workers)
        made.save(cache)
        return made
    found, count = FidStatistics.load(cache), len(pictures)
    if found.network != network_sum:
        raise BenchmarkError(f"{cache}: made with another Inception file; remove it to make it anew")
    if found.count != count or found.pictures != fingerprint:
        raise BenchmarkError(f"{cache}: made from other pictures ({found.count}, now {count}); remove it")
    return found


def frechet_distance(a: FidStatistics, b: FidStatistics) -> float:
    """|mean difference|^2 + tr(A + B - 2 sqrt(AB)).

    clean-fid takes scipy's sqrtm of AB, which fails where few pictures make it singular (and its call
    fails with scipy 1.18). Here the trace of the root comes from the eigenvalues of H'BH with HH' = A,
    which are those of AB and real: the same number, faster. Raises BenchmarkError where the network or the
    feature sizes differ.
    """
    if a.network != b.network or a.mean.shape != b.mean.shape:
        raise BenchmarkError("the two FID statistics were made with different networks")
    if "half" in vars(b):  # tr sqrt(AB) is tr sqrt(BA): take the one that is at hand
        a, b = b, a
    root = np.sqrt(np.linalg.eigvalsh(a.half.T @ b.covariance @ a.half).clip(min=0)).sum()
    gap = a.mean - b.mean
    return float(gap @ gap + np.trace(a.covariance) + np.trace(b.covariance) - 2 * root)


def mean_of_groups(distances: Sequence[float]) -> float:
    """ControlNet++: the FIDs of its four groups, averaged (not the FID of all pictures together)."""
    return float(np.mean(distances))
