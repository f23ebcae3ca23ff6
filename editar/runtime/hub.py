"""Networks of transformers and diffusers, from a hub id or the folder that one was saved in."""

from __future__ import annotations

from typing import Any

from editar.errors import ConfigError, one_line
from editar.runtime.manifest import stored_folder


def from_pretrained(cls: Any, name: str, **options: Any) -> Any:
    """`cls.from_pretrained(name, **options)`; a hub id that `scripts/fetch_weights.py` fetched is read from there.
    Raises ConfigError, one line that says what to do."""
    try:
        return cls.from_pretrained(stored_folder(name), **options)
    except Exception as error:  # missing, private, offline, damaged, other shapes: many types, one meaning
        reason = one_line(error).split(" For details look")[0]
        raise ConfigError(f"cannot load {name}: {reason}; give a hub id or the folder it was saved in") from None
