"""Weights in and out: an outside checkpoint as a folder of ours, a run of ours as an official .pt."""

from __future__ import annotations

import argparse
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf

from editar.config import RopeConfig, TrainConfig, to_dataclass, to_yaml
from editar.errors import CheckpointError, ConfigError
from editar.models.gpt import GPT
from editar.runtime.entry import load_config
from editar.runtime.files import checksum, save_weights, write_json, write_text
from editar.training.checkpoint import latest_checkpoint
from editar.weights.fetch import load_manifest
from editar.weights.load import State, WeightsInfo, gpt_advice, official_name, read_checkpoint, read_file

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
    With `tokenizer` the folder is complete for editar.edit. With `keep_optimizer` the AdamW state and the
    step become checkpoints/step_*. The folder appears by one rename and must not exist.
    """
    folder = Path(folder)
    if folder.exists():
        raise CheckpointError(f"{folder} exists already; choose another folder or remove it")
    state, info = read_checkpoint(source)
    cfg = gpt_config(info, overrides, folder) if info.kind != "vq" else None
    partial = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    save_weights(state, partial / "model.safetensors")
    if cfg is not None:
        write_text(partial / "config.yaml", to_yaml(cfg))
    if tokenizer is not None:
        codes, found = read_checkpoint(tokenizer)
        if found.kind != "vq":
            raise CheckpointError(f"{tokenizer}: a GPT, where a VQ tokenizer is wanted")
        save_weights(codes, partial / "tokenizer.safetensors")
    if keep_optimizer:
        save_training(state, info, partial)
    write_json(partial / "source.json", describe_source(info))
    os.replace(partial, folder)
    return info


def gpt_config(info: WeightsInfo, overrides: list[str] | None, folder: Path) -> TrainConfig | None:
    """The configuration that fits these weights: given, beside them, or by official size; else None."""
    beside = info.path.parent / "config.yaml"
    if overrides is None and beside.is_file():
        return to_dataclass(TrainConfig, OmegaConf.load(beside))  # type: ignore[arg-type]
    name = official_name(info.sizes)
    if overrides is None and name is None:
        return None
    chosen = [f"output_dir={folder}", *(overrides or ["experiment=editar_xl", f"gpt={name}"])]
    if info.kind == "gpt_editar" and info.sizes["teacher_dim"] is None:
        chosen.append("teacher=none")
    cfg = load_config(TrainConfig, "train", chosen)
    if advice := gpt_advice(info.sizes, cfg.gpt):
        raise CheckpointError(f"{info.source}: does not fit this configuration{advice}")
    return cfg


def save_training(state: State, info: WeightsInfo, folder: Path) -> None:
    """Optimiser and step in the shape of our own checkpoints, so that a run can go on from there."""
    if "optimizer" not in info.training:
        raise CheckpointError(f"{info.source}: holds no optimiser state to keep")
    optimizer, step = info.training["optimizer"], int(info.training.get("steps", 0))
    groups = [group | {"base_lr": group["lr"]} for group in optimizer["param_groups"]]
    place = folder / "checkpoints" / f"step_{step:07d}"
    save_weights(state, place / "model.safetensors")
    saved = {"step": step, "optimizers": [{"state": optimizer["state"], "param_groups": groups}], "rng": []}
    torch.save(saved, place / "state.pt")


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

    The newest checkpoint is taken; without one (or with Muon, which the official script does not know)
    there is no "optimizer". Returns what was written. Raises CheckpointError for a model that the official
    code would load and compute differently.
    """
    folder, path = Path(run_folder), Path(path)
    if not (folder / "config.yaml").is_file():
        raise CheckpointError(f"{folder}: config.yaml not found; give the folder that editar.train wrote")
    cfg = to_dataclass(TrainConfig, OmegaConf.load(folder / "config.yaml"))  # type: ignore[arg-type]
    if cfg.rope != RopeConfig(base=cfg.rope.base):
        raise CheckpointError(f"{folder}: trained with rope settings that the official code does not have")
    newest = latest_checkpoint(folder)
    state, info = read_checkpoint(newest or folder)
    keys = list(meta_gpt(cfg).state_dict())
    if sorted(keys) != sorted(state):
        raise CheckpointError(f"{info.path}: does not hold the GPT that {folder}/config.yaml describes")
    source = read_source(folder)
    written: dict[str, Any] = {"model": {key: state[key] for key in keys}}
    steps = source.get("steps") or 0
    if newest is not None:
        saved = read_file(newest / "state.pt")
        steps = saved["step"]
        if len(saved["optimizers"]) == 1:
            written["optimizer"] = official_optimizer(saved["optimizers"][0])
    written["steps"] = int(steps)
    written["args"] = argparse.Namespace(**(source.get("args") or official_args(cfg)))
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.part")
    torch.save(written, partial)
    os.replace(partial, path)
    return written


def meta_gpt(cfg: TrainConfig) -> GPT:
    """The configured GPT without storage: names and shapes only."""
    with torch.device("meta"):
        return GPT(cfg.gpt)


def read_source(folder: Path) -> dict[str, Any]:
    """source.json of an imported folder, {} for a training of ours."""
    file = folder / "source.json"
    if not file.is_file():
        return {}
    return OmegaConf.to_container(OmegaConf.load(file))  # type: ignore[return-value]


def official_optimizer(state: dict[str, Any]) -> dict[str, Any]:
    """Our AdamW state -> EditAR's. Groups and order are the same (matrices, then vectors, as in the model)."""
    groups = [{key: value for key, value in group.items() if key != "base_lr"} for group in state["param_groups"]]
    if len(groups) != 2:
        raise ConfigError(f"the optimiser has {len(groups)} parameter groups, EditAR's has 2")
    return {"state": state["state"], "param_groups": groups}


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
