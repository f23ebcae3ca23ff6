"""What foreign checkpoints look like inside, and opening them safely.

`read_checkpoint` opens a file, a run folder of ours or a hub id and returns plain tensors in our names
(which are the official ones), and what they are.

Layouts met in public files: {"model"} (LlamaGen, EditAR; the latter with "optimizer", "steps" and an
argparse "args"), {"module"} (DeepSpeed), {"state_dict"} (Lightning), or the tensors themselves.
"""

from __future__ import annotations

import argparse
import pickle
import re
import zipfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import torch

from editar.config import RopeConfig, from_plain, read_yaml
from editar.errors import CheckpointError, one_line
from editar.runtime.files import load_weights, some

State = dict[str, torch.Tensor]

LAYOUTS = ("model", "module", "state_dict")
LARGEST = 1e12  # bytes; a few stored numbers can be expanded to a tensor that fills any memory
WRAPPERS = ("module.", "_orig_mod.")  # DistributedDataParallel, torch.compile; either may be outside
GPT_MARKERS = ("tok_embeddings.weight", "cls_embedding.cap_proj.fc1.weight")
VQ_MARKERS = ("encoder.conv_in.weight", "encoder.conv_out.weight", "quantize.embedding.weight")
OFFICIAL_SIZES = {  # gpt=NAME: (dim, n_layer, n_head), LlamaGen gpt.py
    "b": (768, 12, 12),
    "l": (1024, 24, 16),
    "xl": (1280, 36, 20),
    "xxl": (1536, 48, 24),
    "3b": (3200, 24, 32),
}


@dataclass
class WeightsInfo:
    """Where a state dict came from and what it is."""

    source: str  # as the user wrote it
    path: Path  # the file that was read
    kind: str = ""  # gpt_t2i | gpt_editar | vq
    layout: str = "flat"  # flat | model | module | state_dict
    sizes: dict[str, Any] = field(default_factory=dict)  # fields of GPTConfig or TokenizerConfig
    rope: RopeConfig | None = None  # of a GPT, where known
    training: dict[str, Any] = field(default_factory=dict)  # "optimizer", "steps", "args" (a dict) when there


def read_checkpoint(source: str | Path) -> tuple[State, WeightsInfo]:
    """Weights of a local file, a run folder or a hub id -> (float32 tensors on the CPU, what they are).

    Hub ids: `owner/name`, `owner/name:file`, `datasets/owner/name:file`, `hf://datasets/owner/name/file`.
    Raises CheckpointError, one line, for anything that is not readable or not safe.
    """
    path = Path(source)
    if path.is_dir():
        path = path / "model.safetensors"
        if not path.is_file():
            raise CheckpointError(f"{source}: this folder holds no model.safetensors")
    elif not path.is_file():
        from editar.weights.fetch import hub_file  # needs OmegaConf

        path = hub_file(str(source))
    info = WeightsInfo(str(source), path)
    raw = read_file(path)
    if not isinstance(raw, Mapping):
        raise CheckpointError(f"{source}: holds a {type(raw).__name__}, not a dict of weights")
    info.layout = next((key for key in LAYOUTS if isinstance(raw.get(key), Mapping)), "flat")
    tensors = raw if info.layout == "flat" else raw[info.layout]
    if info.layout != "flat":
        info.training = {key: raw[key] for key in ("optimizer", "steps", "args") if key in raw}
        if isinstance(info.training.get("args"), argparse.Namespace):
            info.training["args"] = vars(info.training["args"])
    if not tensors or not all(isinstance(k, str) and isinstance(v, torch.Tensor) for k, v in tensors.items()):
        raise CheckpointError(f"{source}: no weights found; its entries are {some([str(key) for key in tensors])}")
    if unfit := [key for key, value in tensors.items() if value.layout != torch.strided or value.is_meta]:
        raise CheckpointError(f"{source}: sparse or empty (meta) tensors ({some(unfit)}); only dense ones are read")
    if (size := sum(value.numel() for value in tensors.values()) * 4) > LARGEST:
        raise CheckpointError(f"{source}: its tensors take {size / 1e9:,.0f} GB; no model here has so many")
    state = {key: value.float() if value.is_floating_point() else value for key, value in unwrap(tensors).items()}
    describe(state, info)
    return state, info


def read_file(path: Path) -> Any:
    """The object inside a torch or safetensors file, recognised by content, not by name."""
    with open(path, "rb") as file:
        head = file.read(64)
    if not head:
        raise CheckpointError(f"{path}: the file is empty")
    if head.lstrip().lower().startswith((b"<!doctype", b"<html", b"<?xml", b"<head")):
        raise CheckpointError(f"{path}: this is a web page, not weights; the download failed or needs a login")
    if head.startswith(b"version https://git-lfs"):
        raise CheckpointError(f"{path}: this is a git-lfs pointer, not the file itself; fetch it with `git lfs pull`")
    if head[8:9] == b"{":  # after the 8-byte length of a safetensors header
        return load_weights(path)
    if not head.startswith((b"PK\x03\x04", b"\x80")):  # torch's zip, and its old bare pickle
        raise CheckpointError(f"{path}: neither a torch nor a safetensors file")
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            if not head.startswith(b"PK"):
                return torch.load(path, map_location="cpu", weights_only=True)
            with zipfile.ZipFile(path) as archive:
                if (entry := archive.testzip()) is not None:
                    raise ValueError(f"{entry} is not as it was written")
                sizes = Counter(info.file_size for info in archive.infolist())
            found = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        stored = Counter(filter(None, storage_sizes(found).values()))
        if short := stored - sizes:  # torch would read on behind the end of an entry
            raise ValueError(f"no entry has the {next(iter(short))} bytes of one of its tensors")
        return found
    except pickle.UnpicklingError as error:
        wanted = re.search(r"GLOBAL ([\w.]+)", str(error))
        if wanted is None:
            raise CheckpointError(f"{path}: damaged or unsafe pickle ({one_line(error)})") from None
        raise CheckpointError(
            f"{path}: refused, its pickle wants {wanted[1]}; only tensors, containers and argparse.Namespace are read"
        ) from None
    except Exception as error:  # a truncated archive fails in many types, one meaning
        raise CheckpointError(f"{path}: truncated or damaged ({one_line(error)})") from None


def storage_sizes(found: Any) -> dict[int, int]:
    """Address -> bytes of what the tensors in nested containers are stored in."""
    if isinstance(found, torch.Tensor):
        if found.is_meta or found.layout != torch.strided:
            return {}
        return {found.untyped_storage().data_ptr(): found.untyped_storage().nbytes()}
    if isinstance(found, argparse.Namespace):
        found = vars(found)
    items = found.values() if isinstance(found, Mapping) else found if isinstance(found, (list, tuple)) else ()
    return {address: size for item in items for address, size in storage_sizes(item).items()}


def unwrap(tensors: Mapping[str, torch.Tensor]) -> State:
    """Drop the prefixes of wrapper modules, whatever their order."""
    state = dict(tensors)
    while prefix := next((p for p in WRAPPERS if all(key.startswith(p) for key in state)), None):
        state = {key.removeprefix(prefix): value for key, value in state.items()}
    return state


def describe(state: State, info: WeightsInfo) -> None:
    """Fill kind, sizes and rope from the keys, their shapes, and the config.yaml beside the file."""
    if all(key in state and state[key].dim() == 2 for key in GPT_MARKERS):
        info.kind = "gpt_editar" if "img_uncond_embedding" in state else "gpt_t2i"
        info.sizes = gpt_sizes(state)
        config = info.path.parent / "config.yaml"
        if config.is_file():
            run = read_yaml(config)
            gpt, rope = run.get("gpt"), run.get("rope")
            if isinstance(gpt, dict):
                info.sizes["n_head"] = gpt.get("n_head", info.sizes["n_head"])
            info.rope = from_plain(RopeConfig, rope, f"{config}: rope.") if isinstance(rope, dict) else None
        elif info.kind == "gpt_editar" and info.layout == "model":
            info.rope = RopeConfig()
    elif all(key in state and state[key].dim() >= 2 for key in VQ_MARKERS):
        info.kind, info.sizes = "vq", vq_sizes(state)
    elif "cls_embedding.embedding_table.weight" in state:
        raise CheckpointError(f"{info.source}: a class-conditional LlamaGen (c2i); EditAR starts from a t2i one")
    else:
        raise CheckpointError(f"{info.source}: neither a GPT nor a VQ tokenizer; it holds {some(list(state))}")


def gpt_sizes(state: State) -> dict[str, Any]:
    """GPTConfig fields that the shapes give; None where they do not."""
    table, caption = state["tok_embeddings.weight"], state["cls_embedding.cap_proj.fc1.weight"]
    shape = {key: value.shape for key, value in state.items()}
    segments = shape.get("pos_embeddings.segment.weight", [None])[0]
    layers = [int(key.split(".")[1]) for key in state if re.match(r"layers\.\d+\.", key)]
    sizes: dict[str, Any] = {
        "dim": table.shape[1],
        "n_layer": max(layers, default=-1) + 1,
        "n_head": None,
        "vocab_size": table.shape[0],
        "text_dim": caption.shape[1],
        "null_text_rows": shape.get("cls_embedding.uncond_embedding", [None])[0],
        "grid": round(shape["img_uncond_embedding"][0] ** 0.5) if "img_uncond_embedding" in state else None,
        "images": None if segments is None else segments - 2,  # source images, text and target have a position each
        "teacher_dim": shape.get("alignment.weight", [None])[0],
    }
    if name := official_name(sizes):
        sizes["n_head"] = OFFICIAL_SIZES[name][2]
    return sizes


def vq_sizes(state: State) -> dict[str, Any]:
    """TokenizerConfig fields that the shapes give (not the number of norm groups or the l2 norm)."""
    ch = state["encoder.conv_in.weight"].shape[0]

    def mults(side: str) -> list[int]:
        wanted = (f"{side}.conv_blocks.{level}.res.0.conv1.weight" for level in range(len(state)))
        return [state[key].shape[0] // ch for key in wanted if key in state]

    codebook = state["quantize.embedding.weight"].shape
    return {
        "ch": ch,
        "encoder_ch_mult": mults("encoder"),
        "decoder_ch_mult": mults("decoder")[::-1],  # stored from the lowest resolution up
        "num_res_blocks": len([key for key in state if fnmatch(key, "encoder.conv_blocks.0.res.*.conv1.weight")]),
        "z_channels": state["encoder.conv_out.weight"].shape[0],
        "codebook_size": codebook[0],
        "codebook_dim": codebook[1],
    }


def official_name(sizes: Mapping[str, Any]) -> str | None:
    """`xl` and so on when width and depth are those of a released LlamaGen size."""
    found = [
        name for name, (dim, layers, _) in OFFICIAL_SIZES.items() if (sizes["dim"], sizes["n_layer"]) == (dim, layers)
    ]
    return found[0] if found else None
