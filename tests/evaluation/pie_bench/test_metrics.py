"""PIE-Bench's metrics: against torchmetrics and plain formulas, their quirks, and missing judges."""

from __future__ import annotations

import math
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from torchmetrics.functional.image import (
    multiscale_structural_similarity_index_measure,
    peak_signal_noise_ratio,
    structural_similarity_index_measure,
)
from torchvision.models import squeezenet1_1

from editar.config import NetworkSources
from editar.errors import CheckpointError, ConfigError
from editar.evaluation.pie_bench.metrics import COLUMNS, PieBatch, PieMetrics, background, paper_units, to_unit
from editar.metrics.dino_structure import StructureDistance
from editar.metrics.lpips_clip import ClipSimilarity, Lpips, clip_pixels
from editar.metrics.networks import unofficial
from editar.metrics.ssim import ms_ssim, mse, psnr, ssim
from editar.runtime.files import load_weights, save_weights
from tests.helpers.tiny_networks import write_clip

CPU = torch.device("cpu")


def smooth_pair(*shape: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A blurred noise picture and a noisy copy, in [0, 1]."""
    a = F.avg_pool2d(torch.rand(shape), 5, 1, 2)
    return a, (a + 0.05 * torch.randn(shape)).clamp(0, 1)


def batch(count: int = 3, side: int = 64) -> PieBatch:
    random = np.random.default_rng(0)
    pictures = random.integers(0, 256, (2, count, side, side, 3), dtype=np.uint8)
    masks = np.zeros((count, side, side), bool)
    masks[:, 8:24, 8:40] = True
    return PieBatch(pictures[0], pictures[1], masks, [f"a [red] ball {i}" for i in range(count)])


# --- pixels ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(2, 3, 64, 64), (1, 1, 40, 33), (2, 3, 37, 51)])
def test_pixels_equal_torchmetrics(shape: tuple[int, ...]) -> None:
    a, b = smooth_pair(*shape)
    expected = structural_similarity_index_measure(a, b, data_range=1.0, reduction="none")
    torch.testing.assert_close(ssim(a, b), expected.view(-1), atol=1e-5, rtol=0)
    expected = peak_signal_noise_ratio(a, b, data_range=1.0, dim=(1, 2, 3), reduction="none")
    torch.testing.assert_close(psnr(mse(a, b)), expected)


def test_multiscale_equals_torchmetrics() -> None:
    a, b = smooth_pair(2, 1, 176, 192)
    expected = multiscale_structural_similarity_index_measure(a, b, data_range=1.0, reduction="none")
    torch.testing.assert_close(ms_ssim(a, b), expected, atol=1e-5, rtol=0)
    with pytest.raises(ValueError, match="sides of 176 pixels"):
        ms_ssim(a[..., :160, :], b[..., :160, :])


def test_equal_pictures() -> None:
    a, _ = smooth_pair(2, 3, 48, 48)
    assert torch.equal(mse(a, a), torch.zeros(2))
    assert psnr(mse(a, a)).isinf().all()
    torch.testing.assert_close(ssim(a, a), torch.ones(2))


# --- background -----------------------------------------------------------------------------------


def test_background_reads_nothing_inside_the_mask() -> None:
    given = batch()
    inside = given.results.copy()
    inside[given.masks] = 7
    metrics = PieMetrics(CPU)
    assert metrics(given) == metrics(replace(given, results=inside))


def test_background_is_not_divided_by_its_area() -> None:
    """The quirk: zeros of the masked part count, so half the area halves the error."""
    sources, results = np.zeros((2, 1, 64, 64, 3), np.uint8)
    results[:] = 255
    keep = torch.zeros(1, 64, 64, dtype=torch.bool)
    keep[:, :32] = True
    values = background(to_unit(sources, CPU), to_unit(results, CPU), keep)
    assert values["mse"].item() == pytest.approx(0.5)
    assert values["psnr"].item() == pytest.approx(10 * math.log10(2), rel=1e-5)


def test_no_background_is_undefined() -> None:
    given = batch()
    given.masks[1] = True
    rows = PieMetrics(CPU)(given)
    assert all(math.isnan(value) for value in rows[1].values())
    assert not any(math.isnan(value) for row in (rows[0], rows[2]) for value in row.values())


def test_batches_do_not_matter() -> None:
    given, metrics = batch(), PieMetrics(CPU)
    for i, row in enumerate(metrics(given)):
        part = slice(i, i + 1)
        alone = PieBatch(given.sources[part], given.results[part], given.masks[part], given.captions[part])
        assert metrics(alone)[0] == pytest.approx(row, rel=1e-6)


def test_units() -> None:
    assert paper_units({"structure": 0.03943, "mse": 0.013027, "ssim": 0.7513, "psnr": 21.32, "lpips": 0.11715}) == (
        pytest.approx({"structure": 39.43, "mse": 130.27, "ssim": 75.13, "psnr": 21.32, "lpips": 117.15})
    )
    assert [column.name for column in COLUMNS if column.better == "lower"] == ["structure", "lpips", "mse"]


# --- networks -------------------------------------------------------------------------------------


def small_vit() -> torch.nn.Module:
    return timm.create_model(
        "vit_base_patch8_224.dino", pretrained=False, num_classes=0, patch_size=56, embed_dim=24, depth=3, num_heads=3
    )


def official_similarity(network: torch.nn.Module, pixels: torch.Tensor) -> torch.Tensor:
    """Keys of the last block by a hook and head by head, as the official evaluator takes them."""
    caught: list[torch.Tensor] = []
    hook = network.blocks[-1].attn.qkv.register_forward_hook(lambda *call: caught.append(call[2]))
    network(pixels)
    hook.remove()
    tokens, heads = caught[0].shape[1], network.blocks[-1].attn.num_heads
    keys = caught[0].reshape(tokens, 3, heads, -1).permute(1, 2, 0, 3)[1]
    flat = keys.transpose(0, 1).reshape(tokens, -1)
    return F.cosine_similarity(flat[:, None], flat[None], dim=-1)


@torch.no_grad()
def test_structure_distance_by_the_official_way() -> None:
    network = small_vit()
    distance = StructureDistance(network, CPU)
    a, b = torch.randint(0, 256, (2, 2, 3, 300, 300)).float()
    values = distance(a, b)
    for i in range(2):
        maps = [official_similarity(network, distance.preprocess(x[i : i + 1])) for x in (a, b)]
        torch.testing.assert_close(values[i], F.mse_loss(*maps), rtol=1e-4, atol=1e-9)
    assert values.min() > 0
    torch.testing.assert_close(distance(a, a), torch.zeros(2))


def test_structure_reads_grey_levels_not_shares() -> None:
    distance = StructureDistance(small_vit(), CPU)
    image = torch.full((1, 3, 224, 224), 255.0)
    expected = torch.tensor([(255 - 0.485) / 0.229, (255 - 0.456) / 0.224, (255 - 0.406) / 0.225])
    torch.testing.assert_close(distance.preprocess(image).mean((0, 2, 3)), expected)


def test_structure_without_antialias_is_plain_interpolation() -> None:
    image = torch.randint(0, 256, (1, 3, 512, 512)).float()
    scale = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    for antialias in (True, False):
        prepared = StructureDistance(small_vit(), CPU, antialias=antialias).preprocess(image)
        small = F.interpolate(image, (224, 224), mode="bilinear", antialias=antialias)
        shifted = prepared * scale + torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
        torch.testing.assert_close(shifted, small, atol=1e-3, rtol=1e-5)


def test_the_evaluator_chooses_the_resize(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("editar.metrics.dino_structure.dino_vitb8", small_vit)  # a smaller file
    torch.save(small_vit().state_dict(), tmp_path / "vit.pth")
    sources = NetworkSources(structure=str(tmp_path / "vit.pth"), lpips=None, clip=None)
    for evaluator, antialias in (("current", True), ("2023", False)):
        metrics, _ = PieMetrics.load(sources, CPU, evaluator)
        assert metrics.structure is not None and metrics.structure.antialias is antialias


def test_structure_refuses_other_networks(tmp_path: Path) -> None:
    torch.save(small_vit().state_dict(), tmp_path / "vit.pth")
    with pytest.raises(CheckpointError, match="does not fit"):
        StructureDistance.load(str(tmp_path / "vit.pth"), CPU)


def test_lpips_from_torchvision_file(tmp_path: Path) -> None:
    torch.save(squeezenet1_1(weights=None).state_dict(), tmp_path / "squeeze.pth")
    lpips = Lpips.load(str(tmp_path / "squeeze.pth"), CPU)
    a, b = smooth_pair(3, 3, 64, 64)
    values = lpips(a, b)
    assert values.shape == (3,)
    assert values.min() > 0
    torch.testing.assert_close(lpips(a[1:2], b[1:2]), values[1:2])
    torch.testing.assert_close(lpips(a, a), torch.zeros(3))
    with pytest.raises(CheckpointError, match="squeezenet1_1"):
        Lpips({"features.0.weight": torch.zeros(1)}, CPU)


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clip(tmp_path_factory.mktemp("clip"))


def test_clip_is_a_hundred_cosines(clip_folder: Path) -> None:
    clip, given = ClipSimilarity.load(str(clip_folder), CPU), batch(4)
    captions = ["a red ball", "ball", "b" * 60, "a very blue one"]
    values = clip(given.results, captions)
    pixels = clip_pixels(given.results, 32)
    for i, caption in enumerate(captions):
        tokens = clip.tokenizer([caption], truncation=True, max_length=24, return_tensors="pt")
        with torch.no_grad():
            output = clip.model(
                input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"], pixel_values=pixels[i : i + 1]
            )
        cosine = output.logits_per_image.item() / clip.model.logit_scale.exp().item()
        assert values[i].item() == pytest.approx(max(0.0, 100 * cosine), abs=1e-3)
    torch.testing.assert_close(clip.between(given.results, given.results), torch.full((4,), 100.0))
    assert (clip.between(given.results, 255 - given.results) < 99.9).all()


def test_a_clip_without_some_weights_is_refused(clip_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(clip_folder, tmp_path, dirs_exist_ok=True)
    state = load_weights(clip_folder / "model.safetensors")
    del state["visual_projection.weight"]
    save_weights(state, tmp_path / "model.safetensors")
    with pytest.raises(ConfigError, match=r"lacks 1 of the clip's weights, first visual_projection.weight"):
        ClipSimilarity.load(str(tmp_path), CPU)


def test_clip_columns_see_black_and_no_brackets(clip_folder: Path) -> None:
    given, clip = batch(), ClipSimilarity.load(str(clip_folder), CPU)
    rows = PieMetrics(CPU, clip=clip)(given)
    black = given.results.copy()
    black[~given.masks] = 0
    plain = [caption.replace("[", "").replace("]", "") for caption in given.captions]
    assert [row["clip_edited"] for row in rows] == clip(black, plain).tolist()
    assert [row["clip_whole"] for row in rows] == clip(given.results, plain).tolist()


def test_clip_pixels_follow_the_old_processor() -> None:
    pixels = clip_pixels(np.full((1, 512, 512, 3), 128, np.uint8))
    assert pixels.shape == (1, 3, 224, 224)
    assert pixels[0, 0, 5, 5].item() == pytest.approx((128 / 255 - 0.48145466) / 0.26862954)


# --- judges that are not here ---------------------------------------------------------------------


def test_missing_judges_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    metrics, missing = PieMetrics.load(NetworkSources(), CPU)
    assert [column.name for column in metrics.columns()] == ["psnr", "mse", "ssim"]
    assert list(metrics(batch())[0]) == ["psnr", "mse", "ssim"]
    assert [str(item).split(":")[0] for item in missing] == [
        "without structure", "without lpips", "without clip_whole, clip_edited",
    ]  # fmt: skip
    assert "scripts/fetch_weights.py dino_vitb8" in str(missing[0])
    _, missing = PieMetrics.load(NetworkSources(structure=None, lpips=None, clip=None), CPU)
    assert str(missing[0]) == "without structure: networks.structure is null"


def test_a_wrong_judge_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "clip").mkdir()
    with pytest.raises(ConfigError, match="cannot load"):
        PieMetrics.load(NetworkSources(structure=None, lpips=None, clip=str(tmp_path / "clip")), CPU)
    (tmp_path / "page.pth").write_text("<!doctype html>")
    with pytest.raises(CheckpointError, match="web page"):
        PieMetrics.load(NetworkSources(structure=str(tmp_path / "page.pth"), lpips=None, clip=None), CPU)


def test_other_weights_than_the_published_ones_are_a_reason() -> None:
    official = {"lpips": {"source": "a.pth", "sha256": "b8a52dc0" + "0" * 56}, "clip": {"source": "b", "sha256": "1"}}
    assert unofficial(official) == []  # of clip no checksum is known
    assert unofficial({"lpips": {"source": "a.pth", "sha256": "0" * 64}}) == [
        "networks.lpips is not squeezenet1_1-b8a52dc0.pth"
    ]
