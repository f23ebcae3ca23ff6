"""Impossible combinations, said in one line before anything is loaded."""

from __future__ import annotations

import re

from editar.config.model import GPTConfig, TextConfig, TokenizerConfig
from editar.config.training import LoraConfig
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


def check_text(cfg: TextConfig) -> None:
    words = cfg.extra_words
    if words and cfg.name != "nano":
        raise ConfigError(f"text.extra_words are for the nano encoder; {cfg.name} spells any word. Leave them out")
    if wrong := [word for word in words if not isinstance(word, str) or not re.fullmatch("[a-z]+", word)]:
        raise ConfigError(f"text.extra_words: {wrong[0]!r} is not one word of the letters a to z")
    if twice := [word for word in words if words.count(word) > 1]:
        raise ConfigError(f"text.extra_words: {twice[0]!r} is given twice")


def check_lora(cfg: LoraConfig, init_from: str | None, parallel: str, precision: str) -> None:
    if cfg.rank == 0:
        if cfg != LoraConfig():
            raise ConfigError("lora.rank=0 trains no adapter, and other lora settings are given; set lora.rank=8 or so")
        return
    if init_from is None:
        raise ConfigError(f"lora.rank={cfg.rank} adapts a trained GPT; give init_from=RUN or weights, it is null")
    if parallel == "fsdp":
        raise ConfigError("lora.rank needs parallel=ddp: the frozen weights are whole on every GPU (lora.base=bf16)")
    if cfg.base != "fp32" and precision != "bf16":
        raise ConfigError(f"lora.base={cfg.base} needs precision=bf16, found precision={precision}")
