"""Impossible combinations, said in one line before anything is loaded."""

from __future__ import annotations

from editar.config.model import GPTConfig, TokenizerConfig
from editar.config.training import OptimConfig, SamplingConfig
from editar.errors import ConfigError

DTYPES = ("float32", "bfloat16", "float16")


def check_choice(key: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ConfigError(f"{key}={value} is not one of {', '.join(allowed)}")


def check_dtype(key: str, value: str, auto: bool = False) -> None:
    """`float32`, `bfloat16` or `float16`, with `auto` also "auto"."""
    check_choice(key, value, (*("auto",) * auto, *DTYPES))


def check_positive(key: str, value: int) -> None:
    if value < 1:
        raise ConfigError(f"{key}={value} must be at least 1")


def check_tokenizer(cfg: TokenizerConfig, image_size: int) -> None:
    for key in ("ch", "num_res_blocks", "norm_groups", "z_channels", "codebook_size", "codebook_dim"):
        check_positive(f"tokenizer.{key}", getattr(cfg, key))
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
    for key in ("dim", "n_layer", "n_head", "multiple_of"):
        check_positive(f"gpt.{key}", getattr(cfg, key))
    if cfg.dim % cfg.n_head:
        raise ConfigError(f"gpt.dim={cfg.dim} is not divisible by gpt.n_head={cfg.n_head}")
    if cfg.head_dim % 4:
        raise ConfigError(f"gpt.dim/gpt.n_head={cfg.head_dim} must be divisible by 4 (2-D rotary pairs)")
    if cfg.n_kv_head is not None and (cfg.n_kv_head < 1 or cfg.n_head % cfg.n_kv_head):
        raise ConfigError(f"gpt.n_head={cfg.n_head} is not divisible by gpt.n_kv_head={cfg.n_kv_head}")
    check_choice("rope.layout", cfg.rope.layout, ("quadrants", "shared"))
    check_choice("rope.text", cfg.rope.text, ("zero", "identity"))
    check_choice("rope.query", cfg.rope.query, ("input", "output"))


def check_optim(cfg: OptimConfig) -> None:
    check_choice("optim.name", cfg.name, ("adamw", "muon"))
    check_choice("optim.schedule", cfg.schedule, ("constant", "cosine", "linear"))
    if not 0 <= cfg.ema_decay < 1:
        raise ConfigError(f"optim.ema_decay={cfg.ema_decay:g} must lie in [0, 1) (0 = no average)")


def check_sampling(cfg: SamplingConfig) -> None:
    if cfg.cfg_scale < 1:
        raise ConfigError(f"sampling.cfg_scale={cfg.cfg_scale} must be at least 1 (1 = no guidance)")
    if cfg.temperature < 0:
        raise ConfigError(f"sampling.temperature={cfg.temperature} must not be negative")
    if cfg.top_k < 0:
        raise ConfigError(f"sampling.top_k={cfg.top_k} must not be negative (0 = off)")
    if not 0 <= cfg.top_p <= 1:
        raise ConfigError(f"sampling.top_p={cfg.top_p} must lie in [0, 1] (1 = off)")
    if cfg.window != "auto" and (isinstance(cfg.window, str) or cfg.window < 1):
        raise ConfigError(f"sampling.window={cfg.window} must be a number of codes, at least 1, or auto")
    if cfg.batch_size < 0:
        raise ConfigError(f"sampling.batch_size={cfg.batch_size} must not be negative (0 = as many as fit)")
