"""Weights in and out: an outside checkpoint as a folder of ours, a run of ours as an official .pt."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from editar.config import GPTConfig, LoraConfig, OptimConfig, RopeConfig, TrainConfig, from_yaml, read_yaml, to_yaml
from editar.errors import CheckpointError, one_line
from editar.models.gpt import GPT
from editar.models.vq import VQModel
from editar.runtime.entry import load_config
from editar.runtime.files import (
    atomic,
    check_state,
    checksum,
    new_folder,
    parse_json,
    save_weights,
    weights_header,
    write_json,
    write_text,
)
from editar.runtime.manifest import load_manifest
from editar.weights.adapter import ADAPTER_FILES, adapter_folder, open_run
from editar.weights.load import (
    SETTINGS,
    check_values,
    gpt_advice,
    judge,
    model_settings,
    read_tokenizer,
    save_pair,
    vq_advice,
)
from editar.weights.read import State, WeightsInfo, official_name, read_checkpoint
from editar.weights.run_checkpoint import latest_checkpoint, read_whole, write_whole

MOMENTS = ("step", "exp_avg", "exp_avg_sq")  # what AdamW keeps of each parameter

# EditAR's names for its five data sets and their cumulative shares (train.sh); ours are in configs.
DATASETS = {
    "multigendepth": 0.15,
    "multigencanny": 0.3,
    "conditionsegmentation": 0.45,
    "pipe": 0.7,
    "seedxunsplash": 1.0,
}


# --- in -------------------------------------------------------------------------------------------


def import_weights(
    source: str | Path,
    folder: str | Path,
    overrides: list[str] | None = None,
    tokenizer: str | None = None,
    keep_optimizer: bool = False,
) -> WeightsInfo:
    """Any checkpoint -> a folder with model.safetensors, source.json and, for a GPT, config.yaml.

    `overrides` describe the GPT as for editar.train (`experiment=... gpt=...`); official sizes need none.
    With `tokenizer` (weights, or the folder of a run, whose settings it brings along) the folder is complete for
    editar.edit. With `keep_optimizer` the AdamW state and the
    step become a checkpoint, from which `editar.train` goes on under the same settings. The folder appears by one
    rename and must not exist. Raises CheckpointError or ConfigError.
    """
    folder = Path(folder)
    with new_folder(folder) as partial:
        return _import(source, folder, partial, overrides, tokenizer, keep_optimizer)


def _import(
    source: str | Path,
    folder: Path,
    partial: Path,
    overrides: list[str] | None,
    tokenizer: str | None,
    keep_optimizer: bool,
) -> WeightsInfo:
    state, info = read_checkpoint(source)
    check_values(state, info.source)
    codes, found = read_tokenizer(tokenizer) if tokenizer is not None else ({}, None)
    check_values(codes, str(tokenizer))
    cfg = gpt_config(info, overrides, folder, tokenizer_settings(found)) if info.kind != "vq" else None
    if cfg is not None and found is not None:
        with torch.device("meta"):
            judge(VQModel(cfg.tokenizer), codes, found, True, vq_advice(found.sizes, cfg.tokenizer))
    if cfg is not None:
        judge(meta_gpt(cfg.gpt), state, info, False, gpt_advice(info.sizes, cfg.gpt))
    training = resumable_state(state, info, cfg) if keep_optimizer else None
    header = {} if cfg is None else {SETTINGS: model_settings(cfg)}
    if codes:
        save_pair(partial, state, codes, header)
    else:
        save_weights(state, partial / "model.safetensors", header)
    if cfg is not None:
        write_text(partial / "config.yaml", to_yaml(cfg))
    if training is not None:
        write_whole(partial, steps_of(info), training)
    write_json(partial / "source.json", describe_source(info))
    return info


def tokenizer_settings(info: WeightsInfo | None) -> list[str]:
    """The tokenizer's settings in the config.yaml beside its weights, as overrides; [] if there is none."""
    beside = None if info is None else info.path.parent / "config.yaml"
    if beside is None or not beside.is_file():
        return []
    section = read_yaml(beside).get("tokenizer", {})
    return [f"tokenizer.{key}={json.dumps(value)}" for key, value in section.items() if key != "weights"]


def merge_adapter(base: str | Path, lora: str | Path, folder: str | Path) -> None:
    """A run folder and an adapter trained on it -> a run folder that needs neither, in float32. It appears by one
    rename and must not exist. Raises CheckpointError."""
    with new_folder(Path(folder)) as partial:
        cfg, gpt, tokenizer = open_run(base, lora=lora)
        cfg.lora = LoraConfig()
        write_text(partial / "config.yaml", to_yaml(cfg))
        save_pair(partial, gpt.state_dict(), tokenizer.state_dict(), {SETTINGS: model_settings(cfg)})
        header = weights_header(adapter_folder(lora) / ADAPTER_FILES[1])
        write_json(partial / "source.json", {"source": str(base), "lora": str(lora), **header})


def gpt_config(
    info: WeightsInfo, overrides: list[str] | None, folder: Path, tokenizer: Sequence[str] = ()
) -> TrainConfig | None:
    """The configuration that fits these weights: given, beside them, or by official size; else None. `tokenizer`:
    settings that the given ones may change."""
    beside = info.path.parent / "config.yaml"
    if overrides is None and beside.is_file():
        return from_yaml(TrainConfig, beside)
    name = official_name(info.sizes)
    if overrides is None and name is None:
        return None
    chosen = [f"output_dir={folder}", *tokenizer, *(overrides or ["experiment=editar_xl", f"gpt={name}"])]
    if info.kind == "gpt_editar" and info.sizes["teacher_dim"] is None:
        chosen.append("teacher=none")
    cfg = load_config(TrainConfig, "train", chosen)
    if advice := gpt_advice(info.sizes, cfg.gpt):
        raise CheckpointError(f"{info.source}: does not fit this configuration{advice}")
    return cfg


def steps_of(info: WeightsInfo) -> int:
    """How many steps an official checkpoint says it has behind it."""
    steps = info.training.get("steps", 0)
    if not isinstance(steps, int) or steps < 0:
        raise CheckpointError(f"{info.source}: steps={steps!r} is no number of training steps")
    return steps


def resumable_state(state: State, info: WeightsInfo, cfg: TrainConfig | None) -> dict[str, Any]:
    """An official checkpoint as `read_whole` would return one of ours: weights and AdamW moments by name."""
    optimizer = info.training.get("optimizer", {})
    if "state" not in optimizer:
        raise CheckpointError(f"{info.source}: holds no optimiser state to keep")
    if cfg is None:
        raise CheckpointError(f"{info.source}: of no official size; to train on, its settings are needed (--config)")
    if cfg.optim.name != "adamw":
        raise CheckpointError(f"{info.source}: holds AdamW's moments, which optim.name={cfg.optim.name} has no use for")
    gpt = meta_gpt(cfg.gpt)
    judge(gpt, state, info, True, gpt_advice(info.sizes, cfg.gpt))
    matrices, vectors = official_order(meta_gpt(replace(cfg.gpt, teacher_dim=info.sizes["teacher_dim"])))
    moments = {}
    for index, name in enumerate(matrices + vectors):
        try:
            saved = optimizer["state"][index]
            moments[name] = {key: torch.as_tensor(saved[key], dtype=torch.float32) for key in MOMENTS}
        except (KeyError, IndexError, TypeError, ValueError):
            raise CheckpointError(f"{info.source}: holds no AdamW state of {name}, which should be {index}") from None
        if moments[name]["exp_avg"].shape != state[name].shape:
            raise CheckpointError(f"{info.source}: its AdamW state {index} has not the shape of {name}")
        if (
            not all(value.isfinite().all() for value in moments[name].values())
            or (moments[name]["exp_avg_sq"] < 0).any()
        ):
            raise CheckpointError(f"{info.source}: its AdamW state {index}, of {name}, is not finite, or negative")
    trained = {name: state[name] for name, _ in gpt.named_parameters()}
    found = {
        "model": {name: state[name] for name in gpt.state_dict()},
        "optimizer_0": {name: moments[name] for name in trained},
    }
    if cfg.optim.ema_decay:
        found["ema"] = trained  # an average begins at the weights
    return found


def describe_source(info: WeightsInfo) -> dict[str, Any]:
    """Contents of source.json."""
    known = [
        entry
        for entry in load_manifest().values()
        if any(Path(file.file).name == info.path.name for file in entry.files if "|" not in file.file)
        or (entry.repo is not None and entry.repo in info.source)
    ]
    return {
        "source": info.source,
        "file": info.path.name,
        "sha256": checksum(info.path),
        "kind": info.kind,
        "layout": info.layout,
        "sizes": info.sizes,
        "licence": known[0].licence if known else None,
        "steps": info.training.get("steps"),
        "args": info.training.get("args"),
    }


# --- out ------------------------------------------------------------------------------------------


def export_official(run_folder: str | Path, path: str | Path) -> dict[str, Any]:
    """A run of ours -> the .pt of EditAR's training script: {"model", "optimizer", "steps", "args"}.

    Taken from the newest checkpoint: its weights (not their average), its AdamW moments, its step. Without a
    checkpoint, or with Muon, which the official script does not know, there is no "optimizer". Returns what was
    written. Raises CheckpointError for a model that the official code would load and compute differently, and where
    `path` exists.
    """
    folder, path = Path(run_folder), Path(path)
    if path.exists():
        raise CheckpointError(f"{path} exists already; choose another name or remove it")
    if not (folder / "config.yaml").is_file() or "gpt" not in read_yaml(folder / "config.yaml"):
        raise CheckpointError(f"{folder}: holds no config.yaml of a GPT; give the folder that editar.train wrote")
    cfg = from_yaml(TrainConfig, folder / "config.yaml")
    if cfg.rope != RopeConfig(base=cfg.rope.base):
        raise CheckpointError(f"{folder}: trained with rope settings that the official code does not have")
    source, newest = read_source(folder), latest_checkpoint(folder)
    if newest is None:
        steps, saved = source.get("steps") or 0, {"model": read_checkpoint(folder)[0]}
    else:
        steps, saved = read_whole(newest)
    gpt, state = meta_gpt(cfg.gpt), saved["model"]
    check_state(gpt, state, newest or folder)
    written: dict[str, Any] = {"model": {key: state[key] for key in gpt.state_dict()}}
    if "optimizer_0" in saved and "optimizer_1" not in saved:
        written["optimizer"] = official_optimizer(gpt, saved["optimizer_0"], cfg.optim)
    written["steps"] = int(steps)
    written["args"] = argparse.Namespace(**(source.get("args") or official_args(cfg)))
    with atomic(path) as partial:
        try:
            torch.save(written, partial)
        except RuntimeError as error:  # torch's own word for a disk that is full
            raise CheckpointError(f"{path}: could not be written ({one_line(error)}); is the disk full?") from None
    return written


def meta_gpt(cfg: GPTConfig) -> GPT:
    """The configured GPT without storage: names and shapes only."""
    with torch.device("meta"):
        return GPT(cfg)


def official_order(gpt: GPT) -> tuple[list[str], list[str]]:
    """Parameters in the order in which EditAR's optimiser numbers them: matrices, which decay, then vectors."""
    named = list(gpt.named_parameters())
    return [name for name, p in named if p.dim() >= 2], [name for name, p in named if p.dim() < 2]


def official_optimizer(gpt: GPT, moments: dict[str, Any], cfg: OptimConfig) -> dict[str, Any]:
    """AdamW moments by name -> the state dict of EditAR's optimiser, with the configured base learning rate."""
    parameters, order = dict(gpt.named_parameters()), official_order(gpt)
    groups = [
        {"params": [parameters[name] for name in names], "weight_decay": decay}
        for names, decay in zip(order, (cfg.weight_decay, 0.0), strict=True)
    ]
    adamw = torch.optim.AdamW(groups, lr=cfg.lr, betas=(cfg.beta1, cfg.beta2), eps=cfg.eps)
    state = {index: moments[name] for index, name in enumerate(order[0] + order[1])}
    return {"state": state, "param_groups": [group | {"fused": True} for group in adamw.state_dict()["param_groups"]]}


def read_source(folder: Path) -> dict[str, Any]:
    """source.json of an imported folder, {} for a training of ours."""
    file = folder / "source.json"
    try:
        return parse_json(file.read_bytes()) if file.is_file() else {}
    except ValueError as error:
        raise CheckpointError(f"{file}: damaged ({one_line(error)}); convert the weights again") from None


def official_args(cfg: TrainConfig) -> dict[str, Any]:
    """The command line of EditAR's training script that corresponds to `cfg`; None where nothing does."""
    name = official_name({"dim": cfg.gpt.dim, "n_layer": cfg.gpt.n_layer})
    has_teacher = cfg.teacher.name != "none"
    args: dict[str, Any] = {
        "use_distill": has_teacher,
        "distill_mode": cfg.teacher.name if has_teacher else None,
        "distill_loss_weight": cfg.loss.distill_weight,
        "use_wandb": cfg.wandb.enabled,
        "no_local_save": False,
        "vq_model": f"VQ-{cfg.tokenizer.downsample}",
        "vq_ckpt": cfg.tokenizer.weights,
        "codebook_size": cfg.tokenizer.codebook_size,
        "codebook_embed_dim": cfg.tokenizer.codebook_dim,
        "gpt_model": f"GPT-{name.upper()}" if name else f"GPT-{cfg.gpt.dim}x{cfg.gpt.n_layer}",
        "gpt_ckpt": cfg.init_from,
        "gpt_type": "edit",
        "gpt_mode": "joint_cls_emb",
        "vocab_size": cfg.gpt.vocab_size,
        "cls_token_num": cfg.gpt.text_tokens,
        "dropout_p": cfg.gpt.resid_dropout,
        "token_dropout_p": cfg.gpt.token_dropout,
        "drop_path": 0.0,
        "no_compile": not cfg.compile,
        "output_dir": cfg.output_dir,
        "image_size": cfg.image_size,
        "downsample_size": cfg.tokenizer.downsample,
        "num_classes": 1000,
        "epochs": None,
        "lr": cfg.optim.lr,
        "weight_decay": cfg.optim.weight_decay,
        "beta1": cfg.optim.beta1,
        "beta2": cfg.optim.beta2,
        "max_grad_norm": cfg.optim.clip,
        "global_batch_size": cfg.global_batch,
        "global_seed": cfg.seed,
        "num_workers": cfg.num_workers,
        "log_every": cfg.log_every,
        "ckpt_every": cfg.save_every,
        "gradient_accumulation_steps": 1,
        "mixed_precision": "bf16" if cfg.precision == "bf16" else "none",
        "t5_path": str(Path(cfg.text.name).parent),
        "t5_model_type": Path(cfg.text.name).name,
        "t5_feature_max_len": cfg.text.max_tokens,
        "t5_feature_dim": cfg.text.dim,
        "dataset_list": list(DATASETS),
        "rank": 0,
        "world_size": 1,
        "gpu": 0,
        "dist_url": "env://",
        "distributed": True,
        "dist_backend": "nccl",
    }
    for dataset, share in DATASETS.items():
        args |= {f"{dataset}_path": None, f"{dataset}_prob": share}
    return args
