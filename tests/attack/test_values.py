"""Every field of every config refuses what it cannot mean; the cases are made from the fields themselves."""

from __future__ import annotations

import math
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, get_args, get_type_hints

import pytest
from omegaconf import OmegaConf

from editar.config import (
    EditConfig,
    EvalConfig,
    SamplingConfig,
    SourceConfig,
    TokenizerTrainConfig,
    TrainConfig,
    override,
    to_dataclass,
    to_yaml,
)
from editar.config.fields import LARGEST
from editar.errors import ConfigError
from editar.runtime.entry import load_config

ENTRIES: dict[str, tuple[type, list[str]]] = {
    "train": (TrainConfig, ["output_dir=x"]),
    "train_tokenizer": (TokenizerTrainConfig, ["output_dir=x"]),
    "edit": (EditConfig, ["image=a", "instruction=b", "checkpoint=c"]),
    "eval": (EvalConfig, ["checkpoint=a", "output_dir=b"]),
}


def bad_values(spec: Any, kind: Any) -> list[Any]:
    """Values of the field's type, or near it, that it must not take."""
    kinds, limits = {kind, *get_args(kind)}, spec.metadata
    if kinds & {bool, Any} or is_dataclass(kind):
        return [[1], "perhaps"] if bool in kinds else []
    if kinds & {int, float}:
        found: list[Any] = [math.nan, math.inf, -math.inf, "many"]
        whole = float not in kinds
        found += [limits["least"] - 1, -1e-6 + limits["least"]] if "least" in limits else [-LARGEST - 1] * whole
        found += [limits["most"] + 1] if "most" in limits else [LARGEST + 1, 10**30] * whole
        found += [limits["above"], -1] if "above" in limits else []
        return [*found, limits["below"]] if "below" in limits else found
    if "choices" in limits:
        return ["nonsense", " ", limits["choices"][-1].upper() + "x"]
    if str in kinds:
        return [] if spec.default == "" else ["", "  "]
    return []


def cases(cls: Any, prefix: str = "") -> list[tuple[str, Any]]:
    found = []
    for spec in fields(cls):
        kind, key = get_type_hints(cls)[spec.name], prefix + spec.name
        if is_dataclass(kind):
            found += cases(kind, f"{key}.")
        else:
            lists = {list[int]: int, list[str]: str}
            wrapped = [[value] for value in bad_values(spec, lists[kind])] if kind in lists else bad_values(spec, kind)
            found += [(key, value) for value in wrapped]
            found += [(key, [])] if kind in lists and spec.metadata else []
    return found


def refused(plain: dict[str, Any], cls: type, key: str, value: Any) -> None:
    changed = OmegaConf.create(plain)
    OmegaConf.update(changed, key, value, force_add=True)
    with pytest.raises(ConfigError) as error:
        to_dataclass(cls, changed)
    assert "\n" not in str(error.value) and key.rsplit(".", 1)[-1] in str(error.value), (key, value, str(error.value))


@pytest.mark.slow
@pytest.mark.parametrize("entry", ENTRIES)
def test_bad_values_of_every_field(entry: str) -> None:
    cls, given = ENTRIES[entry]
    plain = OmegaConf.to_container(OmegaConf.create(to_yaml(load_config(cls, entry, given))))
    assert isinstance(plain, dict)
    made = cases(cls)
    if cls is TrainConfig:
        made += cases(SourceConfig, "data.sources.nano.")
        made += [(f"data.sources.nano.{name}", value) for name, value in (("weight", 0), ("prompt", "no place"))]
    for key, value in made:
        refused(plain, cls, key, value)
    print(f"{entry}: {len(made)} bad values of {len({key for key, _ in made})} fields refused")


def test_every_number_declares_what_it_may_be() -> None:
    """Only weights of losses and the like need no bound of their own; there is none left without one."""
    classes = [cls for cls, _ in ENTRIES.values()]
    without = []
    for cls in (*classes, SourceConfig, SamplingConfig):
        for spec in fields(cls):
            kinds = {get_type_hints(cls)[spec.name], *get_args(get_type_hints(cls)[spec.name])}
            if kinds & {int, float} and not {"least", "above"} & spec.metadata.keys() and spec.default is not MISSING:
                without.append(f"{cls.__name__}.{spec.name}")
    assert without == ["SourceConfig.weight"]  # whose message says how to drop the source


@pytest.mark.parametrize("value", ["nan", "inf", "-1", "0.5", "many"])
@pytest.mark.parametrize("entry", ["edit", "eval"])
def test_sampling_settings_are_judged_before_anything_is_loaded(entry: str, value: str) -> None:
    cls, given = ENTRIES[entry]
    with pytest.raises(ConfigError, match=r"sampling.*cfg_scale"):
        load_config(cls, entry, [*given, f"+sampling.cfg_scale={value}"])
    with pytest.raises(ConfigError, match="unknown key 'scale'"):
        load_config(cls, entry, [*given, "+sampling.scale=2"])


@pytest.mark.parametrize("key", ["+optim.foo", "+gpt.foo", "+foo", "+data.foo", "+tokenizer.foo", "++optim.foo"])
@pytest.mark.parametrize("entry", ["train", "train_tokenizer"])
def test_keys_added_with_a_plus_must_exist(entry: str, key: str) -> None:
    cls, given = ENTRIES[entry]
    with pytest.raises(ConfigError, match="unknown key"):
        load_config(cls, entry, [*given, f"{key}=3"])


def test_overrides_of_a_section_are_judged_too() -> None:
    for value in (math.nan, math.inf, 0.5, -1):
        with pytest.raises(ConfigError, match=r"sampling\.cfg_scale"):
            override(SamplingConfig(), {"cfg_scale": value}, "sampling")
