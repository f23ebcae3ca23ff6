"""Settings of optimisation, losses, sampling and logging."""

from __future__ import annotations

from dataclasses import dataclass, field

from editar.config.fields import setting

LORA_TARGETS = ("wqkv", "wo", "w1", "w2", "w3", "fc1", "fc2")  # linear layers by their names in editar/models/gpt.py


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
class LoraConfig:
    """Low-rank adapters (Hu et al. 2021) on a frozen GPT: a layer's weight W acts as W + alpha / rank * B A.

    rank     0 = no adapter, the whole GPT is trained
    dropout  of the adapter's input while training
    targets  layers of every block, and fc1, fc2 of the caption MLP
    base     how the frozen weights are held: `fp32`; `bf16`, half of the memory and under precision=bf16 the same
             products; `int8`, by bitsandbytes
    """

    rank: int = setting(0, least=0)
    alpha: float = setting(16.0, above=0)
    dropout: float = setting(0.0, least=0, below=1)
    targets: list[str] = field(default_factory=lambda: list(LORA_TARGETS), metadata={"choices": LORA_TARGETS})
    base: str = setting("fp32", choices=("fp32", "bf16", "int8"))


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
    project: str = setting("editar", without="/\\#?%:")
    name: str | None = None
    mode: str = setting("offline", choices=("offline", "online", "disabled", "shared"))
