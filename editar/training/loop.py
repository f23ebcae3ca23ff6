"""Training the GPT, as a story: build, resume, then per step fetch, forward, backward, log, save."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from editar.config import ConfigError, TrainConfig
from editar.data import stream
from editar.data.encode import build_cache, open_cache, tokenizer_checksum
from editar.data.loader import BadRows, Batch, Draws, HeldoutRows, Reader, TrainStream, batches
from editar.data.mixture import Mixture
from editar.data.sources import open_sources
from editar.model.gpt import GPT
from editar.model.weights import load_gpt
from editar.runtime.distributed import World, distributed
from editar.runtime.files import save_weights, start_run_folder
from editar.runtime.log import MetricLogger, say
from editar.sampling.pipeline import EditPipeline
from editar.training.checkpoint import latest_checkpoint, load_checkpoint, save_checkpoint
from editar.training.encoders import Encoders
from editar.training.losses import condition_drops, losses, token_loss
from editar.training.optim import lr_factor, make_optimizers, set_lr
from editar.training.preview import write_preview

EVAL_BATCH = 32
PREVIEWS = 16


@dataclass
class Run:
    """Everything a step needs."""

    cfg: TrainConfig
    world: World
    gpt: GPT
    engine: nn.Module  # the GPT, wrapped for gradient averaging when there are several processes
    encoders: Encoders
    optimizers: list[torch.optim.Optimizer]
    train_rows: TrainStream
    heldout_rows: HeldoutRows
    bad_rows: BadRows


def train(cfg: TrainConfig) -> Path:
    """Train as configured; returns the run folder."""
    with distributed(cfg.device) as world:
        folder = Path(cfg.output_dir)
        if world.is_main:
            start_run_folder(folder, cfg)
        world.barrier()
        run = build(cfg, world, folder)
        start = resume(run, folder)
        draws = Draws(start, cfg.steps, world.rank, world.size, cfg.global_batch, cfg.micro_batch)
        feed = batches(run.train_rows, draws, cfg.num_workers, world.device)
        logger = MetricLogger(folder, cfg.steps, start, wandb=cfg.wandb, active=world.is_main)
        for step in range(start, cfg.steps):
            set_lr(run.optimizers, lr_factor(step, cfg.steps, cfg.optim))
            values = train_step(run, feed)
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
    """Frozen encoders, data, model and optimisers."""
    if cfg.global_batch % (world.size * cfg.micro_batch):
        raise ConfigError(
            f"global_batch={cfg.global_batch} is not divisible by "
            f"{world.size} processes x micro_batch={cfg.micro_batch}"
        )
    encoders = Encoders.build(cfg, world.device)
    if world.is_main:
        save_weights(encoders.tokenizer.state_dict(), folder / "tokenizer.safetensors")
    train_rows, heldout_rows = open_data(cfg, world, encoders)
    # Seeded here, so that ranks agree (also on the null tables, which DDP does not send) and caches do not matter.
    torch.manual_seed(cfg.seed)
    gpt = GPT(cfg.gpt).to(world.device)
    if cfg.init_from is not None:
        report = load_gpt(gpt, cfg.init_from)
        if world.is_main:
            say(str(report))
    if world.is_main:
        millions = sum(p.numel() for p in gpt.parameters()) / 1e6
        steps = f"{cfg.steps} steps of {cfg.global_batch}"
        say(f"GPT: {millions:.2f} M parameters on {world.size} x {world.device}; {steps}")
    engine: nn.Module = torch.compile(gpt) if cfg.compile else gpt  # type: ignore[assignment]
    if world.size > 1:
        engine = DistributedDataParallel(engine, broadcast_buffers=False)
    optimizers = make_optimizers(gpt, cfg.optim)
    return Run(cfg, world, gpt, engine, encoders, optimizers, train_rows, heldout_rows, BadRows(cfg.data.max_bad_share))


def open_data(cfg: TrainConfig, world: World, encoders: Encoders) -> tuple[TrainStream, HeldoutRows]:
    """Sources, their codes when the config names a cache, and the mixture of them."""
    sources = open_sources(cfg.data)
    checksum = tokenizer_checksum(encoders.tokenizer)
    readers = []
    for source in sources.values():
        if cfg.data.build_cache:
            build_cache(cfg, source, encoders.tokenizer, checksum, encoders.teacher, world)
        cache = open_cache(cfg, source, checksum) if cfg.data.cache is not None else None
        readers.append(Reader(source, cache, cfg.image_size, pictures=encoders.teacher is not None))
    weights = {name: source.cfg.weight for name, source in sources.items()}
    mixture = Mixture(weights, {name: len(source) for name, source in sources.items()}, cfg.seed)
    if world.is_main:
        shares = ", ".join(
            f"{name} {100 * share:.1f} % of {len(sources[name])}" for name, share in mixture.shares.items()
        )
        say(f"data: {shares} rows; {sum(source.heldout for source in sources.values())} held out")
    return TrainStream(readers, mixture, cfg.seed), HeldoutRows(readers)


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


def train_step(run: Run, feed: Iterator[Batch]) -> dict[str, float]:
    """One optimiser step over this rank's share of the step's draws."""
    cfg = run.cfg
    micro_steps = cfg.global_batch // run.world.size // cfg.micro_batch
    run.gpt.train()
    run.gpt.zero_grad(set_to_none=True)
    totals: dict[str, float] = {}
    for k in range(micro_steps):
        batch = next(feed)
        run.bad_rows.check(batch)
        terms = forward(run, batch.to(run.world.device))
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


def forward(run: Run, batch: Batch) -> dict[str, torch.Tensor]:
    """Losses by name; which conditions are dropped depends on the draws' numbers alone."""
    cfg, encoders = run.cfg, run.encoders
    chance = torch.from_numpy(stream.uniform(batch.draws, cfg.seed, stream=0)).to(run.world.device)
    drop_image, drop_text = condition_drops(chance, cfg.drop)
    text = encoders.text.embed(encoders.text.tokenize(batch.instructions))  # (B, L, C)
    source, target = encoders.codes(batch.source), encoders.codes(batch.target)  # (B, N)
    features = encoders.features(batch)  # (B, T, C)
    with autocast(run):
        output = run.engine(source, text, target, drop_image, drop_text)
    return losses(output, target, features, cfg.loss)


def autocast(run: Run) -> Any:
    enabled = run.cfg.precision == "bf16"
    return torch.autocast(run.world.device.type, torch.bfloat16, enabled=enabled)


@torch.no_grad()
def evaluate(run: Run) -> dict[str, float]:
    """Held-out token loss and accuracy, over all rows and per task; same code path, nothing dropped."""
    run.gpt.eval()
    sums: dict[str, np.ndarray] = {}  # task -> (loss, accuracy, rows)
    for batch in heldout_batches(run, run.world.rank, run.world.size):
        source, target = run.encoders.codes(batch.source), run.encoders.codes(batch.target)
        text = run.encoders.text.embed(run.encoders.text.tokenize(batch.instructions))
        with autocast(run):
            logits = run.gpt(source, text, target).logits
        for row, task in enumerate(batch.tasks):
            loss = token_loss(logits[row : row + 1], target[row : row + 1]).item()
            hits = (logits[row].argmax(-1) == target[row]).double().mean().item()
            sums[task] = sums.get(task, np.zeros(3)) + np.array([loss, hits, 1.0])
    parts = run.world.gather(sums)
    tasks = sorted({task for part in parts for task in part})
    totals = {task: np.sum([part[task] for part in parts if task in part], axis=0) for task in tasks}
    loss, hits, rows = np.sum(list(totals.values()), axis=0)
    values = {"heldout_token": float(loss / rows), "heldout_accuracy": float(hits / rows)}
    return values | {f"heldout_{task}": float(total[0] / total[2]) for task, total in totals.items()}


def heldout_batches(run: Run, first: int, step: int) -> Iterator[Batch]:
    """Every `step`-th batch of held-out rows on the device, beginning with number `first`."""
    size = len(run.heldout_rows)
    chunks = [list(range(at, min(at + EVAL_BATCH, size))) for at in range(0, size, EVAL_BATCH)]
    for batch in batches(run.heldout_rows, chunks[first::step], 0, run.world.device):
        yield batch.to(run.world.device)


def preview(run: Run, folder: Path, step: int) -> Path:
    """A fixed grid of held-out edits with the current weights."""
    run.gpt.eval()
    encoders = run.encoders
    pipeline = EditPipeline(run.cfg, run.gpt, encoders.tokenizer, encoders.text)
    batch = next(heldout_batches(run, 0, 1))
    source, target = (encoders.codes(values)[:PREVIEWS] for values in (batch.source, batch.target))
    path = folder / "samples" / f"step_{step:07d}.png"
    return write_preview(pipeline, source, target, batch.instructions[:PREVIEWS], batch.ids[:PREVIEWS], path)
