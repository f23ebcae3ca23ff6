"""FID around clean-fid: its distance, the cached statistics and what they refuse."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import scipy.linalg
import torch
from PIL import Image

from editar.errors import BenchmarkError, CheckpointError, ImageError
from editar.metrics.fid import (
    FidStatistics,
    Inception,
    cached_statistics,
    features,
    frechet_distance,
    mean_of_groups,
    statistics,
)
from editar.metrics.pictures import Mapped, load_square
from editar.runtime.files import content_sum

CPU = torch.device("cpu")


def network(pictures: torch.Tensor) -> torch.Tensor:
    """Six features of 299x299 pictures: means and spreads of the channels."""
    assert pictures.shape[1:] == (3, 299, 299)
    return torch.cat([pictures.mean((2, 3)), pictures.std((2, 3))], 1)


def write_pictures(folder: Path, count: int, seed: int, size: int = 64) -> list[Path]:
    folder.mkdir()
    random = np.random.default_rng(seed)
    files = [folder / f"{i}.png" for i in range(count)]
    for file in files:
        level = random.integers(20, 200, 3)
        noise = random.integers(0, random.integers(5, 50), (size, size, 3))
        Image.fromarray((level + noise).astype(np.uint8)).save(file)
    return files


def square_files(files: list[Path], size: int = 64) -> Mapped:
    return Mapped(partial(load_square, size=size), files)


def gaussian(seed: int, size: int = 12) -> FidStatistics:
    values = np.random.default_rng(seed).normal(seed, 1 + seed, (200, size))
    return FidStatistics(values.mean(0), np.cov(values, rowvar=False), 200, "", "")


def test_distance_of_diagonal_gaussians() -> None:
    a = FidStatistics(np.zeros(3), np.diag([1.0, 4.0, 9.0]), 9, "", "")
    b = FidStatistics(np.array([1.0, 0, 2]), np.diag([4.0, 4.0, 1.0]), 9, "", "")
    assert frechet_distance(a, b) == pytest.approx(5 + 1 + 0 + 4)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-9)


def test_distance_is_that_of_the_matrix_root() -> None:
    a, b = gaussian(0), gaussian(1)
    root = scipy.linalg.sqrtm(a.covariance @ b.covariance).real
    expected = ((a.mean - b.mean) ** 2).sum() + np.trace(a.covariance + b.covariance - 2 * root)
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-9)
    assert frechet_distance(b, a) == pytest.approx(expected, rel=1e-9)


def test_singular_covariances() -> None:
    """Fewer pictures than features."""
    values = np.random.default_rng(0).normal(size=(2, 3, 12))
    a, b = (FidStatistics(v.mean(0), np.cov(v, rowvar=False), 3, "", "") for v in values)
    assert np.isfinite(frechet_distance(a, b))


def test_features_are_clean_fids(tmp_path: Path) -> None:
    from cleanfid.fid import get_files_features

    files = write_pictures(tmp_path / "a", 5, 0)
    theirs = get_files_features([str(f) for f in files], network, 0, 2, CPU, verbose=False)
    np.testing.assert_allclose(features(square_files(files), network, CPU, batch=3), theirs, rtol=1e-6)


def test_statistics_are_made_once(tmp_path: Path) -> None:
    files, cache = write_pictures(tmp_path / "a", 6, 0), tmp_path / "cache" / "reference.npz"
    pictures, sum = square_files(files), content_sum(files)
    made = cached_statistics(cache, pictures, sum, network, "net", CPU)

    def broken(pictures: torch.Tensor) -> torch.Tensor:
        raise AssertionError("made again")

    again = cached_statistics(cache, pictures, sum, broken, "net", CPU)
    np.testing.assert_array_equal(again.covariance, made.covariance)
    assert (again.count, again.pictures, again.network) == (6, sum, "net")
    assert frechet_distance(made, again) == pytest.approx(0, abs=1e-5)  # of pictures in 0..255
    other = statistics(square_files(write_pictures(tmp_path / "b", 6, 1)), "", network, "net", CPU)
    assert frechet_distance(made, other) > 1


def test_a_stale_cache_is_noticed(tmp_path: Path) -> None:
    files, cache = write_pictures(tmp_path / "a", 4, 0), tmp_path / "reference.npz"

    def ask(files: list[Path], network_sum: str = "net") -> None:
        cached_statistics(cache, square_files(files), content_sum(files), network, network_sum, CPU)

    ask(files)
    with pytest.raises(BenchmarkError, match="another Inception"):
        ask(files, "other")
    with pytest.raises(BenchmarkError, match=r"other pictures \(4, now 3\)"):
        ask(files[:3])
    Image.new("RGB", (64, 64)).save(files[0])
    with pytest.raises(BenchmarkError, match="other pictures"):
        ask(files)
    cache.write_bytes(cache.read_bytes()[:100])
    with pytest.raises(BenchmarkError, match="not a file of FID statistics"):
        ask(files)


def test_a_cache_without_a_place_is_said_before_anything_is_made(tmp_path: Path) -> None:
    files = write_pictures(tmp_path / "a", 2, 0)

    def broken(pictures: torch.Tensor) -> torch.Tensor:
        raise AssertionError("made before the place was looked at")

    for cache in (files[0] / "fid.npz", tmp_path / "a"):
        with pytest.raises(BenchmarkError, match=r"no place for FID statistics .*; give fid_statistics=FILE.npz"):
            cached_statistics(cache, square_files(files), "", broken, "net", CPU)


def test_bad_pictures(tmp_path: Path) -> None:
    files = write_pictures(tmp_path / "a", 2, 0)
    with pytest.raises(BenchmarkError, match="64x64, this benchmark is scored at 512x512"):
        features(square_files(files, 512), network, CPU)
    files[1].write_bytes(b"not a picture")
    with pytest.raises(ImageError, match="not a readable image"):
        features(square_files(files), network, CPU)
    with pytest.raises(ImageError, match=r"^[^\n]*1\.png: not a readable image[^\n]*$"):
        features(square_files(files), network, CPU, workers=1)
    with pytest.raises(BenchmarkError, match="at least two"):
        statistics(square_files(files[:1]), "", network, "net", CPU)


def test_other_networks_are_not_compared() -> None:
    a = gaussian(0)
    with pytest.raises(BenchmarkError, match="different networks"):
        frechet_distance(a, FidStatistics(a.mean, a.covariance, 200, "", "another"))


def test_inception_file(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"fetch_weights\.py inception_fid"):
        Inception(tmp_path / "inception-2015-12-05.pt", CPU)
    (tmp_path / "inception-2015-12-05.pt").write_bytes(b"<html>")
    with pytest.raises(CheckpointError, match="not a readable TorchScript"):
        Inception(tmp_path / "inception-2015-12-05.pt", CPU)


def test_groups_are_averaged() -> None:
    assert mean_of_groups([16.0, 17.0, 18.0, 19.0]) == 17.5
