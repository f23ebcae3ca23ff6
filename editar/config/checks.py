"""Impossible combinations, said in one line before anything is loaded."""

from __future__ import annotations

from editar.config.model import GPTConfig, TokenizerConfig
from editar.errors import ConfigError


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


def check_gpt(cfg: GPTConfig) -> None:
    if cfg.dim % cfg.n_head:
        raise ConfigError(f"gpt.dim={cfg.dim} is not divisible by gpt.n_head={cfg.n_head}")
    if cfg.head_dim % 4:
        raise ConfigError(f"gpt.dim/gpt.n_head={cfg.head_dim} must be divisible by 4 (2-D rotary pairs)")
    if cfg.n_kv_head is not None and cfg.n_head % cfg.n_kv_head:
        raise ConfigError(f"gpt.n_head={cfg.n_head} is not divisible by gpt.n_kv_head={cfg.n_kv_head}")
