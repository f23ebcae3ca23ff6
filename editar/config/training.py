"""Settings of optimisation, losses, sampling and logging."""

from __future__ import annotations

from dataclasses import dataclass

from editar.config.fields import setting


@dataclass
class OptimConfig:
    """Defaults are the paper's. `muon` is for short trainings from scratch (nano)."""

    name: str = setting("adamw", choices=("adamw", "muon"))
    lr: float = setting(1e-4, least=0)
    muon_lr: float = setting(0.02, least=0)
    muon_momentum: float = setting(0.95, least=0, below=1)
    beta1: float = setting(0.9, least=0, below=1)
    beta2: float = setting(0.95, least=0, below=1)
    eps: float = setting(1e-8, above=0)
    weight_decay: float = setting(0.05, least=0)
    clip: float = setting(1.0, above=0)
    schedule: str = setting("constant", choices=("constant", "cosine", "linear"))
    warmup_steps: int = setting(0, least=0)
    final_lr_ratio: float = setting(0.0, least=0)
    # running average of the weights, for instance 0.9999; 0 = none (the paper)
    ema_decay: float = setting(0.0, least=0, below=1)


@dataclass
class LossConfig:
    distill_weight: float = setting(0.5, least=0)


@dataclass
class SamplingConfig:
    cfg_scale: float = setting(3.0, least=1)  # 1 = no guidance
    cfg_interval: int = setting(-1, least=-1)
    temperature: float = setting(1.0, least=0)
    top_k: int = setting(1000, least=0)  # 0 = off
    top_p: float = setting(1.0, least=0, most=1)  # 1 = off
    greedy: bool = False
    seed: int = setting(0, least=0)
    # Codes guessed and checked in one pass, 1 = one by one; the results are the same.
    window: int | str = setting("auto", least=1, choices=("auto",))
    batch_size: int = setting(8, least=0)  # results sampled at once, 0 = as many as fit in the free memory


@dataclass
class WandbConfig:
    enabled: bool = False
    project: str = "editar"
    name: str | None = None
    mode: str = setting("offline", choices=("offline", "online", "disabled", "shared"))
