"""Train a VQ tokenizer from scratch: one process, stops by steps, leaves a run folder."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader

from editar.config import TokenizerTrainConfig
from editar.data.nano.world import NanoWorld
from editar.data.sample import EditSample
from editar.errors import TrainingError
from editar.images import batch_to_tensor, contact_sheet, save_image, to_uint8
from editar.models.vq import VQModel
from editar.runtime.device import pick_device, usable_workers
from editar.runtime.files import check_run_folder, load_state, save_weights, some, write_json, write_run_folder
from editar.runtime.lock import sole_run
from editar.runtime.log import MetricLogger, say
from editar.training.optim import lr_factor, make_optimizers, set_lr
from editar.training.tokenizer.codebook import kmeans_init, restart_dead_codes
from editar.training.tokenizer.losses import (
    PatchDiscriminator,
    build_lpips,
    consistency_loss,
    hinge_discriminator_loss,
    reconstruction_loss,
)
from editar.weights.read import read_checkpoint


def both_images(samples: list[EditSample]) -> tuple[torch.Tensor, torch.Tensor]:
    """Sources and targets of P samples, interleaved, (2P, 3, H, W) float32 in [-1, 1], and the pixels
    that the edit leaves alone, (P, H, W) bool."""
    images = np.stack([image for sample in samples for image in (sample.source, sample.target)])
    return batch_to_tensor(images), torch.from_numpy(np.stack([~sample.mask for sample in samples]))


def image_loader(cfg: TokenizerTrainConfig) -> DataLoader:
    """Fresh nano pictures for every step; sample i is the same whatever the number of workers."""
    pairs = max(1, cfg.batch_size // 2)
    world = NanoWorld("train", cfg.steps * pairs, cfg.data.seed)
    return DataLoader(world, batch_size=pairs, collate_fn=both_images, num_workers=usable_workers(cfg.num_workers))


def train_tokenizer(cfg: TokenizerTrainConfig) -> Path:
    """Train, save `model.safetensors` + `config.yaml` + pictures in cfg.output_dir; returns it. A folder whose training
    is finished stays as it is. Raises TrainingError when the loss or the weights are not finite."""
    folder = Path(cfg.output_dir)
    with sole_run(folder):
        check_run_folder(folder, cfg)
        if (folder / "model.safetensors").is_file():
            say(f"{folder} is finished: it holds model.safetensors of this config")
        else:
            _train(cfg, folder)
    return folder


def _train(cfg: TokenizerTrainConfig, folder: Path) -> None:
    torch.manual_seed(cfg.seed)
    generator = torch.Generator().manual_seed(cfg.seed)
    device = pick_device(cfg.device)
    model = VQModel(cfg.tokenizer)
    if cfg.tokenizer.weights is not None:
        _start_from(model, cfg)
    if cfg.freeze_codes:
        for part in (model.encoder, model.quant_conv, model.quantize):
            part.requires_grad_(False)
    model = model.to(device).to(memory_format=torch.channels_last).train()
    optimizers = make_optimizers(model, cfg.optim)
    adversary = Adversary(cfg, device) if cfg.gan_weight > 0 else None
    lpips = build_lpips(str(cfg.lpips_weights)).to(device) if cfg.lpips_weight > 0 else None
    write_run_folder(folder, cfg)
    say(f"tokenizer: {sum(p.numel() for p in model.parameters()) / 1e6:.2f} M parameters on {device}")
    logger = MetricLogger(folder, cfg.steps, unit="images")
    counts = torch.zeros(cfg.tokenizer.codebook_size, dtype=torch.long)

    loader = image_loader(cfg)
    for step, (batch, untouched) in enumerate(loader):
        images = batch.to(device, memory_format=torch.channels_last)
        set_lr(optimizers, lr_factor(step, cfg.steps, cfg.optim))
        if step == cfg.kmeans_at:
            kmeans_init(model.quantize, _collect_latents(model, cfg, device), generator, cfg.kmeans_rounds)
        latents = model.latents(images)
        quantised, losses, codes = model.quantize(latents)
        if step < cfg.kmeans_at:  # plain autoencoder: spreads the latents before they are quantised
            quantised = model.quantize.normalise(latents.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        recon = model.decode_latents(quantised)
        pixels = reconstruction_loss(recon, images, cfg)
        total, same = pixels, 0.0
        if step >= cfg.kmeans_at:
            total = total + losses.codebook + losses.commit + losses.entropy
            flat = model.quantize.normalise(latents.permute(0, 2, 3, 1))  # (2P, h, w, C)
            chosen = model.quantize.lookup(codes).permute(0, 2, 3, 1)
            patches = ~(F.max_pool2d((~untouched).float(), cfg.tokenizer.downsample).bool()).to(device)
            pull, same = consistency_loss(flat, chosen, codes, patches, cfg)
            total = total + pull
        if lpips is not None:
            total = total + cfg.lpips_weight * lpips(recon, images).mean()
        if adversary is not None and step >= cfg.gan_start:
            total = total - cfg.gan_weight * adversary.net(recon).mean()
        model.zero_grad(set_to_none=True)
        total.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), cfg.optim.clip)
        for optimizer in optimizers:
            optimizer.step()
        if adversary is not None and step >= cfg.gan_start:
            adversary.learn(images, recon.detach())

        counts += torch.bincount(codes.flatten().cpu(), minlength=len(counts))
        done = step + 1
        if done % cfg.log_every == 0 or done == cfg.steps:
            _check_finite({"loss": total}, done)
            psnr = -10 * torch.log10((recon.detach().clamp(-1, 1) - images).square().mean() / 4)
            values = {"pixels": float(pixels.detach()), "commit": float(losses.commit.detach()), "psnr_db": float(psnr)}
            values |= {"codes_used": float((counts > 0).sum()), "codes_kept": same}
            logger.log(done, values, cfg.batch_size)
        if cfg.restart_every and done % cfg.restart_every == 0:
            if cfg.kmeans_at <= step < 0.7 * cfg.steps:  # the last third lets the codebook settle
                flat = latents.detach().permute(0, 2, 3, 1).reshape(-1, cfg.tokenizer.codebook_dim)
                restart_dead_codes(model.quantize, counts.to(device), flat, generator)
            counts.zero_()

    _check_finite(model.state_dict(), cfg.steps)
    _finish(model.eval(), cfg, folder, device)


def _check_finite(values: dict[str, torch.Tensor], step: int) -> None:
    if unfit := [name for name, value in values.items() if not torch.isfinite(value).all()]:
        raise TrainingError(f"step {step}: {some(unfit)} not finite, nothing is saved; lower optim.lr, optim.muon_lr")


def _start_from(model: VQModel, cfg: TokenizerTrainConfig) -> None:
    """Weights of an earlier tokenizer; the codebook too, unless k-means is going to replace it."""
    state, _ = read_checkpoint(str(cfg.tokenizer.weights))
    state["quantize.codebook_used"] = model.quantize.codebook_used  # a statistic of one training; files may lack it
    if cfg.kmeans_at >= 0:
        state["quantize.embedding.weight"] = model.quantize.embedding.weight.detach()
    load_state(model, state, str(cfg.tokenizer.weights))


class Adversary:
    """The PatchGAN discriminator and its optimiser."""

    def __init__(self, cfg: TokenizerTrainConfig, device: torch.device) -> None:
        self.net = PatchDiscriminator().to(device)
        betas = (cfg.optim.beta1, cfg.optim.beta2)
        self.optimizer = torch.optim.AdamW(self.net.parameters(), lr=cfg.optim.lr, betas=betas)

    def learn(self, real: torch.Tensor, fake: torch.Tensor) -> None:
        loss = hinge_discriminator_loss(self.net(real), self.net(fake))
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()


@torch.no_grad()
def _collect_latents(model: VQModel, cfg: TokenizerTrainConfig, device: torch.device) -> torch.Tensor:
    """Latents of enough pictures for k-means, (M, C) with M >= 32 per code."""
    per_image = (cfg.image_size // cfg.tokenizer.downsample) ** 2
    pairs = max(8, -(-32 * cfg.tokenizer.codebook_size // (2 * per_image)))
    world = NanoWorld("train", pairs, cfg.data.seed)
    images = both_images([world[i] for i in range(pairs)])[0].to(device)
    return model.latents(images).permute(0, 2, 3, 1).reshape(-1, cfg.tokenizer.codebook_dim).cpu()


@torch.no_grad()
def _finish(model: VQModel, cfg: TokenizerTrainConfig, folder: Path, device: torch.device) -> None:
    """Measure on held-out pictures, save weights, result and a sheet of reconstructions."""
    world = NanoWorld("heldout", 64, cfg.data.seed)
    images = both_images([world[i] for i in range(64)])[0].to(device)
    codes = model.encode(images)
    recon = model.decode(codes).clamp(-1, 1)
    psnr = float(-10 * torch.log10((recon - images).square().mean((1, 2, 3)) / 4).mean())
    used = codes.unique().numel()
    write_json(folder / "result.json", {"heldout_psnr_db": psnr, "heldout_codes_used": used})
    before, after = to_uint8(images), to_uint8(recon)
    lines = [list(before[i : i + 16]) + list(after[i : i + 16]) for i in range(0, 64, 16)]
    save_image(contact_sheet(lines), folder / "recon.png")
    save_weights(model.state_dict(), folder / "model.safetensors")
    say(f"tokenizer saved in {folder}: held-out PSNR {psnr:.2f} dB, {used} codes used")
