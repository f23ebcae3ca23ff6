"""Settings of optimisation, losses, sampling and logging."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class OptimConfig:
    """Defaults are the paper's. `muon` is for short trainings from scratch (nano)."""

    name: str = "adamw"  # adamw | muon
    lr: float = 1e-4
    muon_lr: float = 0.02
    muon_momentum: float = 0.95
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 0.05
    clip: float = 1.0
    schedule: str = "constant"  # constant | cosine | linear
    warmup_steps: int = 0
    final_lr_ratio: float = 0.0
    ema_decay: float = 0.0  # running average of the weights, for instance 0.9999; 0 = none (the paper)


@dataclass
class LossConfig:
    distill_weight: float = 0.5


@dataclass
class SamplingConfig:
    cfg_scale: float = 3.0
    cfg_interval: int = -1
    temperature: float = 1.0
    top_k: int = 1000
    top_p: float = 1.0
    greedy: bool = False
    seed: int = 0
    window: int | str = "auto"  # codes guessed and checked in one pass, 1 = one by one; the results are the same
    batch_size: int = 8  # results sampled at once, 0 = as many as fit in the free memory


@dataclass
class WandbConfig:
    enabled: bool = False
    project: str = "editar"
    name: str | None = None
    mode: str = "offline"
