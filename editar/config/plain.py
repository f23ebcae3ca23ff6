"""Configs from YAML alone, for places that have neither Hydra nor OmegaConf: benchmarks on a bare image, weights.

Entries compose theirs (`editar.runtime.entry`), with overrides, interpolations and explained errors.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from editar.config.compose import read_yaml
from editar.config.entries import TrainConfig
from editar.config.fields import check_fields
from editar.errors import ConfigError

T = TypeVar("T")

PACKAGE = Path(__file__).resolve().parents[1]
# In an installed wheel inside the package (setup.py), in a checkout beside it.
CONFIG_DIR = (PACKAGE if (PACKAGE / "configs").is_dir() else PACKAGE.parent) / "configs"


def from_plain(cls: type[T], values: Mapping[str, Any], prefix: str = "") -> T:
    """Nested mappings, as YAML gives them, -> a checked dataclass; what is missing keeps its default.

    Raises ConfigError, with `prefix` before the key, for an unknown key and for values out of range; types are
    taken as they come.
    """
    cfg = _build(cls, values, prefix)
    check_fields(cfg)
    return cfg


def plain_training(sections: Mapping[str, str], **values: Any) -> TrainConfig:
    """A resolved TrainConfig: `{"gpt": "xl"}` is `configs/gpt/xl.yaml`; `values` as in a config file, laid over it.

    Where neither says anything the dataclasses' defaults hold, which are the paper's.
    """
    for section, name in sections.items():
        file = CONFIG_DIR / section / f"{name}.yaml"
        if not file.is_file():
            known = sorted(path.stem for path in file.parent.glob("*.yaml"))
            raise ConfigError(f"{section}={name} is not one of {', '.join(known)}")
        values[section] = read_yaml(file) | values.get(section, {})
    cfg = from_plain(TrainConfig, values)
    cfg.resolve()
    return cfg


def _build(cls: type[T], values: Mapping[str, Any], prefix: str) -> T:
    hints = get_type_hints(cls)
    unknown = [f"{prefix}{key}" for key in values if key not in hints]
    if unknown:
        raise ConfigError(f"unknown key {unknown[0]!r}; known there: {', '.join(sorted(hints))}")
    return cls(**{key: _fit(hints[key], value, f"{prefix}{key}") for key, value in values.items()})


def _fit(kind: Any, value: Any, key: str) -> Any:
    if is_dataclass(kind):
        return _build(kind, value, f"{key}.")  # type: ignore[arg-type]
    if get_origin(kind) is dict:
        return {name: _fit(get_args(kind)[1], item, f"{key}.{name}") for name, item in value.items()}
    if get_origin(kind) is list:
        return [_fit(get_args(kind)[0], item, f"{key}.{index}") for index, item in enumerate(value)]
    return float(value) if kind is float else value  # YAML reads 1 and 1e-5 as a whole number and a text
