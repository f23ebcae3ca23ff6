"""Every setting of editar as a typed dataclass, in the order the data meets it. No torch here.

Hydra composes YAML from `configs/`; `to_dataclass` merges the result into one of the classes below.
Unknown keys, wrong types and impossible combinations stop there, before any weight is loaded,
with one line that names the key, the value found and what is allowed.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import (
    ConfigAttributeError,
    ConfigKeyError,
    OmegaConfBaseException,
)

CONFIG_DIR = Path(__file__).resolve().parent.parent / "configs"


class ConfigError(ValueError):
    """A setting that cannot work; the message is one line for the person who wrote it."""


# --- model parts ----------------------------------------------------------------------------------


@dataclass
class TokenizerConfig:
    """VQ tokenizer in LlamaGen's architecture (vq_ds16_t2i is `configs/tokenizer/vq16.yaml`)."""

    weights: str | None = None  # run folder, safetensors or official .pt; None = random
    ch: int = 128
    encoder_ch_mult: list[int] = field(default_factory=lambda: [1, 1, 2, 2, 4])
    decoder_ch_mult: list[int] = field(default_factory=lambda: [1, 1, 2, 2, 4])
    num_res_blocks: int = 2
    norm_groups: int = 32
    z_channels: int = 256
    codebook_size: int = 16384
    codebook_dim: int = 8
    codebook_l2_norm: bool = True
    commit_loss_beta: float = 0.25
    entropy_loss_ratio: float = 0.0
    dropout: float = 0.0

    @property
    def downsample(self) -> int:
        """Pixels per code along one side."""
        return 2 ** (len(self.encoder_ch_mult) - 1)


@dataclass
class TextConfig:
    """Frozen T5 encoder. `name` is a hub id or local folder, or `nano` for the seeded random one."""

    name: str = "google/flan-t5-xl"
    dim: int = 2048
    max_tokens: int = 120
    dtype: str = "bfloat16"
    # Shape of the `nano` encoder only.
    nano_layers: int = 2
    nano_heads: int = 4
    nano_seed: int = 0


@dataclass
class RopeConfig:
    """Where each position of [source | text | target] sits in the 2-D rotary table.

    layout  `quadrants`: EditAR. Source top-left, target bottom-right of a doubled grid.
            `shared`:    source and target on the same grid (a copied token is at distance zero).
    text    `zero`:      EditAR. A zero row makes q and k vanish, text is averaged, never selected.
            `identity`:  no rotation, text is attended by content.
    query   `input`:     EditAR. A target row carries the place of the code it *reads*.
            `output`:    the place of the code it *predicts*, one step ahead.
    learned adds a trained (2N+L, D) table of absolute positions (not in official checkpoints).
    """

    layout: str = "quadrants"
    text: str = "zero"
    query: str = "input"
    learned: bool = False
    base: float = 10000.0


@dataclass
class GPTConfig:
    """LlamaGen transformer with EditAR's prefix. Shapes that follow from other parts are filled in
    by `TrainConfig.gpt_shape`, so they are written once in YAML."""

    dim: int = 1280
    n_layer: int = 36
    n_head: int = 20
    n_kv_head: int | None = None
    multiple_of: int = 256
    ffn_dim_multiplier: float | None = None
    norm_eps: float = 1e-5
    initializer_range: float = 0.02
    token_dropout: float = 0.1
    attn_dropout: float = 0.0
    resid_dropout: float = 0.1
    ffn_dropout: float = 0.1
    # Filled from the other sections by `resolve`.
    vocab_size: int = 16384
    grid: int = 32
    text_tokens: int = 120
    text_dim: int = 2048
    null_text_rows: int = 120
    teacher_dim: int | None = 768
    teacher_grid: int | None = None
    rope: RopeConfig = field(default_factory=RopeConfig)

    @property
    def image_tokens(self) -> int:
        return self.grid * self.grid

    @property
    def prefix_tokens(self) -> int:
        return self.image_tokens + self.text_tokens

    @property
    def sequence_tokens(self) -> int:
        return 2 * self.image_tokens + self.text_tokens

    @property
    def head_dim(self) -> int:
        return self.dim // self.n_head

    @property
    def ffn_dim(self) -> int:
        """int(2/3 * 4 * dim), scaled, rounded up to a multiple (LlamaGen gpt.py)."""
        hidden = int(2 * 4 * self.dim / 3)
        if self.ffn_dim_multiplier is not None:
            hidden = int(self.ffn_dim_multiplier * hidden)
        return -(-hidden // self.multiple_of) * self.multiple_of


@dataclass
class TeacherConfig:
    """Frozen feature encoder of the distillation loss (paper eq. 3)."""

    name: str = "dinov2"  # none | dinov2 | clip | hog
    weights: str = "facebook/dinov2-base"
    dim: int = 768
    grid: int | None = None  # resize the student's map to grid x grid; None keeps it
    dtype: str = "float32"


# --- data, optimisation, sampling -----------------------------------------------------------------


@dataclass
class NanoDataConfig:
    """The procedural world (`editar.data.nano_world`)."""

    train_samples: int = 20000
    heldout_samples: int = 256
    seed: int = 0


@dataclass
class DropConfig:
    """Condition dropout per training sample (paper sec. 3.3): three disjoint cases."""

    text: float = 0.05
    image: float = 0.05
    both: float = 0.05


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
    batch_size: int = 8


@dataclass
class WandbConfig:
    enabled: bool = False
    project: str = "editar"
    name: str | None = None
    mode: str = "offline"


# --- entries --------------------------------------------------------------------------------------


@dataclass
class TrainConfig:
    """`python -m editar.train`: train the GPT on codes."""

    output_dir: str = MISSING
    seed: int = 0
    image_size: int = 512
    steps: int = 40000
    global_batch: int = 64
    micro_batch: int = 8
    precision: str = "bf16"  # bf16 autocast | fp32
    compile: bool = False
    num_workers: int = 4
    log_every: int = 10
    eval_every: int = 1000
    save_every: int = 1000
    keep_checkpoints: int = 2
    resume: str = "auto"  # auto | never
    init_from: str | None = None
    device: str = "auto"
    gpt: GPTConfig = field(default_factory=GPTConfig)
    rope: RopeConfig = field(default_factory=RopeConfig)
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    text: TextConfig = field(default_factory=TextConfig)
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    data: NanoDataConfig = field(default_factory=NanoDataConfig)
    drop: DropConfig = field(default_factory=DropConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    wandb: WandbConfig = field(default_factory=WandbConfig)

    def resolve(self) -> None:
        """Fill the GPT's shapes from the sections that own them, then check the whole."""
        gpt = self.gpt
        gpt.rope = self.rope
        gpt.vocab_size = self.tokenizer.codebook_size
        gpt.grid = self.image_size // self.tokenizer.downsample
        gpt.text_tokens = self.text.max_tokens
        gpt.text_dim = self.text.dim
        gpt.null_text_rows = self.text.max_tokens
        has_teacher = self.teacher.name != "none"
        gpt.teacher_dim = self.teacher.dim if has_teacher else None
        gpt.teacher_grid = self.teacher.grid if has_teacher else None
        check_tokenizer(self.tokenizer, self.image_size)
        check_gpt(gpt)
        check_choice("precision", self.precision, ("bf16", "fp32"))
        check_choice("resume", self.resume, ("auto", "never"))
        check_choice("teacher.name", self.teacher.name, ("none", "dinov2", "clip", "hog"))
        check_optim(self.optim)
        check_sampling(self.sampling)
        for key in ("steps", "global_batch", "micro_batch", "log_every", "save_every", "eval_every"):
            check_positive(key, getattr(self, key))
        total = self.drop.text + self.drop.image + self.drop.both
        if min(self.drop.text, self.drop.image, self.drop.both) < 0 or total > 1:
            raise ConfigError(f"drop.* must be >= 0 and sum to at most 1, found a sum of {total:g}")


@dataclass
class TokenizerTrainConfig:
    """`python -m editar.train_tokenizer`: train a VQ tokenizer from scratch."""

    output_dir: str = MISSING
    seed: int = 0
    image_size: int = 64
    steps: int = 1500
    batch_size: int = 32
    num_workers: int = 2
    log_every: int = 20
    l1_weight: float = 1.0
    l2_weight: float = 1.0
    edge_weight: float = 0.0  # extra weight of pixels beside edges, 0 = plain mean
    consistency_weight: float = 0.0  # the same codes in source and target where the edit changes nothing
    lpips_weight: float = 0.0  # needs the LPIPS weights
    lpips_weights: str | None = None
    gan_weight: float = 0.0
    gan_start: int = 20000
    kmeans_at: int = 200  # steps as plain autoencoder before the codebook is set by k-means; -1 = never
    kmeans_rounds: int = 1  # few = even cover of the latents, many = follow their density
    restart_every: int = 50  # steps between dead-code restarts, 0 = never
    device: str = "auto"
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    data: NanoDataConfig = field(default_factory=NanoDataConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)

    def resolve(self) -> None:
        check_optim(self.optim)
        check_tokenizer(self.tokenizer, self.image_size)
        for key in ("steps", "batch_size", "log_every"):
            check_positive(key, getattr(self, key))
        if self.lpips_weight > 0 and not self.lpips_weights:
            raise ConfigError("lpips_weight > 0 needs lpips_weights=FILE (the VGG backbone as a .pth); it is null")


@dataclass
class EditConfig:
    """`python -m editar.edit`: edit one picture file."""

    image: str = MISSING
    instruction: str = MISSING
    checkpoint: str = MISSING
    output: str = "outputs/edit.png"
    num_samples: int = 1
    overwrite: bool = False
    device: str = "auto"
    sampling: dict[str, Any] = field(default_factory=dict)  # overrides of the checkpoint's own defaults

    def resolve(self) -> None:
        check_positive("num_samples", self.num_samples)


@dataclass
class EvalConfig:
    """`python -m editar.eval`: edit and score a benchmark."""

    checkpoint: str = MISSING
    output_dir: str = MISSING
    benchmark: str = "nano"
    samples: int = 240
    shuffle_instructions: bool = False
    device: str = "auto"
    sampling: dict[str, Any] = field(default_factory=dict)

    def resolve(self) -> None:
        check_choice("benchmark", self.benchmark, ("nano",))
        check_positive("samples", self.samples)


# --- checks ---------------------------------------------------------------------------------------


def check_choice(key: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ConfigError(f"{key}={value} is not one of {', '.join(allowed)}")


def check_positive(key: str, value: int) -> None:
    if value < 1:
        raise ConfigError(f"{key}={value} must be at least 1")


def check_tokenizer(cfg: TokenizerConfig, image_size: int) -> None:
    if len(cfg.encoder_ch_mult) != len(cfg.decoder_ch_mult):
        raise ConfigError(
            f"tokenizer.encoder_ch_mult has {len(cfg.encoder_ch_mult)} levels, "
            f"decoder_ch_mult {len(cfg.decoder_ch_mult)}: they must match"
        )
    if image_size < cfg.downsample or image_size % cfg.downsample:
        raise ConfigError(f"image_size={image_size} is not divisible by the tokenizer's downsampling {cfg.downsample}")
    for mult in cfg.encoder_ch_mult + cfg.decoder_ch_mult:
        if cfg.ch * mult % cfg.norm_groups:
            raise ConfigError(
                f"tokenizer.ch={cfg.ch} times {mult} is not divisible by tokenizer.norm_groups={cfg.norm_groups}"
            )
    if cfg.codebook_size > 65535:
        raise ConfigError(f"tokenizer.codebook_size={cfg.codebook_size} does not fit the uint16 codes cache (65535)")


def check_gpt(cfg: GPTConfig) -> None:
    if cfg.dim % cfg.n_head:
        raise ConfigError(f"gpt.dim={cfg.dim} is not divisible by gpt.n_head={cfg.n_head}")
    if cfg.head_dim % 4:
        raise ConfigError(f"gpt.dim/gpt.n_head={cfg.head_dim} must be divisible by 4 (2-D rotary pairs)")
    if cfg.n_kv_head is not None and cfg.n_head % cfg.n_kv_head:
        raise ConfigError(f"gpt.n_head={cfg.n_head} is not divisible by gpt.n_kv_head={cfg.n_kv_head}")
    check_choice("rope.layout", cfg.rope.layout, ("quadrants", "shared"))
    check_choice("rope.text", cfg.rope.text, ("zero", "identity"))
    check_choice("rope.query", cfg.rope.query, ("input", "output"))


def check_optim(cfg: OptimConfig) -> None:
    check_choice("optim.name", cfg.name, ("adamw", "muon"))
    check_choice("optim.schedule", cfg.schedule, ("constant", "cosine", "linear"))


def check_sampling(cfg: SamplingConfig) -> None:
    if cfg.cfg_scale < 1:
        raise ConfigError(f"sampling.cfg_scale={cfg.cfg_scale} must be at least 1 (1 = no guidance)")
    if cfg.temperature < 0:
        raise ConfigError(f"sampling.temperature={cfg.temperature} must not be negative")
    if cfg.top_k < 0:
        raise ConfigError(f"sampling.top_k={cfg.top_k} must not be negative (0 = off)")
    if not 0 <= cfg.top_p <= 1:
        raise ConfigError(f"sampling.top_p={cfg.top_p} must lie in [0, 1] (1 = off)")
    check_positive("sampling.batch_size", cfg.batch_size)


# --- conversion -----------------------------------------------------------------------------------

T = TypeVar("T")


def to_dataclass(cls: type[T], cfg: DictConfig | dict[str, Any]) -> T:
    """Merge a composed config into `cls`, resolve and check it. Raises ConfigError."""
    try:
        merged = OmegaConf.merge(OmegaConf.structured(cls), cfg)
        missing = sorted(OmegaConf.missing_keys(merged))
        if missing:
            raise ConfigError(f"missing: give {', '.join(f'{key}=...' for key in missing)} on the command line")
        result: Any = OmegaConf.to_object(merged)
    except OmegaConfBaseException as error:
        raise explain(error, cls) from None
    result.resolve()
    return result


def explain(error: OmegaConfBaseException, schema: Any) -> ConfigError:
    """OmegaConf's several-line errors as one line with the key, the value and what is known."""
    key = str(getattr(error, "full_key", None) or "config")
    if isinstance(error, (ConfigKeyError, ConfigAttributeError)):
        node: Any = OmegaConf.structured(schema)
        for part in key.split(".")[:-1]:
            node = node[part] if isinstance(node, DictConfig) and part in node else {}
        known = ", ".join(sorted(str(name) for name in node))
        return ConfigError(f"unknown key {key!r}" + (f"; known there: {known}" if known else ""))
    return ConfigError(f"{key}: {str(error).splitlines()[0]}")


def override(section: T, changes: dict[str, Any], name: str) -> T:
    """A copy of dataclass `section` with `changes` applied, typed and checked like any config."""
    try:
        merged = OmegaConf.merge(OmegaConf.structured(section), changes)
        return OmegaConf.to_object(merged)  # type: ignore[return-value]
    except OmegaConfBaseException as error:
        raise ConfigError(f"{name}: {explain(error, section)}") from None


def to_yaml(cfg: Any) -> str:
    return OmegaConf.to_yaml(OmegaConf.structured(cfg))
