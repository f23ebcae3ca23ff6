#!/usr/bin/env python
"""Fine-tune InstructPix2Pix on our editing data: the comparison in supplement A of the paper (edited CLIP 19.97).

    torchrun --nproc-per-node=8 scripts/train_instruct_pix2pix.py experiment=editar_xl ~data.sources.multigen_depth \\
        ~data.sources.multigen_canny ~data.sources.cocostuff output_dir=runs/ip2p
    python -m editar.eval baseline=instruct_pix2pix baseline.base_model=runs/ip2p/pipeline benchmark=pie_bench \\
        root=data/pie_bench output_dir=outputs/ip2p_ours

Settings are those of editar.train, of which data, image_size, steps, batch sizes, num_workers, precision, drop,
log_every, save_every, wandb and AdamW's under optim count; codes caches are not read. The paper does not state its
recipe, so this is InstructPix2Pix's own: the UNet alone learns to predict the noise of the target's latents, beside the
source's, and each of text, picture and both is dropped in 5 % of the samples. Draws are those of editar.train. The same
command goes on from the last save.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from editar.config import BaselineConfig, TrainConfig
from editar.data import stream
from editar.data.loader import BadRows, Batch, DrawBatchSampler, Reader, TrainStream, batches
from editar.data.sources import mixture_of, open_sources
from editar.generation.diffusers_baselines import load_pipeline
from editar.images import batch_to_tensor
from editar.runtime.distributed import Ranks, distributed
from editar.runtime.entry import load_config, script
from editar.runtime.files import check_run_folder, write_run_folder
from editar.runtime.log import MetricLogger
from editar.training.loop import dropout_seed, due
from editar.training.losses import condition_drops
from editar.training.parallel import micro_batch, sync_gradients

BASE = "timbrooks/instruct-pix2pix"


@script("train_instruct_pix2pix")
def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="+", metavar="KEY=VALUE")
    parser.add_argument("--base", default=BASE, help=f"hub id or folder to start from ({BASE})")
    options = parser.parse_args(arguments)
    cfg = load_config(TrainConfig, "train", options.overrides)
    with distributed(cfg.device, cfg.timeout_s) as ranks:
        fine_tune(cfg, options.base, ranks)


def fine_tune(cfg: TrainConfig, base: str, ranks: Ranks) -> None:
    """Leaves OUTPUT_DIR/pipeline, a diffusers folder with the optimiser's state in it, and metrics.jsonl."""
    from diffusers import DDPMScheduler

    folder, saved = Path(cfg.output_dir), Path(cfg.output_dir) / "pipeline"
    start = saved if saved.is_dir() else base
    origin = BaselineConfig(method="InstructPix2Pix", pipeline="instruct_pix2pix", base_model=str(start))
    pipe = load_pipeline(origin, "", torch.float32).to(ranks.device)
    for module in (pipe.vae, pipe.text_encoder):
        module.eval().requires_grad_(False)
    noise = DDPMScheduler.from_config(pipe.scheduler.config)
    unet = pipe.unet.train().requires_grad_(True)
    wrapped = torch.nn.parallel.DistributedDataParallel(unet) if ranks.size > 1 else unet
    o = cfg.optim
    optimizer = torch.optim.AdamW(unet.parameters(), o.lr, (o.beta1, o.beta2), o.eps, o.weight_decay)
    first = 0
    if saved.is_dir():
        state = torch.load(saved / "state.pt", map_location="cpu", weights_only=True)
        optimizer.load_state_dict(state["optimizer"])
        first = state["step"]
    if ranks.is_main:
        check_run_folder(folder, cfg)
        write_run_folder(folder, cfg)
    sources, bad_rows = open_sources(cfg.data), BadRows(cfg.data.max_bad_share)
    readers = [Reader(source, None, cfg.image_size) for source in sources.values()]
    at_once = micro_batch(cfg, ranks.size)
    parts = cfg.global_batch // ranks.size // at_once
    draws = DrawBatchSampler(first, cfg.steps, ranks.rank, ranks.size, cfg.global_batch, at_once)
    rows = TrainStream(readers, mixture_of(sources, cfg.seed), cfg.seed)
    feed = batches(rows, draws, cfg.num_workers, ranks.device)
    logger = MetricLogger(folder, cfg.steps, first, wandb=cfg.wandb, active=ranks.is_main)
    for step in range(first, cfg.steps):
        torch.manual_seed(dropout_seed(cfg.seed, step, ranks.rank))
        optimizer.zero_grad(set_to_none=True)
        total = torch.zeros((), device=ranks.device)
        for part in range(parts):
            batch = next(feed)
            bad_rows.check(batch)
            sync_gradients(wrapped, last=part == parts - 1)
            with torch.autocast(ranks.device.type, torch.bfloat16, enabled=cfg.precision == "bf16"):
                loss = noise_loss(pipe, wrapped, noise, batch.to(ranks.device), cfg) / parts
            loss.backward()
            total += loss.detach()
        norm = torch.nn.utils.clip_grad_norm_(unet.parameters(), o.clip, error_if_nonfinite=True)
        optimizer.step()
        done = step + 1
        values = ranks.mean({"noise": total, "grad_norm": norm})
        if due(done, cfg.log_every, cfg.steps):
            logger.log(done, values, cfg.global_batch)
        if due(done, cfg.save_every, cfg.steps) and ranks.is_main:
            save(pipe, optimizer, done, saved)
    logger.close()


def noise_loss(pipe: Any, unet: Any, noise: Any, batch: Batch, cfg: TrainConfig) -> torch.Tensor:
    """Mean squared error of the predicted noise. A dropped text is the empty one, a dropped picture is zero latents."""
    chance = torch.from_numpy(stream.uniform(batch.draws, cfg.seed, stream=0))
    drop_image, drop_text = condition_drops(chance, cfg.drop)
    texts = ["" if drop else text for text, drop in zip(batch.instructions, drop_text.tolist(), strict=True)]
    length = pipe.tokenizer.model_max_length
    with torch.no_grad():
        tokens = pipe.tokenizer(texts, padding="max_length", truncation=True, max_length=length, return_tensors="pt")
        text = pipe.text_encoder(tokens.input_ids.to(pipe.device))[0]  # (B, 77, C)
        latents = pipe.vae.encode(batch_to_tensor(batch.target)).latent_dist.sample() * pipe.vae.config.scaling_factor
        source = pipe.vae.encode(
            batch_to_tensor(batch.source[:, 0])
        ).latent_dist.mode()  # not scaled, as when it is sampled
        source[drop_image.to(source.device)] = 0
    true = torch.randn_like(latents)
    times = torch.randint(noise.config.num_train_timesteps, (len(batch),), device=latents.device)
    found = unet(torch.cat([noise.add_noise(latents, true, times), source], 1), times, text).sample
    return F.mse_loss(found.float(), true.float())


def save(pipe: Any, optimizer: torch.optim.Optimizer, step: int, folder: Path) -> None:
    """Put in place as a whole; the folder before it goes."""
    partial = folder.with_name(f".{folder.name}.part")
    pipe.save_pretrained(partial)
    torch.save({"step": step, "optimizer": optimizer.state_dict()}, partial / "state.pt")
    shutil.rmtree(folder, ignore_errors=True)
    partial.replace(folder)


if __name__ == "__main__":
    main()
