"""The tokenizer and what keeps its codebook alive."""

from __future__ import annotations

import pytest
import torch

from editar.config import TokenizerConfig
from editar.models.vq import VQModel
from editar.training.tokenizer.codebook import kmeans_init, restart_dead_codes


def tiny(**changes: object) -> VQModel:
    cfg = TokenizerConfig(
        ch=8, norm_groups=4, encoder_ch_mult=[1, 2, 2], decoder_ch_mult=[2, 1, 2], num_res_blocks=1, z_channels=8,
        codebook_size=32,
    )  # fmt: skip
    for key, value in changes.items():
        setattr(cfg, key, value)
    return VQModel(cfg)


@pytest.mark.parametrize("size", [8, 20, 32])
def test_shapes_of_any_divisible_size(size: int) -> None:
    model = tiny()
    codes = model.encode(torch.randn(2, 3, size, size))
    assert codes.shape == (2, (size // 4) ** 2)
    assert codes.dtype == torch.int64
    assert model.decode(codes).shape == (2, 3, size, size)


@pytest.mark.parametrize("local", [True, False])
def test_a_local_encoder_sees_only_the_pixels_near_a_patch(local: bool) -> None:
    model = tiny(local_encoder=local)
    images = torch.randn(1, 3, 64, 64)
    changed = images.clone()
    changed[..., 48:, 48:] += 1
    with torch.no_grad():
        moved = (model.latents(changed) - model.latents(images)).abs().amax(1)[0] > 0  # (16, 16)
    assert moved[12:, 12:].all()
    assert moved[:8, :8].any() != local


@pytest.mark.parametrize("l2", [True, False])
def test_straight_through_gradient_reaches_the_encoder(l2: bool) -> None:
    model = tiny(codebook_l2_norm=l2)
    images = torch.randn(2, 3, 16, 16)
    recon, losses, codes = model(images)
    assert recon.shape == images.shape
    assert codes.shape == (2, 4, 4)
    recon.square().mean().backward()
    assert model.encoder.conv_in.weight.grad.abs().sum() > 0
    assert model.quantize.embedding.weight.grad is None  # only the codebook loss moves the codebook
    losses.codebook.backward()
    assert model.quantize.embedding.weight.grad.abs().sum() > 0


def test_quantised_vectors_are_the_codebook_rows() -> None:
    model = tiny()
    latents = model.latents(torch.randn(1, 3, 16, 16))
    quantised, losses, codes = model.quantize(latents)
    torch.testing.assert_close(quantised, model.quantize.lookup(codes), atol=1e-6, rtol=0)
    torch.testing.assert_close(losses.commit, 0.25 * losses.codebook)


def test_stored_rows_need_not_be_unit_length() -> None:
    model = tiny()
    images = torch.randn(1, 3, 16, 16)
    before = model.decode(model.encode(images))
    model.quantize.embedding.weight.data *= 3
    torch.testing.assert_close(model.decode(model.encode(images)), before)


def test_usage_history_counts_index_zero_from_the_start() -> None:
    quantizer = tiny().quantize
    assert quantizer._track_usage(torch.tensor([5, 6, 6])) == 3 / 32
    assert quantizer.codebook_used[-3:].tolist() == [5, 6, 6]


def test_kmeans_puts_codes_where_the_latents_are() -> None:
    quantizer = tiny(codebook_size=4).quantize
    centres = torch.nn.functional.normalize(torch.randn(4, 8), dim=-1)
    latents = centres.repeat(50, 1) + 0.01 * torch.randn(200, 8)
    kmeans_init(quantizer, latents, torch.Generator().manual_seed(0), rounds=20)
    similarity = (centres @ quantizer.normalise(quantizer.embedding.weight).T).max(1).values
    assert (similarity > 0.99).all()
    with pytest.raises(ValueError, match="needs at least 4 latents"):
        kmeans_init(quantizer, latents[:3], torch.Generator(), rounds=1)


def test_few_rounds_cover_rare_latents() -> None:
    """A thousand copies of flat background must not take the codes of a few rare patches."""
    quantizer = tiny(codebook_size=8).quantize
    rare = torch.nn.functional.normalize(torch.randn(7, 8), dim=-1)
    dense = torch.nn.functional.normalize(torch.ones(1, 8) + 0.01 * torch.randn(1000, 8), dim=-1)
    kmeans_init(quantizer, torch.cat([dense, rare]), torch.Generator().manual_seed(0), rounds=1)
    assert (rare @ quantizer.embedding.weight.T).max(1).values.min() > 0.99


def test_only_dead_codes_restart() -> None:
    quantizer = tiny().quantize
    before = quantizer.embedding.weight.detach().clone()
    counts = torch.ones(32, dtype=torch.long)
    counts[[3, 9]] = 0
    assert restart_dead_codes(quantizer, counts, torch.randn(10, 8), torch.Generator().manual_seed(0)) == 2
    moved = (quantizer.embedding.weight != before).any(1)
    assert moved.nonzero().flatten().tolist() == [3, 9]
