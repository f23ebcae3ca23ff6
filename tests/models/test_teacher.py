"""Frozen teachers through files in the format of the hub, with the processors of the real ones."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPVisionConfig, CLIPVisionModel, Dinov2Config, Dinov2Model

from editar.config import TeacherConfig
from editar.data import codes
from editar.data.encode import pack_prepared
from editar.images import to_uint8
from editar.models.teacher import HogTeacher, Teacher, build_teacher, resized_as_read

CPU = torch.device("cpu")
# preprocessor_config.json as published with facebook/dinov2-base and openai/clip-vit-base-patch16
PROCESSORS = {
    "dinov2": {
        "image_processor_type": "BitImageProcessor",
        "size": {"shortest_edge": 256},
        "crop_size": {"height": 224, "width": 224},
        "image_mean": [0.485, 0.456, 0.406],
        "image_std": [0.229, 0.224, 0.225],
        "rescale_factor": 1 / 255,
    },
    "clip": {
        "image_processor_type": "CLIPImageProcessor",
        "size": {"shortest_edge": 224},
        "crop_size": {"height": 224, "width": 224},
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
    },
}
COMMON = {
    "do_resize": True, "do_center_crop": True, "do_rescale": True, "do_normalize": True, "do_convert_rgb": True,
    "resample": 3,
}  # fmt: skip


@pytest.fixture(scope="module", params=["dinov2", "clip"])
def saved(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Path, torch.nn.Module]:
    """Name, folder and raw model of a small random vision transformer."""
    torch.manual_seed(5)
    folder = tmp_path_factory.mktemp(request.param)
    shape = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    if request.param == "dinov2":
        model: torch.nn.Module = Dinov2Model(Dinov2Config(**shape, patch_size=14, image_size=518))
    else:
        model = CLIPVisionModel(CLIPVisionConfig(**shape, intermediate_size=32, patch_size=16, image_size=224))
    model.save_pretrained(folder)  # type: ignore[operator]
    (folder / "preprocessor_config.json").write_text(json.dumps(COMMON | PROCESSORS[request.param]))
    return request.param, folder, model.eval()


def pictures(size: int) -> np.ndarray:
    """Two smooth pictures, (2, size, size, 3) uint8."""
    coarse = torch.rand(2, 3, 8, 8) * 2 - 1
    return to_uint8(torch.nn.functional.interpolate(coarse, size, mode="bicubic").clamp(-1, 1))


def build(name: str, folder: Path) -> Teacher:
    teacher = build_teacher(TeacherConfig(name=name, weights=str(folder), dim=16, dtype="bfloat16"), CPU, grid=16)
    assert teacher is not None
    return teacher


def seen(teacher: Teacher, images: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.stack([pickle.loads(pickle.dumps(teacher.prepare))(image) for image in images]))


def by_hand(image: np.ndarray, name: str) -> np.ndarray:
    """The official route in Pillow and numpy: [-1, 1], [0, 1], bytes, resize, crop, whiten -> (224, 224, 3)."""
    spec: dict[str, Any] = PROCESSORS[name]
    signed = np.float32(image.astype(np.float64) / 255 * 2 - 1)
    darker = ((signed + np.float32(1)) / np.float32(2) * np.float32(255)).astype(np.uint8)
    short = spec["size"]["shortest_edge"]
    resized = Image.fromarray(darker).resize((short, short), Image.Resampling.BICUBIC)
    edge = (short - 224) // 2
    pixels = np.asarray(resized.crop((edge, edge, edge + 224, edge + 224))) / 255
    return (pixels - spec["image_mean"]) / spec["image_std"]


def test_features_are_the_raw_models_patches(saved: tuple[str, Path, torch.nn.Module]) -> None:
    name, folder, model = saved
    teacher, images = build(name, folder), pictures(512)
    features = teacher(seen(teacher, images))
    side = 16 if name == "dinov2" else 14
    assert features.shape == (2, side * side, 16) and features.dtype == torch.float32
    assert not features.requires_grad
    pixels = torch.from_numpy(np.stack([by_hand(image, name) for image in images])).float().permute(0, 3, 1, 2)
    with torch.no_grad():
        raw = model(pixel_values=pixels).last_hidden_state
    assert raw.shape[1] == side * side + 1  # the class token comes first and is dropped
    torch.testing.assert_close(features, raw[:, 1:], rtol=0, atol=1e-4)
    assert (features - raw[:, :-1]).abs().mean() > 10 * (features - raw[:, 1:]).abs().mean()


def test_the_official_round_trip_darkens_95_grey_levels() -> None:
    levels = np.arange(256, dtype=np.uint8)
    picture = np.repeat(levels, 768).reshape(256, 256, 3)
    seen = resized_as_read((256, None, 3), picture)[:, 0, 0]
    assert (levels - seen).sum() == 95 and set(levels - seen) == {0, 1}


def test_the_stored_picture_needs_no_second_resize(saved: tuple[str, Path, torch.nn.Module]) -> None:
    """CLIP resizes 512 to 224 directly; through a JPEG of 256 px it sees something else, DINOv2 only JPEG noise."""
    name, folder, _ = saved
    teacher, image = build(name, folder), pictures(512)[0]
    exact = teacher.prepare(image)
    assert exact.shape == (224, 224, 3)
    stored = codes.unpack_picture(pack_prepared(teacher.prepare, image))
    assert np.array_equal(stored, exact)
    twice = teacher.prepare(codes.unpack_picture(codes.pack_picture(image)))
    assert 0 < np.abs(exact.astype(int) - twice).mean() < 3


def test_dinov2_sees_a_crop_and_clip_sees_all(saved: tuple[str, Path, torch.nn.Module]) -> None:
    name, folder, _ = saved
    teacher, images = build(name, folder), pictures(512)
    other = images.copy()
    other[:, :24] = 255  # within the (256 - 224) / 2 / 256 * 512 = 32 rows that the crop drops
    assert torch.equal(seen(teacher, images), seen(teacher, other)) == (name == "dinov2")


def test_none_and_hog() -> None:
    assert build_teacher(TeacherConfig(name="none"), CPU, 4) is None
    teacher = build_teacher(TeacherConfig(name="hog", dim=11), CPU, 4)
    assert isinstance(teacher, HogTeacher)
    features = teacher(seen(teacher, pictures(64)))
    assert features.shape == (2, 16, HogTeacher.DIM) and features.dtype == torch.float32
    assert torch.isfinite(features).all()
