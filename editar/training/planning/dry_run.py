"""`dry_run=true`: what a training would need, by arithmetic, before any weight is loaded.

The GPT is built without memory (meta device); memory, FLOPs and hours follow from editar/training/planning/cost.py
and are not measurements.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path

import torch

from editar.config import LoraConfig, TrainConfig
from editar.data.sources import mixture_of, open_sources
from editar.errors import ConfigError, DataError
from editar.models.teacher import timm_parameters
from editar.models.vq import VQModel
from editar.runtime.log import duration, echo
from editar.training.parallel import micro_batch
from editar.training.planning.cost import (
    PEAK_FLOPS,
    Memory,
    checkpoint_bytes,
    memory,
    parameters,
    trained_parameters,
    training_flops,
)

ASSUMED_MFU = 0.4
GPUS = ("A100", "H100")
CARDS = (16, 24, 40, 80)  # GB
USABLE = 0.9  # of a card's memory; the rest is CUDA's own and what the allocator cannot use
# Parameters of the frozen networks that are not built here: Flan-T5 encoders by width, base-size teachers.
T5_ENCODER = {768: 110e6, 1024: 341e6, 2048: 1.22e9, 4096: 4.76e9}
TEACHERS = {"dinov2": 87e6, "clip": 86e6, "clipseg": 86e6, "hog": 0.0, "none": 0.0}
BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


def dry_run(cfg: TrainConfig) -> None:
    """Print the plan of a run. Raises ConfigError for what cannot work: an uneven batch, more memory than
    the GPU of this machine has, less disk than the checkpoints take."""
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    at_once = micro_batch(cfg, processes)
    need = memory(cfg, processes, at_once, frozen_bytes(cfg))
    if os.environ.get("RANK", "0") == "0":
        parts = ", ".join(f"{name.replace('_', ' ')} {value / 1e9:.2f}" for name, value in vars(need).items() if value)
        by_part = f"a GPU       {need.total / 1e9:.1f} GB by arithmetic: {parts}"
        echo(
            "\n".join(
                [*model_lines(cfg, processes, at_once), by_part, *fit_lines(cfg), *time_lines(cfg), *data_lines(cfg)]
            )
        )
    check_memory(need)
    check_disk(cfg)


def frozen_bytes(cfg: TrainConfig) -> float:
    """Weights of tokenizer (float32), text encoder and teacher on each GPU."""
    with torch.device("meta"):
        tokenizer = sum(p.numel() for p in VQModel(cfg.tokenizer).parameters())
    text = 0.0 if cfg.text.name == "nano" else T5_ENCODER.get(cfg.text.dim, 0.0) * BYTES[cfg.text.dtype]
    teacher = timm_parameters(cfg.teacher) if cfg.teacher.name == "timm" else TEACHERS[cfg.teacher.name]
    return 4 * tokenizer + text + teacher * BYTES[cfg.teacher.dtype]


def model_lines(cfg: TrainConfig, processes: int, at_once: int) -> list[str]:
    gpt, share = cfg.gpt, cfg.global_batch // processes
    tokens = cfg.global_batch * (gpt.sequence_tokens - 1)
    sample = training_flops(gpt, frozen=cfg.lora.rank > 0)
    flops = cfg.global_batch * sample
    layout = f"{gpt.source_tokens} source | {gpt.text_tokens} text | {gpt.image_tokens} target"
    return [
        f"GPT         {parameters(replace(gpt, teacher_dim=None)):,} parameters, {parameters(gpt):,} with the "
        f"alignment layer; {gpt.n_layer} layers of {gpt.dim}; {layout} tokens",
        f"processes   {processes} ({cfg.parallel if processes > 1 else 'alone'}), {cfg.precision}"
        f"{', compiled blocks' if cfg.compile else ''}"
        f"{', activation checkpointing' if cfg.activation_checkpointing else ''}"
        + (f"; {trained_parameters(cfg):,} adapter parameters trained" if cfg.lora.rank else ""),
        f"a step      {cfg.global_batch} samples = {processes} processes x {at_once} at once x "
        f"{share // at_once} times; "
        f"{tokens:,} tokens; {flops / 1e12:,.2f} TFLOP ({sample / 1e12:,.3f} a sample)",
        f"the run     {cfg.steps:,} steps, {cfg.steps * cfg.global_batch:,} samples, "
        f"{flops * cfg.steps / 1e18:,.3g} EFLOP",
        f"disk        {checkpoint_bytes(cfg) / 1e9:.2f} GB a checkpoint, {cfg.keep_checkpoints} kept"
        f"{f', and each {cfg.keep_every}th step' if cfg.keep_every else ''}, one being written",
    ]


def fit_lines(cfg: TrainConfig) -> list[str]:
    """For cards of usual sizes, how many samples fit at once: the whole GPT trained, and an adapter alone."""
    rank = cfg.lora.rank or 16
    adapter = cfg.lora if cfg.lora.rank else LoraConfig(rank=rank, base="bf16" if cfg.precision == "bf16" else "fp32")
    ways = {"whole GPT": LoraConfig(), f"LoRA of rank {rank} on {adapter.base}": adapter}
    rows = []
    for size in CARDS:
        parts = []
        for name, lora in ways.items():
            most = [largest_batch(replace(cfg, lora=lora, activation_checkpointing=way), size) for way in (False, True)]
            parts.append(
                f"{name} {most[0]} at once, {most[1]} with activation checkpointing" if most[1] else f"{name} no"
            )
        rows.append(f"fits {size:>2} GB  {'; '.join(parts)}")
    return rows


def largest_batch(cfg: TrainConfig, gigabytes: float) -> int:
    """The largest micro_batch, of one process and at most `global_batch`, for which USABLE of a card's memory is
    enough; 0 if none is."""
    frozen, most = frozen_bytes(cfg), 0
    while most < cfg.global_batch and memory(cfg, 1, most + 1, frozen).total <= USABLE * gigabytes * 1e9:
        most += 1
    return most


def time_lines(cfg: TrainConfig) -> list[str]:
    total = cfg.steps * cfg.global_batch * training_flops(cfg.gpt, frozen=cfg.lora.rank > 0)
    note, rows = f"(h:mm:ss, the GPT alone at {100 * ASSUMED_MFU:.0f} % MFU)", []
    for name, peak in ((name, PEAK_FLOPS[name]) for name in GPUS):
        hours = ", ".join(f"{n} x {duration(total / (n * peak * ASSUMED_MFU))}" for n in (1, 4, 8, 64))
        rows.append(f"time        {name} ({peak / 1e12:.0f} TFLOP/s): {hours} {note}")
    return rows


def data_lines(cfg: TrainConfig) -> list[str]:
    """Shares and epochs; sources whose data is not there yet are said, not fatal."""
    draws = cfg.steps * cfg.global_batch
    try:
        sources = open_sources(cfg.data)
    except DataError as error:
        total = sum(source.weight for source in cfg.data.sources.values())
        shares = (f"{name} {100 * source.weight / total:.1f} %" for name, source in cfg.data.sources.items())
        return [f"data        {', '.join(shares)}; not ready: {error}"]
    return [
        f"data        {name}: {100 * share:.1f} % of the draws, {len(sources[name]):,} rows, "
        f"{draws * share / len(sources[name]):.2f} epochs"
        for name, share in mixture_of(sources, cfg.seed).shares.items()
    ]


def check_memory(need: Memory) -> None:
    if not torch.cuda.is_available():
        return
    has = torch.cuda.get_device_properties(0).total_memory
    if need.total > has:
        raise ConfigError(
            f"the run needs about {need.total / 1e9:.0f} GB a GPU, {torch.cuda.get_device_name()} has {has / 1e9:.0f}; "
            "lower micro_batch, or set activation_checkpointing=true, parallel=fsdp or lora.rank=16 lora.base=bf16"
        )


def check_disk(cfg: TrainConfig) -> None:
    """Room for the checkpoints a run keeps and the one it is writing. Raises ConfigError."""
    folder = Path(cfg.output_dir).absolute()
    present = sum(file.stat().st_size for file in folder.glob("checkpoints/**/*") if file.is_file())
    while not folder.exists():
        folder = folder.parent
    count = cfg.keep_checkpoints + 1 + (cfg.steps // cfg.keep_every if cfg.keep_every else 0)
    needed = min(count, 1 + -(-cfg.steps // cfg.save_every)) * checkpoint_bytes(cfg) - present
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise ConfigError(
            f"{folder}: {free / 1e9:.1f} GB free, the checkpoints need {needed / 1e9:.1f} GB "
            f"({checkpoint_bytes(cfg) / 1e9:.1f} GB each); make room, keep fewer (keep_checkpoints, keep_every) "
            "or choose another output_dir"
        )
