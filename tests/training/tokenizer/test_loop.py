"""What a tokenizer is trained on, and that a short training leaves a usable run folder."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from editar.config import TokenizerTrainConfig
from editar.errors import ConfigError
from editar.runtime.distributed import Ranks
from editar.runtime.entry import load_config
from editar.runtime.files import load_weights
from editar.training.tokenizer.build import build_tokenizer_run
from editar.training.tokenizer.loop import train_tokenizer
from editar.training.tokenizer.losses import (
    PatchDiscriminator,
    adaptive_weight,
    build_lpips,
    consistency_loss,
    edge_weights,
    hinge_discriminator_loss,
    reconstruction_loss,
)
from tests.helpers import miniature
from tests.helpers.tiny import TINY_TOKENIZER, run_module

ALONE = Ranks(0, 1, torch.device("cpu"))


def write_pictures(folder: Path, count: int = 12, broken: int | None = None) -> Path:
    """JPEGs of several sizes; the file of number `broken` is cut in the middle."""
    folder.mkdir()
    generator = np.random.default_rng(0)
    for i in range(count):
        pixels = generator.integers(0, 256, (6, 6 + i % 3, 3), np.uint8).repeat(14, 0).repeat(14, 1)
        (folder / f"{i:02d}.jpg").write_bytes(miniature.encode(pixels, "JPEG", half=i == broken))
    return folder


def own_pictures(*more: str) -> list[str]:
    """Overrides of a training on pictures: LlamaGen's recipe, small."""
    small = ["image_size=64", "batch_size=4", "lpips_weight=0", "gan_start=1", "data.heldout_samples=4"]
    return ["recipe=llamagen", *small, "restart_every=0", *more]


def state(folder: Path) -> dict[str, torch.Tensor]:
    return load_weights(folder / "model.safetensors")


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


@pytest.mark.parametrize("own", [False, True])
def test_the_feed_does_not_depend_on_workers(own: bool, tmp_path: Path) -> None:
    path = own_pictures(f"data.path={write_pictures(tmp_path / 'pictures')}") if own else []

    def batches(workers: int) -> list[torch.Tensor]:
        cfg = tiny(tmp_path / "run", *path, "steps=3", f"num_workers={workers}")
        return [batch.images for batch in build_tokenizer_run(cfg, ALONE, tmp_path / "run").feed()]

    for a, b in zip(batches(0), batches(2), strict=True):
        assert a.shape == (4, 3, 64, 64) and torch.equal(a, b)


def overrides(folder: Path, *more: str) -> list[str]:
    base = [f"output_dir={folder}", "steps=2", "num_workers=0", "log_every=1", "batch_size=4", "restart_every=1"]
    return [*base, *TINY_TOKENIZER, *more]


def tiny(folder: Path, *more: str) -> TokenizerTrainConfig:
    return load_config(TokenizerTrainConfig, "train_tokenizer", overrides(folder, *more))


def test_run_folder(tiny_tokenizer: Path) -> None:
    names = {path.name for path in tiny_tokenizer.iterdir()}
    assert {"config.yaml", "model.safetensors", "metrics.jsonl", "result.json", "recon.png", "provenance.json"} <= names
    rows = [json.loads(line) for line in (tiny_tokenizer / "metrics.jsonl").read_text().splitlines()]
    assert {"pixels", "commit", "psnr_db", "codes_used", "codes_kept"} <= rows[-2].keys()
    assert rows[-1].keys() == {"step", "heldout_psnr_db", "heldout_codes_used"}


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


def test_the_adversarial_loss_is_scaled_to_the_pixels() -> None:
    weight = torch.ones(3, requires_grad=True)
    assert adaptive_weight(4 * weight.sum(), 2 * weight.sum(), weight).item() == pytest.approx(2.0, rel=1e-3)
    assert adaptive_weight(weight.sum(), 0 * weight.sum(), weight) == 1e4


@pytest.mark.parametrize("own", [False, True])
def test_a_resumed_tokenizer_equals_an_uninterrupted_one(own: bool, tmp_path: Path) -> None:
    """With a discriminator that begins after the checkpoint, k-means before it and dropout."""
    common = ["steps=6", "save_every=3", "gan_weight=0.1", "gan_start=4", "tokenizer.dropout=0.1"]
    if own:
        path = f"data.path={write_pictures(tmp_path / 'pictures')}"
        common = [*own_pictures(path), *common, "gan_adaptive=true", "optim.ema_decay=0.5"]
    else:
        common += ["kmeans_at=1", "restart_every=2"]
    whole = train_tokenizer(tiny(tmp_path / "whole", *common))
    broken = train_tokenizer(tiny(tmp_path / "broken", *common))
    (broken / "checkpoints/step_0000006").rename(tmp_path / "lost")
    (broken / "model.safetensors").unlink()
    train_tokenizer(tiny(broken, *common))
    a, b = state(whole), state(broken)
    assert all(torch.equal(a[key], b[key]) for key in a)
    steps = [json.loads(line)["step"] for line in (broken / "metrics.jsonl").read_text().splitlines()]
    assert steps == [1, 2, 3, 4, 5, 6, 6]


def test_a_tokenizer_stopped_before_its_k_means_resumes_exactly(tmp_path: Path) -> None:
    common = ["steps=5", "save_every=2", "kmeans_at=3", "restart_every=0", "keep_checkpoints=9"]
    whole = train_tokenizer(tiny(tmp_path / "whole", *common))
    broken = train_tokenizer(tiny(tmp_path / "broken", *common))
    for step in (4, 5):
        shutil.rmtree(broken / f"checkpoints/step_{step:07d}", ignore_errors=True)
    train_tokenizer(tiny(broken, *common))
    a, b = state(whole), state(broken)
    assert all(torch.equal(a[key], b[key]) for key in a)


def test_a_finished_tokenizer_goes_on_when_steps_are_raised(tmp_path: Path) -> None:
    path = f"data.path={write_pictures(tmp_path / 'pictures')}"
    common = [*own_pictures(path), "optim.schedule=constant", "restart_every=0"]
    whole = train_tokenizer(tiny(tmp_path / "whole", *common, "steps=4"))
    for steps in (2, 4):
        stretched = train_tokenizer(tiny(tmp_path / "stretched", *common, f"steps={steps}"))
    a, b = state(whole), state(stretched)
    assert all(torch.equal(a[key], b[key]) for key in a)


def test_the_average_of_the_weights_is_saved(tmp_path: Path, tiny_tokenizer: Path) -> None:
    path = f"data.path={write_pictures(tmp_path / 'pictures')}"
    common = [*own_pictures(path), "optim.schedule=constant", f"tokenizer.weights={tiny_tokenizer}"]
    one, two = (state(train_tokenizer(tiny(tmp_path / str(steps), *common, f"steps={steps}"))) for steps in (1, 2))
    average = state(train_tokenizer(tiny(tmp_path / "average", *common, "steps=2", "optim.ema_decay=0.75")))
    start, name = state(tiny_tokenizer), "decoder.conv_out.weight"
    assert not torch.equal(one[name], start[name])
    expected = 0.75 * (0.75 * start[name] + 0.25 * one[name]) + 0.25 * two[name]
    torch.testing.assert_close(average[name], expected, rtol=0, atol=1e-6)


@pytest.mark.multiprocess
def test_two_processes_train_the_same_tokenizer(tmp_path: Path) -> None:
    """Without a discriminator, whose batch norms see their own process's pictures."""
    path = f"data.path={write_pictures(tmp_path / 'pictures')}"
    cfg = [*own_pictures(path), "gan_weight=0", "optim.eps=1e-3", "kmeans_at=1"]
    alone = train_tokenizer(tiny(tmp_path / "alone", *cfg))
    done = run_module("editar.train_tokenizer", *overrides(tmp_path / "two", *cfg), processes=2)
    assert done.returncode == 0, done.stderr[-2000:]
    a, b = state(alone), state(tmp_path / "two")
    for key in a:
        if key != "quantize.codebook_used":
            torch.testing.assert_close(b[key], a[key], rtol=1e-3, atol=1e-4)
    with pytest.raises(ConfigError, match="makes 5 pictures a step, not divisible by 2 processes"):
        build_tokenizer_run(tiny(tmp_path / "odd", *cfg, "batch_size=5"), Ranks(0, 2, ALONE.device), tmp_path / "odd")


def test_a_damaged_picture_is_named_and_replaced(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_pictures(tmp_path / "pictures", broken=3)
    train_tokenizer(tiny(tmp_path / "run", *own_pictures(f"data.path={folder}", "gan_weight=0"), "steps=3"))
    said = capsys.readouterr().err
    assert said.count("warning: row 03.jpg is replaced by the next one") == 1
    assert "12 pictures, 4 of them held out" in said


def test_pair_losses_want_pairs(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"are about the nano world's pairs; with data\.path"):
        tiny(tmp_path, f"data.path={tmp_path}")
