"""Edges by both operators, against stored numbers of OpenCV 5.0.0 and kornia (tests/golden/preprocess)."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
import torch
from PIL import Image
from skimage import data as photos

from editar.conditions import canny, cv2_canny
from editar.images import resize_and_crop, to_tensor
from tests.helpers import tiny


# cv2.Canny(picture[..., ::-1], 100, 200): edge pixels, and SHA-256 of the packed bits.
@pytest.mark.parametrize(
    ("name", "count", "digest"),
    [
        ("astronaut", 5792, "44232b5502f88a4e"),
        ("chelsea", 8059, "a4d94988d657872e"),
        ("rocket", 4496, "dae27629b0c26c58"),
    ],
)
def test_edges_of_photographs_are_opencvs(name: str, count: int, digest: str) -> None:
    picture = np.ascontiguousarray(getattr(photos, name)()[:256, :256])
    edges = cv2_canny(picture, 100, 200)
    assert edges.sum() == count
    assert hashlib.sha256(np.packbits(edges).tobytes()).hexdigest().startswith(digest)
    floats = torch.from_numpy(picture).permute(2, 0, 1)[None] / 255
    assert torch.equal(canny(floats, "cv2")[0, 0], torch.from_numpy(edges).float())


def test_weak_edges_stay_where_they_touch_a_strong_one() -> None:
    """A step of n grey levels has strength 4 n: 60 is strong, 30 weak, 25 none."""
    picture = np.zeros((8, 8, 3), np.uint8)
    picture[:4, 4:], picture[4:, 4:] = 60, 30
    rows = ["00010000", "00010000", "00010000", "00001111", "00001000", "00010000", "00010000", "00010000"]
    assert ["".join(map(str, row)) for row in cv2_canny(picture, 100, 200).astype(int)] == rows
    picture[:4, 4:] = 30
    assert not cv2_canny(picture, 100, 200).any()
    picture[:, 4:] = 25
    assert not cv2_canny(picture, 50, 100).any()  # the upper threshold is exclusive


def test_our_hysteresis_is_kornias() -> None:
    from kornia.filters import canny as kornia_canny

    pictures = torch.from_numpy(np.stack([getattr(photos, name)()[:300, :256] for name in ("astronaut", "rocket")]))
    images = pictures.permute(0, 3, 1, 2) / 255
    edges = canny(images)
    assert torch.equal(edges, kornia_canny(images)[1]) and 0.02 < edges.mean() < 0.3


def test_kornias_edges_are_the_stored_ones_and_others_than_opencvs() -> None:
    folder = tiny.GOLDEN / "preprocess"
    stored = np.load(folder / "rocket_2_canny.npy")[0] > 0
    images = (to_tensor(resize_and_crop(Image.open(folder / "rocket_2.png").convert("RGB"), 64))[None] + 1) / 2
    assert np.array_equal(canny(images)[0, 0].bool().numpy(), stored)
    assert (canny(images, "cv2")[0, 0].bool().numpy() != stored).mean() > 0.02
