"""Networks of transformers and diffusers, and checkpoints, from a hub id or the folder that one was saved in."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from editar.errors import CheckpointError, ConfigError, one_line
from editar.runtime.manifest import fetch_command, stored_folder


def from_pretrained(cls: Any, name: str, **options: Any) -> Any:
    """`cls.from_pretrained(name, **options)`; a hub id that `scripts/fetch_weights.py` fetched is read from there.
    Raises ConfigError, one line that says what to do."""
    try:
        return cls.from_pretrained(stored_folder(name), **options)
    except Exception as error:  # missing, private, offline, damaged, other shapes: many types, one meaning
        command = None if Path(name).exists() else fetch_command(name)
        advice = f"get it with `{command}`" if command else "give a hub id or the folder it was saved in"
        raise ConfigError(f"cannot load {name}: {told(error)}; {advice}") from None


def local_folder(source: str | Path, files: Sequence[str], revision: str | None = None) -> Path:
    """A folder here, or the copy of these files of the hub repository `owner/name`, downloaded if it is not here yet.

    Raises CheckpointError, one line, for a repository that does not exist, is private or cannot be reached.
    """
    name = str(source)
    folder = Path(stored_folder(name))
    if folder.is_dir() or (folder.parent.is_dir() and "/" in name.removeprefix("./")):
        return folder
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        raise CheckpointError(
            f"{name}: no such folder; give the folder that editar.train wrote, or owner/name on the hub"
        )
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=list(files)))
    except Exception as error:  # missing, private, offline: many types, one meaning
        raise CheckpointError(f"{name}: no folder here, and the hub did not give it ({told(error)})") from None


def told(error: Exception) -> str:
    """The hub's message in one line, without its advice, which for a pickle would be to run it."""
    if "Weights only load failed" in str(error):
        return "its weights are a pickle that holds more than tensors; take safetensors"
    return one_line(error).split(" For details look")[0]
