"""FID through clean-fid's network and resizing, with statistics of our own reference pictures.

clean-fid keeps custom statistics under a bare name inside its own package folder; here they are one
.npz where the caller wants it, with the pictures' and the network's checksums inside, so that a stale
cache is noticed. The published protocol: 5,000 pictures at 512x512, mode "clean" (Pillow's bicubic to
299x299 on floats); ControlNet++ averages the FID of its four groups.
"""

from __future__ import annotations

import hashlib
import math
import os
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from editar.evaluation.benchmark import BenchmarkError
from editar.runtime.files import CheckpointError, checksum

Network = Callable[[torch.Tensor], torch.Tensor]  # (B, 3, 299, 299) in 0..255 -> (B, 2048)
SIZE = 512


@dataclass(frozen=True)
class FidStatistics:
    """Mean (C,) and covariance (C, C) of `count` pictures' features, float64. `pictures` and
    `network` are SHA-256 sums of what they were made from."""

    mean: np.ndarray
    covariance: np.ndarray
    count: int
    pictures: str
    network: str

    def save(self, path: str | Path) -> None:
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.stem}.part.npz")
        np.savez(partial, **vars(self))
        os.replace(partial, path)

    @classmethod
    def load(cls, path: str | Path) -> FidStatistics:
        """Raises BenchmarkError for a damaged file or one of another kind."""
        try:
            with np.load(path, allow_pickle=False) as file:
                arrays = (file["mean"], file["covariance"])
                return cls(*arrays, int(file["count"]), str(file["pictures"]), str(file["network"]))
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise BenchmarkError(f"{path}: not a file of FID statistics ({error}); remove it") from None


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


def features(
    files: Sequence[Path], network: Network, device: torch.device, size: int = SIZE, batch: int = 64, workers: int = 0
) -> np.ndarray:
    """(N, C) float64 of picture files in their given order.

    Raises BenchmarkError for a picture that is not size x size (another size changes FID).
    """
    from cleanfid.fid import get_batch_features
    from cleanfid.utils import ResizeDataset

    for file in files:
        _check_size(file, size)
    loader = torch.utils.data.DataLoader(
        ResizeDataset([str(file) for file in files], mode="clean"), batch_size=batch, num_workers=workers
    )
    return np.concatenate([get_batch_features(pictures, network, device) for pictures in loader]).astype(np.float64)


def statistics(
    files: Sequence[Path], network: Network, network_sum: str, device: torch.device, size: int = SIZE
) -> FidStatistics:
    """Statistics of picture files. Raises BenchmarkError for fewer than two."""
    if len(files) < 2:
        raise BenchmarkError(f"FID needs at least two pictures, {len(files)} given")
    values = features(files, network, device, size)
    covariance = np.cov(values, rowvar=False)
    return FidStatistics(values.mean(0), covariance, len(files), content_sum(files), network_sum)


def cached_statistics(
    cache: str | Path,
    files: Sequence[Path],
    network: Network,
    network_sum: str,
    device: torch.device,
    size: int = SIZE,
) -> FidStatistics:
    """The reference's statistics from `cache`, or made and written there.

    Raises BenchmarkError when the cache was made from other pictures or another network: it would
    otherwise go unnoticed into every table.
    """
    cache = Path(cache)
    if not cache.is_file():
        made = statistics(files, network, network_sum, device, size)
        made.save(cache)
        return made
    found = FidStatistics.load(cache)
    if found.network != network_sum:
        raise BenchmarkError(f"{cache}: made with another Inception file; remove it to make it anew")
    if found.count != len(files) or found.pictures != content_sum(files):
        raise BenchmarkError(f"{cache}: made from other pictures ({found.count}, now {len(files)}); remove it")
    return found


def frechet_distance(a: FidStatistics, b: FidStatistics) -> float:
    """|mean difference|^2 + tr(A + B - 2 sqrt(AB)).

    clean-fid's own function calls scipy's sqrtm with `disp`, which scipy 1.18 removed; this is the
    same computation without it. Raises BenchmarkError where the network or the feature sizes differ,
    or the root is not real.
    """
    from scipy.linalg import sqrtm

    if a.network != b.network or a.mean.shape != b.mean.shape:
        raise BenchmarkError("the two FID statistics were made with different networks")
    root = sqrtm(a.covariance @ b.covariance)
    if not np.isfinite(root).all():  # nearly singular product, as with few pictures
        offset = np.eye(len(a.mean)) * 1e-6
        root = sqrtm((a.covariance + offset) @ (b.covariance + offset))
    if np.iscomplexobj(root):
        if not np.allclose(np.diagonal(root).imag, 0, atol=1e-3):
            raise BenchmarkError(f"FID has an imaginary part of {np.abs(root.imag).max():.2g}; too few pictures?")
        root = root.real
    gap = a.mean - b.mean
    return float(gap @ gap + np.trace(a.covariance) + np.trace(b.covariance) - 2 * np.trace(root))


def mean_of_groups(distances: Sequence[float]) -> float:
    """ControlNet++: the FIDs of its four groups, averaged (not the FID of all pictures together)."""
    return math.fsum(distances) / len(distances)


def content_sum(files: Sequence[Path]) -> str:
    """SHA-256 over the pictures' contents in order; names and places do not matter."""
    digest = hashlib.sha256()
    for file in files:
        digest.update(bytes.fromhex(checksum(file)))
    return digest.hexdigest()


def _check_size(file: Path, size: int) -> None:
    try:
        with Image.open(file) as image:
            found = image.size
    except OSError as error:
        raise BenchmarkError(f"{file}: not a readable image ({error})") from None
    if found != (size, size):
        raise BenchmarkError(f"{file}: {found[0]}x{found[1]}, FID is measured at {size}x{size}")
