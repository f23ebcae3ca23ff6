"""The networks that score: which file each one needs, and what is left out without it.

A network is loaded from a local path (the files that `scripts/fetch_weights.py evaluate` gets) or from
a hub id. Where a file is missing the columns that need it are left out and named; everything else is
still scored.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from editar.config import NetworkSources
from editar.errors import CheckpointError, ConfigError
from editar.runtime.files import checksum, content_sum
from editar.runtime.hub import from_pretrained
from editar.runtime.manifest import load_manifest, stored_folder
from editar.weights.fetch import hub_file
from editar.weights.read import read_file

T = TypeVar("T")
State = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Missing:
    """Columns that cannot be scored here, and the one-line reason with what to fetch."""

    columns: tuple[str, ...]
    reason: str

    def __str__(self) -> str:
        return f"without {', '.join(self.columns)}: {self.reason}"


# Field of NetworkSources -> name in third_party/weights.yaml
FETCH_NAMES = {
    "structure": "dino_vitb8",
    "lpips": "lpips_squeeze",
    "clip": "clip_l14",
    "depth": "dpt_large",
    "segmenter": "deeplabv3_r101_cocostuff",
    "inception": "inception_fid",
}


def load_or_leave(
    name: str, source: str | None, columns: tuple[str, ...], load: Callable[[str], T]
) -> tuple[T | None, Missing | None]:
    """`load(source)`, or None and what is missing. A damaged or wrong file still raises.

    `name` is a field of NetworkSources. A source that looks like a local path (it begins with
    checkpoints/ or ends in .pt or .pth) is never asked from the hub.
    """
    if source is None:
        return None, Missing(columns, f"networks.{name} is null")
    local = Path(source).exists()
    if not local and (source.startswith("checkpoints/") or Path(source).suffix in (".pt", ".pth")):
        fetch = f"python scripts/fetch_weights.py {FETCH_NAMES[name]}"
        return None, Missing(columns, f"no {source}; get it with `{fetch}`")
    try:
        return load(source), None
    except (CheckpointError, ConfigError) as error:
        if local:
            raise
        return None, Missing(columns, str(error))


def read_state(source: str | Path) -> State:
    """The tensors of a file or hub id, whether bare or under "state_dict" / "model"; safe loading only.

    Raises CheckpointError.
    """
    path = Path(source)
    if not path.is_file():
        path = hub_file(str(source))
    raw = read_file(path)
    for key in ("state_dict", "model"):
        if isinstance(raw, dict) and isinstance(raw.get(key), dict):
            raw = raw[key]
    if not isinstance(raw, dict) or not all(isinstance(value, torch.Tensor) for value in raw.values()):
        raise CheckpointError(f"{source}: holds no plain dictionary of tensors")
    return raw


def frozen(module: nn.Module, device: torch.device) -> Any:
    """The module itself, in evaluation mode, without gradients, on the device."""
    return module.to(device).eval().requires_grad_(False)


# --- transformers ---------------------------------------------------------------------------------

# Intel/dpt-large has no such weights: the deepest fusion layer has no second input to put through them.
UNUSED = {"dpt": "neck.fusion_stage.layers.0.residual_layer1."}


def pretrained(cls: Any, source: str, kind: str) -> Any:
    """A transformers model of the `model_type` kind, from a hub id or its folder.

    Raises ConfigError for what cannot be loaded, is of another kind, or lacks weights: transformers
    would go on with random ones.
    """
    from transformers import AutoConfig
    from transformers.utils import logging

    found = from_pretrained(AutoConfig, source).model_type
    if found != kind:
        raise ConfigError(f"{source}: a model of type {found}, {kind} is needed here; give another hub id or folder")
    loud = logging.get_verbosity()
    logging.set_verbosity_error()  # or it prints a table of what the line below says
    try:
        model, report = from_pretrained(cls, source, output_loading_info=True)
    finally:
        logging.set_verbosity(loud)
    missing = sorted(key for key in report["missing_keys"] if not key.startswith(UNUSED.get(kind, "\0")))
    if missing:
        lacking = f"its file lacks {len(missing)} of the {kind}'s weights, first {missing[0]}"
        raise ConfigError(f"{source}: {lacking}; fetch it again")
    return model


# --- which networks scored -------------------------------------------------------------------------


def weights_files(source: str | Path) -> list[Path]:
    """The weights behind a source that was loaded: the file, a folder's, or a hub id's in the hub's cache."""
    path = Path(stored_folder(str(source)))
    if path.is_file():
        return [path]
    if path.is_dir():
        return sorted(path.glob("*.safetensors")) or sorted(path.glob("*.bin"))
    from huggingface_hub import try_to_load_from_cache

    plain = re.fullmatch(r"[\w.-]+/[\w.-]+", str(source))  # transformers takes the first of these
    names = ("model.safetensors", "pytorch_model.bin") if plain else ()
    found = (try_to_load_from_cache(str(source), name) for name in names)
    return [Path(file) for file in found if isinstance(file, str)][:1] or [hub_file(str(source))]


def network_records(
    sources: NetworkSources, networks: Mapping[str, tuple[str, ...]], columns: Iterable[str]
) -> dict[str, dict[str, str]]:
    """Network -> source and checksum of its weights, of those of `networks` (name -> its columns) that score any
    of `columns`."""
    records, scored = {}, set(columns)
    for name in (name for name, own in networks.items() if scored & set(own)):
        source = str(getattr(sources, name))
        files = weights_files(source)
        records[name] = {"source": source, "sha256": checksum(files[0]) if len(files) == 1 else content_sum(files)}
    return records


def unofficial(records: dict[str, dict[str, str]]) -> list[str]:
    """Reasons against comparing with published rows: networks whose published checksum is another one.
    Only what its publisher put into the file's name is known."""
    entries = load_manifest()
    return [
        f"networks.{name} is not {file.file}"
        for name, record in records.items()
        for file in entries[FETCH_NAMES[name]].files
        if not record["sha256"].startswith(file.sha256 or file.sha256_prefix or "")
    ]
