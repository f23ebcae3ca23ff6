"""What a tokenizer is trained on, and that a short training leaves a usable run folder."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from editar.config import TokenizerTrainConfig
from editar.errors import ConfigError
from editar.runtime.entry import load_config
from editar.runtime.files import load_weights
from editar.training.tokenizer.loop import image_loader, train_tokenizer
from editar.training.tokenizer.losses import (
    PatchDiscriminator,
    build_lpips,
    consistency_loss,
    edge_weights,
    hinge_discriminator_loss,
    reconstruction_loss,
)
from tests.helpers.tiny import TINY_TOKENIZER


def test_edges_weigh_more_and_the_mean_is_one() -> None:
    images = -torch.ones(1, 3, 16, 16)
    images[..., 8:] = 1
    weights = edge_weights(images, 4.0)
    assert weights.mean() == pytest.approx(1.0)
    assert weights[0, 0, 0, 8] / weights[0, 0, 0, 0] == pytest.approx(5.0)
    assert (edge_weights(images, 0.0) == 1).all()


def test_reconstruction_loss_is_l1_plus_l2() -> None:
    cfg = TokenizerTrainConfig(output_dir="x", l1_weight=2.0, l2_weight=3.0, edge_weight=0.0)
    images = torch.zeros(1, 3, 4, 4)
    assert reconstruction_loss(images + 0.5, images, cfg).item() == pytest.approx(2 * 0.5 + 3 * 0.25)


def test_consistency_pulls_both_sides_by_the_weight_of_their_patch() -> None:
    codes = torch.tensor([[[0, 1]], [[0, 2]]])  # one pair, two patches: the second one's codes differ
    latents = torch.randn(2, 1, 2, 4, requires_grad=True)
    chosen = torch.randn(2, 1, 2, 4)
    cfg = TokenizerTrainConfig(output_dir="x", consistency_weight=0.5, edit_consistency_weight=0.25)
    loss, same = consistency_loss(latents, chosen, codes, torch.tensor([[[True, False]]]), cfg)
    assert same == 1.0
    loss.backward()
    assert latents.grad is not None
    to_other = 2 * (latents - chosen.flip(0)).detach()
    torch.testing.assert_close(latents.grad[:, 0, 0], 0.5 * to_other[:, 0, 0])
    torch.testing.assert_close(latents.grad[:, 0, 1], 0.25 * to_other[:, 0, 1])
    cfg.edit_consistency_weight = 0.0
    assert consistency_loss(latents, chosen, codes, torch.tensor([[[True, True]]]), cfg)[1] == 0.5
    assert consistency_loss(latents, chosen, codes, torch.zeros(1, 1, 2, dtype=torch.bool), cfg) == (0.0, 1.0)


def test_discriminator_and_hinge() -> None:
    net = PatchDiscriminator(width=8)
    assert net(torch.randn(2, 3, 64, 64)).shape == (2, 1, 6, 6)
    assert hinge_discriminator_loss(torch.tensor([2.0]), torch.tensor([-2.0])) == 0
    assert hinge_discriminator_loss(torch.tensor([0.0]), torch.tensor([0.0])) == 1


def test_lpips_takes_a_local_backbone(tmp_path: Path) -> None:
    """A random VGG-16 in torchvision's file layout; identical pictures are at distance zero."""
    from torchvision.models import vgg16

    torch.save(vgg16().state_dict(), tmp_path / "vgg16.pth")
    lpips = build_lpips(str(tmp_path / "vgg16.pth"))
    images = torch.rand(1, 3, 64, 64) * 2 - 1
    assert lpips(images, images).item() == 0
    assert lpips(images, -images).item() > 0
    with pytest.raises(ConfigError, match="no such file; give torchvision's vgg16"):
        build_lpips(str(tmp_path / "absent.pth"))


def test_the_loader_does_not_depend_on_workers() -> None:
    def batches(workers: int) -> list[torch.Tensor]:
        cfg = TokenizerTrainConfig(output_dir="x", steps=3, batch_size=4, num_workers=workers)
        return [images for images, _ in image_loader(cfg)]

    for a, b in zip(batches(0), batches(2), strict=True):
        assert torch.equal(a, b)


def tiny(folder: Path, *more: str) -> TokenizerTrainConfig:
    base = [f"output_dir={folder}", "steps=2", "num_workers=0", "log_every=1", "batch_size=4", "restart_every=1"]
    return load_config(TokenizerTrainConfig, "train_tokenizer", [*base, *TINY_TOKENIZER, *more])


def test_run_folder(tiny_tokenizer: Path) -> None:
    names = {path.name for path in tiny_tokenizer.iterdir()}
    assert {"config.yaml", "model.safetensors", "metrics.jsonl", "result.json", "recon.png", "provenance.json"} <= names
    row = json.loads((tiny_tokenizer / "metrics.jsonl").read_text().splitlines()[-1])
    assert {"pixels", "commit", "psnr_db", "codes_used", "codes_kept"} <= row.keys()


def test_gan_and_warm_start(tmp_path: Path, tiny_tokenizer: Path) -> None:
    folder = train_tokenizer(
        tiny(tmp_path / "run", "gan_weight=0.1", "gan_start=0", f"tokenizer.weights={tiny_tokenizer}", "kmeans_at=-1",
             "optim.lr=0", "optim.muon_lr=0", "restart_every=0")
    )  # fmt: skip
    before, after = load_weights(tiny_tokenizer / "model.safetensors"), load_weights(folder / "model.safetensors")
    assert all(torch.equal(before[key], after[key]) for key in before if key != "quantize.codebook_used")


def test_frozen_codes_train_the_decoder_alone(tmp_path: Path, tiny_tokenizer: Path) -> None:
    start = f"tokenizer.weights={tiny_tokenizer}"
    with pytest.raises(ConfigError, match=r"freeze_codes needs tokenizer\.weights=RUN, kmeans_at=-1 and"):
        tiny(tmp_path, "freeze_codes=true", start, "kmeans_at=-1")
    fixed = ["freeze_codes=true", start, "kmeans_at=-1", "restart_every=0"]
    folder = train_tokenizer(tiny(tmp_path / "run", *fixed))
    before, after = load_weights(tiny_tokenizer / "model.safetensors"), load_weights(folder / "model.safetensors")
    moved = {key.split(".")[0] for key in before if not torch.equal(before[key], after[key])}
    assert moved - {"quantize"} == {"decoder", "post_quant_conv"}
    assert torch.equal(before["quantize.embedding.weight"], after["quantize.embedding.weight"])


def test_lpips_without_weights_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="lpips_weight > 0 needs lpips_weights=FILE"):
        tiny(tmp_path, "lpips_weight=1")
