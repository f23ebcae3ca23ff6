"""Training the GPT, as a story: build, resume, then per step fetch, forward, backward, log, save."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from editar.config import ConfigError, TrainConfig
from editar.data import stream
from editar.data.codes import CodesTable, load_or_build
from editar.data.nano_world import TASKS, NanoWorld
from editar.encoders.teacher import build_teacher
from editar.encoders.text import TextEncoder, TextTokens
from editar.encoders.vq import VQModel
from editar.model.gpt import GPT
from editar.model.weights import load_gpt, load_vq
from editar.runtime.distributed import World, distributed
from editar.runtime.files import save_weights, start_run_folder
from editar.runtime.log import MetricLogger, say
from editar.sampling.pipeline import EditPipeline
from editar.training.checkpoint import latest_checkpoint, load_checkpoint, save_checkpoint
from editar.training.losses import condition_drops, losses, token_loss
from editar.training.optim import lr_factor, make_optimizers, set_lr
from editar.training.preview import write_preview


@dataclass
class Run:
    """Everything a step needs."""

    cfg: TrainConfig
    world: World
    gpt: GPT
    engine: nn.Module  # the GPT, wrapped for gradient averaging when there are several processes
    text: TextEncoder
    tokenizer: VQModel
    optimizers: list[torch.optim.Optimizer]
    train_rows: CodesTable
    heldout_rows: CodesTable


def train(cfg: TrainConfig) -> Path:
    """Train as configured; returns the run folder."""
    with distributed(cfg.device) as world:
        folder = Path(cfg.output_dir)
        if world.is_main:
            start_run_folder(folder, cfg)
        world.barrier()
        run = build(cfg, world, folder)
        start = resume(run, folder)
        logger = MetricLogger(folder, cfg.steps, start, wandb=cfg.wandb, active=world.is_main)
        for step in range(start, cfg.steps):
            set_lr(run.optimizers, lr_factor(step, cfg.steps, cfg.optim))
            values = train_step(run, step)
            done = step + 1
            if done % cfg.log_every == 0 or done == cfg.steps:
                logger.log(done, world.mean(values), cfg.global_batch)
            if done % cfg.eval_every == 0 or done == cfg.steps:
                logger.log(done, evaluate(run))
                if world.is_main:
                    logger.log_image(done, "samples", preview(run, folder, done))
                logger.pause()
            if done % cfg.save_every == 0 or done == cfg.steps:
                rng = world.gather(torch.get_rng_state())
                if world.is_main:
                    save_checkpoint(folder, done, run.gpt, run.optimizers, rng, cfg.keep_checkpoints)
                world.barrier()
                logger.pause()
        logger.close()
    return folder


def build(cfg: TrainConfig, world: World, folder: Path) -> Run:
    """Frozen encoders, codes, model and optimisers."""
    if cfg.global_batch % (world.size * cfg.micro_batch):
        raise ConfigError(
            f"global_batch={cfg.global_batch} is not divisible by "
            f"{world.size} processes x micro_batch={cfg.micro_batch}"
        )
    device = world.device
    tokenizer = VQModel(cfg.tokenizer).to(device).eval().requires_grad_(False)
    if cfg.tokenizer.weights is None:
        raise ConfigError("tokenizer.weights is null; give the run folder of a trained tokenizer")
    load_vq(tokenizer, cfg.tokenizer.weights)
    text = TextEncoder(cfg.text, device)
    teacher = build_teacher(cfg.teacher, device, cfg.gpt.teacher_grid or cfg.gpt.grid // 2)
    if world.is_main:  # one process makes the codes, the others read them
        save_weights(tokenizer.state_dict(), folder / "tokenizer.safetensors")
    tables = {}
    for first in (True, False):
        if world.is_main == first:
            for split, size in (("train", cfg.data.train_samples), ("heldout", cfg.data.heldout_samples)):
                tables[split] = load_or_build(
                    folder / f"codes_{split}", NanoWorld(split, size, cfg.data.seed), tokenizer, text, teacher,
                    cfg.teacher.name, cfg.num_workers, device,
                )  # fmt: skip
        world.barrier()
    # Seeded here, so that ranks agree (also on the null tables, which DDP does not send) and caches do not matter.
    torch.manual_seed(cfg.seed)
    gpt = GPT(cfg.gpt).to(device)
    if cfg.init_from is not None:
        report = load_gpt(gpt, cfg.init_from)
        if world.is_main:
            say(str(report))
    if world.is_main:
        say(
            f"GPT: {sum(p.numel() for p in gpt.parameters()) / 1e6:.2f} M parameters on {world.size} x {device}; "
            f"{len(tables['train'])} training rows, {cfg.steps} steps of {cfg.global_batch}"
        )
    engine: nn.Module = torch.compile(gpt) if cfg.compile else gpt  # type: ignore[assignment]
    if world.size > 1:
        engine = DistributedDataParallel(engine, broadcast_buffers=False)
    return Run(
        cfg, world, gpt, engine, text, tokenizer, make_optimizers(gpt, cfg.optim), tables["train"], tables["heldout"]
    )


def resume(run: Run, folder: Path) -> int:
    """Continue from the newest checkpoint of this folder if there is one; returns the next step."""
    newest = latest_checkpoint(folder)
    torch.manual_seed(run.cfg.seed + 1000 * (run.world.rank + 1))  # dropout differs between ranks
    if newest is None:
        return 0
    if run.cfg.resume == "never":
        raise ConfigError(f"{folder} already holds {newest.name} and resume=never; choose another output_dir")
    state = load_checkpoint(newest, run.gpt, run.optimizers)
    if len(state["rng"]) == run.world.size:
        torch.set_rng_state(state["rng"][run.world.rank])
    if run.world.is_main:
        say(f"resuming {folder} at step {state['step']}")
    return int(state["step"])


def train_step(run: Run, step: int) -> dict[str, float]:
    """One optimiser step over this rank's share of draws [step * global, (step + 1) * global)."""
    cfg, world = run.cfg, run.world
    share = cfg.global_batch // world.size
    first = step * cfg.global_batch + world.rank * share
    draws = np.arange(first, first + share, dtype=np.uint64)
    micro_steps = share // cfg.micro_batch
    run.gpt.train()
    run.gpt.zero_grad(set_to_none=True)
    totals: dict[str, float] = {}
    for k in range(micro_steps):
        terms = forward(run, draws[k * cfg.micro_batch : (k + 1) * cfg.micro_batch])
        total = torch.stack(list(terms.values())).sum() / micro_steps
        if isinstance(run.engine, DistributedDataParallel):
            run.engine.require_backward_grad_sync = k == micro_steps - 1
        total.backward()
        for name, value in terms.items():
            totals[name] = totals.get(name, 0.0) + value.item() / micro_steps
    norm = torch.nn.utils.clip_grad_norm_(run.gpt.parameters(), cfg.optim.clip)
    for optimizer in run.optimizers:
        optimizer.step()
    return totals | {"grad_norm": norm.item(), "lr": run.optimizers[0].param_groups[0]["lr"]}


def forward(run: Run, draws: np.ndarray) -> dict[str, torch.Tensor]:
    """Losses by name of the samples that `draws` name: which rows, which conditions are dropped."""
    cfg, device = run.cfg, run.world.device
    rows = stream.rows(draws, len(run.train_rows), cfg.seed)
    batch = run.train_rows.select(rows, device)
    chance = torch.from_numpy(stream.uniform(draws, cfg.seed, stream=0)).to(device)
    drop_image, drop_text = condition_drops(chance, cfg.drop)
    text = run.text.embed(TextTokens(batch.text))  # (B, L, C)
    with autocast(run):
        output = run.engine(batch.source, text, batch.target, drop_image, drop_text)
    return losses(output, batch.target, batch.features, cfg.loss)


def autocast(run: Run) -> Any:
    enabled = run.cfg.precision == "bf16"
    return torch.autocast(run.world.device.type, torch.bfloat16, enabled=enabled)


@torch.no_grad()
def evaluate(run: Run) -> dict[str, float]:
    """Held-out token loss and accuracy, over all tasks and per task; same code path, nothing dropped."""
    run.gpt.eval()
    size = len(run.heldout_rows)
    loss_sum, hits, seen = (torch.zeros(len(TASKS), dtype=torch.float64) for _ in range(3))
    for start in range(run.world.rank * 32, size, run.world.size * 32):
        batch = run.heldout_rows.select(np.arange(start, min(start + 32, size)), run.world.device)
        with autocast(run):
            logits = run.gpt(batch.source, run.text.embed(TextTokens(batch.text)), batch.target).logits
        for row, task in enumerate(batch.task.tolist()):
            loss_sum[task] += token_loss(logits[row : row + 1], batch.target[row : row + 1]).item()
            hits[task] += (logits[row].argmax(-1) == batch.target[row]).double().mean().item()
            seen[task] += 1
    packed = torch.stack(run.world.gather(torch.stack([loss_sum, hits, seen]))).sum(0)
    loss_sum, hits, seen = packed
    values = {"heldout_token": float(loss_sum.sum() / seen.sum()), "heldout_accuracy": float(hits.sum() / seen.sum())}
    return values | {f"heldout_{t}": float(loss_sum[i] / seen[i]) for i, t in enumerate(TASKS) if seen[i] > 0}


def preview(run: Run, folder: Path, step: int) -> Path:
    """A fixed grid of held-out edits with the current weights."""
    run.gpt.eval()
    pipeline = EditPipeline(run.cfg, run.gpt, run.tokenizer, run.text)
    world = NanoWorld("heldout", len(TASKS) * 2, run.cfg.data.seed)
    return write_preview(pipeline, [world[i] for i in range(len(world))], folder / "samples" / f"step_{step:07d}.png")
