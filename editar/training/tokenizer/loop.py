"""Train a VQ tokenizer on one or several processes; it resumes exactly and leaves a run folder."""

from __future__ import annotations

import math
from contextlib import nullcontext
from pathlib import Path

import torch
import torch.nn.functional as F

from editar.config import TokenizerTrainConfig
from editar.data.pictures import PictureBatch
from editar.errors import ConfigError, TrainingError
from editar.images import contact_sheet, save_image, to_uint8
from editar.runtime.files import some, weights_step, write_json, write_run_folder
from editar.runtime.log import MetricLogger, say
from editar.runtime.stop import Stopped
from editar.training.checkpoint import training_state, whole_weights
from editar.training.loop import at_work, dropout_seed, due
from editar.training.optim import lr_factor, set_lr
from editar.training.parallel import average_gradients
from editar.training.tokenizer.build import FILE, TokenizerRun, build_tokenizer_run
from editar.training.tokenizer.codebook import kmeans_init, restart_dead_codes
from editar.training.tokenizer.losses import (
    adaptive_weight,
    consistency_loss,
    hinge_discriminator_loss,
    reconstruction_loss,
)
from editar.weights.run_checkpoint import latest_checkpoint, step_of

AT_ONCE = 16  # held-out pictures in the tokenizer


def train_tokenizer(cfg: TokenizerTrainConfig) -> Path:
    """Train, save `model.safetensors` + `config.yaml` + pictures in cfg.output_dir; returns it. A folder whose training
    is finished stays as it is. Raises TrainingError when the loss or the weights are not finite, Stopped when a signal
    asked it to leave early; everything is saved then."""
    folder = Path(cfg.output_dir)
    with at_work(folder, cfg) as (stop, ranks):
        if is_finished(folder, cfg):
            if ranks.is_main:
                say(f"{folder} is finished: it holds model.safetensors of this config")
            return folder
        run = build_tokenizer_run(cfg, ranks, folder)
        if ranks.is_main:
            write_run_folder(folder, cfg)
            say(first_line(run))
        logger = MetricLogger(folder, cfg.steps, run.start, unit="images", active=ranks.is_main)
        feed = run.feed()
        for step in range(run.start, cfg.steps):
            batch = next(feed)
            run.bad_pictures.check(batch)
            values = train_tokenizer_step(run, batch, step, bool(stop.asked))
            stopping, done = values.pop("stop") > 0, step + 1
            if due(done, cfg.log_every, cfg.steps) or stopping:
                logger.log(done, values, cfg.batch_size)
            if due(done, cfg.eval_every, cfg.steps) and not stopping:
                check_finite(run, done)
                with run.ema.swapped() if run.ema is not None else nullcontext():
                    logger.log(done, measure(run, done))
            if due(done, cfg.save_every, cfg.steps) or stopping:
                check_finite(run, done)
                state = training_state(run.trainee, run.begun(done), run.ema)
                run.checkpointer.save(done, state, whole_weights(run.trainee, run.ema, ranks, FILE))
                logger.pause()
            if stopping:
                raise Stopped(f"told to stop ({stop.asked or 'another process'}); saved step {done} in {folder}")
        logger.close()
    return folder


def is_finished(folder: Path, cfg: TokenizerTrainConfig) -> bool:
    """Whether the last step is done and its weights are here: else a start resumes, which writes them again. Raises
    ConfigError for weights without a config.yaml that says whose they are."""
    newest, weights = latest_checkpoint(folder), folder / FILE.name
    if newest is None and weights.is_file() and not (folder / "config.yaml").is_file():
        raise ConfigError(f"{weights} is of no training in this folder; choose another output_dir")
    if newest is None:
        return weights.is_file()  # older runs left no checkpoint
    return step_of(newest) >= cfg.steps and weights_step(weights) == step_of(newest)


def first_line(run: TokenizerRun) -> str:
    millions = sum(p.numel() for p in run.trainee.tokenizer.parameters()) / 1e6
    line = f"tokenizer: {millions:.2f} M parameters on {run.ranks.size} x {run.ranks.device}"
    if run.pictures is None:
        return line
    return f"{line}; {len(run.pictures.pictures)} pictures, {run.pictures.heldout} of them held out"


def train_tokenizer_step(run: TokenizerRun, batch: PictureBatch, step: int, stop: bool) -> dict[str, float]:
    """One step of the tokenizer, and of the discriminator once that has begun -> values averaged over processes.
    `stop`: whether this process was told to stop; above 0 in the result if any was."""
    cfg, ranks, model = run.cfg, run.ranks, run.trainee.tokenizer.train()
    torch.manual_seed(dropout_seed(cfg.seed, step, ranks.rank))
    images = batch.images.to(ranks.device, memory_format=torch.channels_last)
    set_lr(run.optimizers, lr_factor(step, cfg.steps, cfg.optim))
    if step == cfg.kmeans_at:
        kmeans_init(model.quantize, collect_latents(run), torch.Generator().manual_seed(cfg.seed), cfg.kmeans_rounds)
        ranks.share(model.quantize.embedding.weight.data)
    latents = model.latents(images)
    quantised, losses, codes = model.quantize(latents)
    if step < cfg.kmeans_at:  # plain autoencoder: spreads the latents before they are quantised
        quantised = model.quantize.normalise(latents.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    recon = model.decode_latents(quantised)
    pixels = reconstruction_loss(recon, images, cfg)
    values: dict[str, torch.Tensor | float] = {"pixels": pixels.detach(), "commit": losses.commit.detach()}
    if batch.untouched is not None:
        values["codes_kept"] = 0.0
    total = pixels
    if run.lpips is not None:
        distance = run.lpips(recon, images).mean()
        total = total + cfg.lpips_weight * distance
        values["lpips"] = distance.detach()
    if run.trainee.discriminator is not None and step >= cfg.gan_start:
        adversarial = -run.trainee.discriminator(recon).mean()
        times = adaptive_weight(total, adversarial, model.decoder.conv_out.weight) if cfg.gan_adaptive else 1.0
        total = total + cfg.gan_weight * times * adversarial
        values["adversarial"] = adversarial.detach()
    if step >= cfg.kmeans_at:
        total = total + losses.codebook + losses.commit + losses.entropy
        if batch.untouched is not None:
            pull, values["codes_kept"] = pair_loss(run, latents, codes, batch.untouched)
            total = total + pull
    model.zero_grad(set_to_none=True)
    total.backward()
    average_gradients(model, ranks)
    torch.nn.utils.clip_grad_norm_(model.parameters(), cfg.optim.clip)
    for optimizer in run.optimizers:
        optimizer.step()
    if run.ema is not None:
        run.ema.update()
    if step >= cfg.gan_start:
        values |= teach_discriminator(run, images, recon.detach())
    counts = run.trainee.counts
    counts += ranks.sum_(torch.bincount(codes.flatten(), minlength=len(counts)))
    used = float((counts > 0).sum())
    if cfg.restart_every and (step + 1) % cfg.restart_every == 0:
        restart(run, latents, step)
    error = (recon.detach().clamp(-1, 1) - images).square().mean()
    found = ranks.mean({**values, "loss": total.detach(), "error": error, "stop": float(stop)})
    unfit = [name for name, value in found.items() if not math.isfinite(value)]
    if unfit:
        raise TrainingError(not_finite(step + 1, unfit))
    found["psnr_db"] = -10 * math.log10(max(found.pop("error") / 4, 1e-12))
    return found | {"codes_used": used}


def pair_loss(
    run: TokenizerRun, latents: torch.Tensor, codes: torch.Tensor, untouched: torch.Tensor
) -> tuple[torch.Tensor, float]:
    quantize = run.trainee.tokenizer.quantize
    flat = quantize.normalise(latents.permute(0, 2, 3, 1))  # (2P, h, w, C)
    chosen = quantize.lookup(codes).permute(0, 2, 3, 1)
    patches = ~(F.max_pool2d((~untouched).float(), run.cfg.tokenizer.downsample).bool()).to(codes.device)
    return consistency_loss(flat, chosen, codes, patches, run.cfg)


def teach_discriminator(run: TokenizerRun, real: torch.Tensor, fake: torch.Tensor) -> dict[str, torch.Tensor]:
    net = run.trainee.discriminator
    if net is None or run.adversary is None:
        return {}
    loss = hinge_discriminator_loss(net(real), net(fake))
    net.zero_grad(set_to_none=True)  # the tokenizer's loss left some behind
    loss.backward()
    average_gradients(net, run.ranks)
    run.adversary.step()
    return {"discriminator": loss.detach()}


def restart(run: TokenizerRun, latents: torch.Tensor, step: int) -> None:
    """Codes without use since the last time get a new place, the same on all processes; counting begins anew."""
    cfg, trainee = run.cfg, run.trainee
    if cfg.kmeans_at <= step < 0.7 * cfg.steps:  # the last third lets the codebook settle
        flat = latents.detach().permute(0, 2, 3, 1).reshape(-1, cfg.tokenizer.codebook_dim)
        generator = torch.Generator().manual_seed(dropout_seed(cfg.seed, step, 0))
        restart_dead_codes(trainee.tokenizer.quantize, trainee.counts, flat, generator)
        run.ranks.share(trainee.tokenizer.quantize.embedding.weight.data)
    trainee.counts.zero_()


@torch.no_grad()
def collect_latents(run: TokenizerRun) -> torch.Tensor:
    """Latents of enough pictures for k-means, (M, C) with M >= 32 per code, on the CPU."""
    cfg = run.cfg
    per_image = (cfg.image_size // cfg.tokenizer.downsample) ** 2
    count = max(16, -(-32 * cfg.tokenizer.codebook_size // per_image))
    parts = [run.trainee.tokenizer.latents(images.to(run.ranks.device)) for images in run.many_pictures(count)]
    return torch.cat(parts).permute(0, 2, 3, 1).reshape(-1, cfg.tokenizer.codebook_dim).cpu()


def check_finite(run: TokenizerRun, step: int) -> None:
    state = run.trainee.tokenizer.state_dict()
    if unfit := [name for name, value in state.items() if not torch.isfinite(value).all()]:
        raise TrainingError(not_finite(step, unfit))


def not_finite(step: int, names: list[str]) -> str:
    return f"step {step}: {some(names)} not finite, nothing is saved; lower optim.lr, optim.muon_lr"


@torch.no_grad()
def measure(run: TokenizerRun, step: int) -> dict[str, float]:
    """PSNR and codes used on held-out pictures, written to result.json with a sheet of pictures above what the
    tokenizer makes of them; on the first process, {} on the others."""
    if not run.ranks.is_main:
        return {}
    model, images = run.trainee.tokenizer.eval(), run.heldout()
    codes = torch.cat([model.encode(part) for part in images.split(AT_ONCE)])
    recon = torch.cat([model.decode(part) for part in codes.split(AT_ONCE)]).clamp(-1, 1)
    psnr = float(-10 * torch.log10((recon - images).square().mean((1, 2, 3)) / 4).mean())
    if math.isnan(psnr):
        raise TrainingError(not_finite(step, ["heldout_psnr_db"]))
    found = {"heldout_psnr_db": psnr, "heldout_codes_used": codes.unique().numel()}
    before, after = to_uint8(images[:64]), to_uint8(recon[:64])
    lines = [[*before[i : i + 16], *after[i : i + 16]] for i in range(0, len(before), 16)]
    save_image(contact_sheet(lines), run.folder / "recon.png")
    write_json(run.folder / "result.json", found)
    return found
