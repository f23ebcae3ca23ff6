"""What the fields of a config may hold: declared at the field, checked in one place for every config."""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping
from dataclasses import Field, field, fields, is_dataclass
from typing import Any, get_args, get_origin, get_type_hints

from editar.errors import ConfigError

LARGEST = 2**32 - 1  # of any whole number: seeds too must fit every library's generator
FLOAT32 = 3.4e38


def setting(default: Any, **limits: Any) -> Any:
    """A dataclass field with limits: `least` and `most` (inclusive), `above` and `below` (exclusive), `choices`.

    `without`: characters that a text must not have. `recorded`: a text that goes into files, which are UTF-8.
    `may_change`: may differ when a run goes on. `text`: whether the command line takes it letter by letter; by
    default texts without choices.
    """
    return field(default=default, metadata=limits)


def check_choice(key: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ConfigError(f"{key}={value} is not one of {', '.join(allowed)}")


def check_utf8(key: str, text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ConfigError(f"{key}={text!a} is not UTF-8, as what records it must be; give another name") from None


def check_fields(cfg: Any, prefix: str = "") -> None:
    """Whether every field of a config, and of those in it, is within its limits. Numbers are finite without being
    asked to, and texts without an empty default not empty. Raises ConfigError."""
    for spec in fields(cfg):
        _check(prefix + spec.name, getattr(cfg, spec.name), spec)


def _check(key: str, value: Any, spec: Field[Any]) -> None:
    if is_dataclass(value):
        check_fields(value, f"{key}.")
    elif isinstance(value, dict):
        for name, item in value.items():
            _check(f"{key}.{name}", item, spec)
    elif isinstance(value, list):
        if not value and spec.metadata:
            raise ConfigError(f"{key} is empty; it needs at least one value")
        for item in value:
            _check(key, item, spec)
    elif isinstance(value, str):
        if "choices" in spec.metadata:
            check_choice(key, value, spec.metadata["choices"])
        elif not value.strip() and spec.default != "":
            raise ConfigError(f"{key} is empty; give a value or leave it out")
        elif found := set(value) & set(spec.metadata.get("without", "")):
            raise ConfigError(f"{key}={value} must not have {' '.join(sorted(found))} in it")
        if spec.metadata.get("recorded"):
            check_utf8(key, value)
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        _check_number(key, value, spec.metadata)


def _check_number(key: str, value: float, limits: Mapping[str, Any]) -> None:
    if not math.isfinite(value):
        raise ConfigError(f"{key}={value} is not a finite number")
    most = LARGEST if isinstance(value, int) else FLOAT32
    ends = {"least": -most, "most": most, **limits}
    for name, wrong, words in (
        ("least", operator.lt, "at least"),
        ("most", operator.gt, "at most"),
        ("above", operator.le, "above"),
        ("below", operator.ge, "below"),
    ):
        if name in ends and wrong(value, ends[name]):
            raise ConfigError(f"{key}={value} must be {words} {ends[name]}")


def is_open(cls: Any, key: str) -> bool:
    """Whether the dotted `key` of config class `cls` lies in a section that holds only what is given, such as
    `sampling` of editar.edit."""
    section, _, name = key.partition(".")
    return bool(name) and get_type_hints(cls).get(section) == dict[str, Any]


def kind_of(cls: Any, key: str) -> tuple[Any, bool]:
    """The type of the dotted `key` of config class `cls`, None for an unknown key, and whether its values are free
    texts, paths or names, which may hold any letters."""
    kind, limits = cls, {}
    for part in key.split("."):
        if is_dataclass(kind):
            spec = next((spec for spec in fields(kind) if spec.name == part), None)
            if spec is None:
                return None, False
            kind, limits = get_type_hints(kind)[part], dict(spec.metadata)
        elif get_origin(kind) is dict:
            kind, limits = get_args(kind)[1], {}
        else:
            return None, False
    return kind, limits.get("text", kind in (str, str | None) and "choices" not in limits)
