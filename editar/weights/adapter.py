"""LoRA adapters of the GPT: made with peft, kept in peft's own files, tied to the weights that they were trained on.

A training with `lora.rank` leaves config.yaml, adapter_config.json and adapter_model.safetensors (some MB). The header
of the last one holds checksums of the base and of its tokenizer: an adapter of other weights would load and draw noise.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import nn

from editar.config import LoraConfig, TrainConfig, from_yaml
from editar.errors import CheckpointError, ConfigError, one_line
from editar.models.gpt import GPT
from editar.models.vq import VQModel
from editar.runtime.files import load_weights, parse_json, some, weights_header, write_json
from editar.runtime.hub import local_folder
from editar.weights.load import (
    TOKENIZER,
    check_header,
    check_values,
    load_gpt,
    load_vq,
    tensor_checksum,
    vq_checksum,
)

FILES = ("config.yaml", "model.safetensors", "tokenizer.safetensors")
ADAPTER_FILES = ("config.yaml", "adapter_model.safetensors", "adapter_config.json")
PREFIX = "base_model.model."  # what peft's files put before the names of the model


def open_run(
    path: str | Path, revision: str | None = None, lora: str | Path | None = None
) -> tuple[TrainConfig, GPT, VQModel]:
    """Config, GPT and tokenizer of a run folder, or of such a repository of the hub, on the CPU in float32. An adapter
    in the folder `lora` is merged in; text and sampling settings are then the adapter's."""
    folder = local_folder(path, FILES, revision)
    for name in FILES:
        if not (folder / name).is_file():
            raise CheckpointError(f"{folder}: {name} not found; give the folder that editar.train wrote")
    cfg = from_yaml(TrainConfig, folder / "config.yaml")
    gpt, tokenizer = GPT(cfg.gpt), VQModel(cfg.tokenizer)
    load_gpt(gpt, folder, strict=True)
    load_vq(tokenizer, folder)
    check_header(folder, cfg, tokenizer.state_dict())
    if lora is not None:
        adapter = adapter_folder(lora)
        trained = from_yaml(TrainConfig, adapter / "config.yaml")
        check_base(adapter, base_of(gpt, tokenizer))
        check_description(adapter, trained.lora)
        merge_lora(gpt, trained.lora, load_adapter(adapter))
        cfg.text, cfg.sampling = trained.text, trained.sampling
    return cfg, gpt, tokenizer


def adapter_folder(lora: str | Path) -> Path:
    """Its folder here. Raises CheckpointError for one that holds no adapter."""
    folder = local_folder(lora, ADAPTER_FILES)
    if missing := [name for name in ADAPTER_FILES if not (folder / name).is_file()]:
        whole = (folder / "model.safetensors").is_file()
        what = "it is a whole model: give checkpoint=" if whole else "give a run folder of a training with lora.rank"
        raise CheckpointError(f"lora={folder}: {missing[0]} not found; {what}")
    return folder


def base_of(gpt: GPT, tokenizer: VQModel) -> dict[str, str]:
    """Checksums of what an adapter depends on. The layer for the teacher is not in them: no edit reads it."""
    own = {name: value for name, value in gpt.state_dict().items() if not name.startswith("alignment.")}
    return {"base": tensor_checksum(own), TOKENIZER: vq_checksum(tokenizer.state_dict())}


def check_base(folder: Path, found: Mapping[str, str]) -> None:
    """Whether the adapter in `folder` was trained on the weights with these checksums. Raises CheckpointError."""
    stored = weights_header(folder / ADAPTER_FILES[1])
    for key, what in (("base", "a GPT"), (TOKENIZER, "a tokenizer")):
        if key not in stored:
            raise CheckpointError(f"{folder}: adapter_model.safetensors names no {key}; editar.train did not write it")
        if stored[key] != found[key]:
            raise CheckpointError(
                f"{folder}: the adapter was trained on {what} with checksum {stored[key]}, this checkpoint's has "
                f"{found[key]}; give the checkpoint that was its init_from ({origin_of(folder)})"
            )


def check_description(folder: Path, cfg: LoraConfig) -> None:
    """Whether adapter_config.json, which peft reads, says what config.yaml says. Raises CheckpointError."""
    found = {"use_rslora": False, "use_dora": False} | description(folder)  # older peft wrote neither
    ours = {"r": cfg.rank, "lora_alpha": cfg.alpha, "target_modules": sorted(set(cfg.targets))}
    for key, value in (ours | {"peft_type": "LORA", "use_rslora": False, "use_dora": False}).items():
        said = found.get(key)
        if (sorted(map(str, said)) if isinstance(said, list) else said) != value:
            raise CheckpointError(
                f"{folder}: adapter_config.json says {key}={said!r}, its training {value!r}; "
                f"copy both from the training's folder"
            )


def origin_of(folder: Path) -> str:
    """`init_from` of the training, as its adapter_config.json says."""
    return str(description(folder).get("base_model_name_or_path") or "not known")


def description(folder: Path) -> dict[str, Any]:
    """Contents of adapter_config.json. Raises CheckpointError."""
    try:
        found = parse_json((folder / "adapter_config.json").read_bytes())
    except ValueError as error:
        raise CheckpointError(f"{folder}: adapter_config.json is damaged ({one_line(error)}); copy it anew") from None
    if not isinstance(found, dict):
        raise CheckpointError(f"{folder}: adapter_config.json is damaged (not a mapping); copy it anew")
    return found


def load_adapter(folder: Path) -> dict[str, torch.Tensor]:
    adapter = load_weights(path := folder / ADAPTER_FILES[1])
    check_values(adapter, str(path))
    return adapter


# --- making one ------------------------------------------------------------------------------------


def adapt(gpt: GPT, cfg: LoraConfig, origin: str = "") -> None:
    """Freeze `gpt` and put new adapters into it, in place; B is zero, so nothing changes yet. Raises ConfigError."""
    from peft import inject_adapter_in_model

    gpt.requires_grad_(False)
    hold(gpt, cfg.base)
    if cfg.base == "int8":
        gpt.is_loaded_in_8bit = True  # type: ignore[assignment]  # where peft looks
    inject_adapter_in_model(peft_config(cfg, origin), gpt)
    for parameter in gpt.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()


def peft_config(cfg: LoraConfig, origin: str = "") -> Any:
    from peft import LoraConfig as PeftConfig

    return PeftConfig(
        r=cfg.rank,
        lora_alpha=cfg.alpha,  # type: ignore[arg-type]  # any number
        lora_dropout=cfg.dropout,
        target_modules=sorted(set(cfg.targets)),
        base_model_name_or_path=origin or None,
    )


def hold(gpt: GPT, base: str) -> None:
    """The weights of all linear layers in bfloat16 or 8 bits; tables and norms stay float32, and so do the
    activations between layers. Raises ConfigError without bitsandbytes."""
    if base == "int8" and find_spec("bitsandbytes") is None:
        raise ConfigError("lora.base=int8 needs bitsandbytes: pip install bitsandbytes, or take lora.base=bf16")
    for parent in list(gpt.modules()):
        for name, layer in parent.named_children():
            if isinstance(layer, nn.Linear) and base == "bf16":
                layer.to(torch.bfloat16)
            elif isinstance(layer, nn.Linear) and base == "int8" and layer is not gpt.output:
                setattr(parent, name, eight_bit(layer))


def eight_bit(layer: nn.Linear) -> nn.Module:
    """The layer as bitsandbytes multiplies it; its weights become 8-bit numbers where they are moved to a device."""
    import bitsandbytes as bnb

    device = layer.weight.device
    made = bnb.nn.Linear8bitLt(layer.in_features, layer.out_features, bias=False, has_fp16_weights=False)
    made.weight = bnb.nn.Int8Params(layer.weight.data.half().cpu(), requires_grad=False, has_fp16_weights=False)
    return made.to(device)


def adapter_weights(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The adapter among a GPT's tensors, by the names of peft's files, which leave out the adapter's own name."""
    return {PREFIX + name.replace(".default.", "."): value for name, value in state.items() if ".lora_" in name}


def write_adapter_config(folder: Path, cfg: LoraConfig, origin: str) -> None:
    described = peft_config(cfg, origin).to_dict() | {"inference_mode": True}
    plain = {key: sorted(value) if isinstance(value, set) else value for key, value in described.items()}
    write_json(folder / "adapter_config.json", plain)


def merge_lora(gpt: GPT, cfg: LoraConfig, adapter: Mapping[str, torch.Tensor]) -> None:
    """Add an adapter, by the names of peft's files, to a float32 `gpt` in place: W + alpha / rank * B A. Raises
    CheckpointError unless it is exactly one of `cfg` for a GPT of these shapes."""
    layers = {name: module for name, module in gpt.named_modules() if isinstance(module, nn.Linear)}
    wanted = {name: layer for name, layer in layers.items() if name.rsplit(".", 1)[-1] in cfg.targets}
    shapes = {}
    for name, layer in wanted.items():
        shapes[f"{PREFIX}{name}.lora_A.weight"] = (cfg.rank, layer.in_features)
        shapes[f"{PREFIX}{name}.lora_B.weight"] = (layer.out_features, cfg.rank)
    found = {key: tuple(value.shape) for key, value in adapter.items()}
    if wrong := [key for key in {**shapes, **found} if shapes.get(key) != found.get(key)]:
        first = wrong[0]
        raise CheckpointError(
            f"the adapter does not fit its config {asdict(cfg)}: {some(wrong, 3)}; "
            f"{first} is {found.get(first, 'missing')}, expected {shapes.get(first, 'nothing')}"
        )
    for name, layer in wanted.items():
        a, b = (adapter[f"{PREFIX}{name}.lora_{part}.weight"].to(layer.weight) for part in "AB")
        layer.weight.data += cfg.alpha / cfg.rank * (b @ a)
