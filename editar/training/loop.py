"""Training the GPT, as a story: build, resume, then per step fetch, forward, backward, clip, check, step, log, save."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import torch

from editar.config import TokenizerTrainConfig, TrainConfig
from editar.data import stream
from editar.data.loader import Batch, DrawBatchSampler, batches
from editar.errors import ConfigError, TrainingError
from editar.runtime.device import send
from editar.runtime.distributed import Ranks, distributed
from editar.runtime.files import check_run_folder, save_weights, some, write_run_folder
from editar.runtime.lock import sole_run
from editar.runtime.log import Costs, MetricLogger, say
from editar.runtime.stop import Stopped, StopSignals
from editar.sampling.pipeline import EditPipeline
from editar.training.build import Run, build_run
from editar.training.checkpoint import training_state, whole_weights
from editar.training.evaluate import current_pipeline, heldout_losses, preview
from editar.training.losses import LossOutput, condition_drops
from editar.training.optim import lr_factor, set_lr
from editar.training.parallel import clip_gradients, sync_gradients, unfit_weights
from editar.training.planning.cost import peak_flops, training_flops
from editar.training.planning.dry_run import dry_run
from editar.training.trace import Trace
from editar.weights.adapter import write_adapter_config
from editar.weights.run_checkpoint import latest_checkpoint

# What a caller wants to know on the way: (step, an editor with the current weights) -> values for metrics.jsonl.
EACH_IMAGE = 3  # the first of the streams of `stream.uniform` that drop single images; loader.py has those before
Watch = Callable[[int, EditPipeline], dict[str, float]]


def train(cfg: TrainConfig, watch: Watch | None = None) -> Path:
    """Train as configured; returns the run folder. Raises Stopped when a signal asked it to leave early;
    everything is saved then. `watch` is called after every held-out evaluation, on the first process."""
    folder = Path(cfg.output_dir)
    if cfg.dry_run:
        dry_run(cfg)
        return folder
    with at_work(folder, cfg) as (stop, ranks):
        run = build_run(cfg, ranks, folder)
        start = run.start
        if ranks.is_main:
            if start <= cfg.steps:  # else config.yaml would say less than the weights have seen
                write_run_folder(folder, cfg)
            if cfg.lora.rank:
                write_adapter_config(folder, cfg.lora, str(cfg.init_from))
            else:
                save_weights(run.encoders.tokenizer.state_dict(), folder / "tokenizer.safetensors")
            if start >= cfg.steps:
                say(f"{folder} is finished: {start} steps done, steps={cfg.steps}")
        draws = DrawBatchSampler(start, cfg.steps, ranks.rank, ranks.size, cfg.global_batch, run.micro_batch)
        feed = batches(run.train_rows, draws, cfg.num_workers, ranks.device)
        logger = MetricLogger(folder, cfg.steps, start, wandb=cfg.wandb, active=ranks.is_main, costs=costs(run))
        trace = Trace(folder / "profile", cfg.profile and ranks.is_main)
        if due(start, cfg.eval_every, cfg.steps) and not any(ranks.gather(logger.has(start, "heldout_token"))):
            report(run, logger, start, watch)  # stopped between saving and evaluating
        for step in range(start, cfg.steps):
            values = train_step(run, feed, step, bool(stop.asked))
            stopping, done = values.pop("stop") > 0, step + 1
            run.checkpointer.poll()
            trace.step()
            if due(done, cfg.log_every, cfg.steps) or stopping:
                logger.log(done, values, cfg.global_batch, run.waited_s)
            if due(done, cfg.eval_every, cfg.steps) and not stopping:
                report(run, logger, done, watch)
            if due(done, cfg.save_every, cfg.steps) or stopping:
                save(run, done)
                logger.pause()
            if stopping:
                run.checkpointer.finish()
                logger.close()
                raise Stopped(f"told to stop ({stop.asked or 'another process'}); saved step {done} in {folder}")
        run.checkpointer.finish()
        logger.close()
    return folder


@contextmanager
def at_work(folder: Path, cfg: TrainConfig | TokenizerTrainConfig) -> Iterator[tuple[StopSignals, Ranks]]:
    """Join the job's processes and hold the run folder for it; signals to stop are noted. Raises ConfigError for a
    folder of another config, or one that another job has."""
    with ExitStack() as held:
        stop = held.enter_context(StopSignals())
        ranks = held.enter_context(distributed(cfg.device, cfg.timeout_s))
        if ranks.is_main:
            held.enter_context(sole_run(folder))
            if latest_checkpoint(folder) is not None and not (folder / "config.yaml").is_file():
                raise ConfigError(
                    f"{folder} holds checkpoints, but no config.yaml that says of which training; copy it back, or "
                    f"choose another output_dir"
                )
            check_run_folder(folder, cfg)
        ranks.barrier()
        yield stop, ranks


def due(step: int, every: int, last: int) -> bool:
    return step > 0 and (step % every == 0 or step == last)


def costs(run: Run) -> Costs:
    peak = peak_flops(run.ranks.device)
    return Costs(
        tokens=run.cfg.gpt.sequence_tokens - 1,
        flops=training_flops(run.cfg.gpt, frozen=run.cfg.lora.rank > 0),
        peak_flops=None if peak is None else peak * run.ranks.size,
    )


def train_step(run: Run, feed: Iterator[Batch], step: int, stop: bool) -> dict[str, float]:
    """One optimiser step (0-based `step`) over this process's share of the draws -> values averaged over
    processes. `stop`: whether this process was told to stop; above 0 in the result if any was."""
    cfg = run.cfg
    torch.manual_seed(dropout_seed(cfg.seed, step, run.ranks.rank))
    set_lr(run.optimizers, lr_factor(step, cfg.steps, cfg.optim))
    run.gpt.train()
    run.gpt.zero_grad(set_to_none=True)
    parts = cfg.global_batch // run.ranks.size // run.micro_batch
    totals: dict[str, torch.Tensor] = {}
    ids: list[str] = []
    for part in range(parts):
        batch = next_batch(run, feed)
        ids += batch.ids
        sync_gradients(run.wrapped, last=part == parts - 1)
        losses = forward(run, batch.to(run.ranks.device))
        torch.stack(list(losses.terms.values())).sum().div(parts).backward()
        for name, value in (losses.terms | {"accuracy": losses.accuracy.mean()}).items():
            totals[name] = totals.get(name, torch.zeros_like(value)) + value.detach() / parts
    norm = clip_gradients(run.gpt, cfg.optim.clip)
    values = run.ranks.mean({**totals, "grad_norm": norm, "stop": float(stop)})  # the step's only host sync
    unfit = [name for name, value in values.items() if not math.isfinite(value)]
    if unfit:
        skip_step(run, step, unfit, ids)
    else:
        for optimizer in run.optimizers:
            optimizer.step()
        if run.ema is not None:
            run.ema.update()
    return values | {"lr": run.optimizers[0].param_groups[0]["lr"]}


def next_batch(run: Run, feed: Iterator[Batch]) -> Batch:
    before = time.perf_counter()
    batch = next(feed)
    run.waited_s += time.perf_counter() - before
    run.bad_rows.check(batch)
    return batch


def forward(run: Run, batch: Batch) -> LossOutput:
    """Losses by name; which conditions are dropped depends on the draws' numbers alone."""
    cfg, encoders = run.cfg, run.encoders
    chance = send(torch.from_numpy(stream.uniform(batch.draws, cfg.seed, stream=0)), run.ranks.device)
    drop_image, drop_text = condition_drops(chance, cfg.drop)
    if batch.absent is not None:
        drop_image = drop_image[:, None] | batch.absent | image_drops(batch.draws, cfg, run.ranks.device)  # (B, K)
    text = encoders.text.embed(encoders.text.tokenize(batch.instructions))  # (B, L, C)
    source, target = encoders.codes(batch.source), encoders.codes(batch.target)  # (B, N)
    teacher = encoders.features(batch)  # (B, T, C)
    with run.autocast():
        losses: LossOutput = run.wrapped(source, text, target, drop_image, drop_text, teacher)
    return losses


def image_drops(draws: np.ndarray, cfg: TrainConfig, device: torch.device) -> torch.Tensor:
    """(B, K) bool, True where one of several source images is dropped by itself."""
    chances = [stream.uniform(draws, cfg.seed, EACH_IMAGE + image) for image in range(cfg.data.images)]
    return send(torch.from_numpy(np.stack(chances, axis=1) < np.float32(cfg.drop.each_image)), device)


def dropout_seed(seed: int, step: int, rank: int) -> int:
    """A seed per step and rank, so that a resumed step draws the dropout masks of an uninterrupted run."""
    return int(stream.mix(np.array([(step << 20) + rank], np.uint64), (seed << 8) + 251)[0] >> np.uint64(1))


def skip_step(run: Run, step: int, unfit: list[str], ids: list[str]) -> None:
    """A step whose loss or gradient is not finite: nothing is updated. Raises TrainingError on all
    processes once there have been more of them than `skip_nonfinite`."""
    run.skipped.append(step + 1)
    everyone = [name for part in run.ranks.gather(ids) for name in part]
    what = f"step {step + 1}: {', '.join(unfit)} not finite, weights left as they were; samples {', '.join(everyone)}"
    if len(run.skipped) > run.cfg.skip_nonfinite:
        raise TrainingError(
            f"{what}. The last checkpoint is {last_checkpoint(run)}; look at these samples, lower the "
            f"learning rate, or leave out up to N such steps with skip_nonfinite=N (now {run.cfg.skip_nonfinite})"
        )
    if run.ranks.is_main:
        say(f"warning: {what}")


def stop_unless_finite(run: Run, step: int, unfit: list[str]) -> None:
    """Raises TrainingError on all processes where one of them found something that is not finite after `step`."""
    if found := sorted({name for part in run.ranks.gather(unfit) for name in part}):
        raise TrainingError(
            f"after step {step}: {some(found, 3)} not finite, nothing of it is saved. The last checkpoint is "
            f"{last_checkpoint(run)}; lower the learning rate"
        )


def last_checkpoint(run: Run) -> str:
    run.checkpointer.finish()  # the last good step may still be on its way to the disk
    newest = latest_checkpoint(run.folder)
    return newest.name if newest else "none"


def report(run: Run, logger: MetricLogger, step: int, watch: Watch | None) -> None:
    """Held-out losses, the sample grid, and what the caller watches."""
    values, pipeline = heldout_losses(run), current_pipeline(run)
    stop_unless_finite(run, step, [name for name, value in values.items() if not math.isfinite(value)])
    if pipeline is not None:
        logger.log_image(step, "samples", preview(run, pipeline, step))
        values |= watch(step, pipeline) if watch is not None else {}
    logger.log(step, values)
    logger.pause()


def save(run: Run, step: int) -> None:
    stop_unless_finite(run, step, unfit_weights(run.gpt))
    weights = whole_weights(run.gpt, run.ema, run.ranks, run.checkpointer.file)
    run.checkpointer.save(step, training_state(run.gpt, run.optimizers, run.ema), weights)
