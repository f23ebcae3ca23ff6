"""From OmegaConf nodes to checked dataclasses, with errors a person can act on.

OmegaConf is imported where it is used: `editar.config.plain` and all that needs no composing go without it.
"""

from __future__ import annotations

import json
import re
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import yaml  # type: ignore[import-untyped]

from editar.config.fields import check_fields
from editar.errors import ConfigError, one_line

if TYPE_CHECKING:
    from omegaconf import DictConfig
    from omegaconf.errors import OmegaConfBaseException

T = TypeVar("T")


def to_dataclass(cls: type[T], cfg: DictConfig | dict[str, Any]) -> T:
    """Merge a composed config into `cls`, resolve and check it. Raises ConfigError."""
    from omegaconf import DictConfig, OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        plain = OmegaConf.to_container(cfg) if isinstance(cfg, DictConfig) else cfg  # keys added with + are checked too
        merged = OmegaConf.merge(OmegaConf.structured(cls), plain)
        missing = sorted(OmegaConf.missing_keys(merged))
        if missing:
            raise ConfigError(f"missing: give {', '.join(f'{key}=...' for key in missing)} on the command line")
        result: Any = OmegaConf.to_object(merged)
    except OmegaConfBaseException as error:
        raise explain(error, cls) from None
    check_fields(result)
    result.resolve()
    return result


ALIASES = 32  # in a file; third_party/weights.yaml has some


class OncePerKey(yaml.SafeLoader):
    """Refuses a key that is given twice, of which YAML takes the last one silently, and more than ALIASES aliases, by
    which a short file can stand for an endless one."""

    aliases = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            self.aliases += 1
            if self.aliases > ALIASES:
                mark = self.peek_event().start_mark
                raise yaml.composer.ComposerError(None, None, f"more than {ALIASES} aliases", mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        if twice := [key for key in keys if keys.count(key) > 1]:
            raise yaml.constructor.ConstructorError(None, None, f"{twice[0]!r} is given twice", node.start_mark)
        return super().construct_mapping(node, deep)


def read_yaml(path: str | Path) -> dict[str, Any]:
    """The mapping in a YAML file, nothing resolved. Raises ConfigError, one line that names the file, for anything
    else."""
    if Path(path).exists() and not Path(path).is_file():  # reading a pipe would wait for a writer
        raise ConfigError(f"{path}: is no file; copy it anew or give another folder")
    try:
        found = yaml.load(Path(path).read_text(encoding="utf-8"), OncePerKey)
        json.dumps(found, default=str, skipkeys=True)  # ValueError for what contains itself
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # no YAML, no UTF-8, nested without end
        raise ConfigError(f"{path}: damaged ({one_line(error)}); copy it anew or give another folder") from None
    if not isinstance(found, dict):
        raise ConfigError(f"{path}: damaged (no mapping of settings); copy it anew or give another folder")
    return found


def from_yaml(cls: type[T], path: str | Path) -> T:
    """The config that a file of `to_yaml` holds. Raises ConfigError that names the file."""
    found = read_yaml(path)
    last = fields(cls)[-1].name  # type: ignore[arg-type]
    if last not in found:  # as in every file of `to_yaml`
        raise ConfigError(f"{path}: ends early, without {last}, the last section; copy it anew")
    try:
        return to_dataclass(cls, found)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


def explain(error: OmegaConfBaseException, schema: Any) -> ConfigError:
    """OmegaConf's several-line errors as one line with the key, the value and what is known."""
    from omegaconf import DictConfig, OmegaConf
    from omegaconf.errors import ConfigAttributeError, ConfigKeyError

    key = str(getattr(error, "full_key", None) or "config")
    if isinstance(error, (ConfigKeyError, ConfigAttributeError)):
        node: Any = OmegaConf.structured(schema)
        for part in key.split(".")[:-1]:
            node = node[part] if isinstance(node, DictConfig) and part in node else {}
        known = ", ".join(sorted(str(name) for name in node))
        return ConfigError(f"unknown key {key!r}" + (f"; known there: {known}" if known else ""))
    return ConfigError(f"{key}: {str(error).splitlines()[0]}")


def override(section: T, changes: dict[str, Any], name: str) -> T:
    """A copy of dataclass `section` with `changes` applied, typed and checked like any config."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    for spec in fields(section):  # type: ignore[arg-type]
        if spec.type in (bool, "bool") and not isinstance(changes.get(spec.name, False), bool):
            raise ConfigError(f"{name}.{spec.name}={changes[spec.name]} is neither true nor false")
    try:
        merged = OmegaConf.merge(OmegaConf.structured(section), changes)
        result: Any = OmegaConf.to_object(merged)
    except OmegaConfBaseException as error:
        raise ConfigError(f"{name}: {explain(error, section)}") from None
    check_fields(result, f"{name}.")
    return result


def literal(text: str) -> str:
    """How OmegaConf has to be given `text` so that nothing in it is an interpolation."""
    return re.sub(r"(\\*)(\$\{)", r"\1\1\\\2", text)


def to_yaml(cfg: Any) -> str:
    """A config as `to_dataclass` reads it back, whatever its texts hold."""
    from omegaconf import OmegaConf

    return OmegaConf.to_yaml(OmegaConf.create(_literals(asdict(cfg))))


def _literals(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _literals(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_literals(item) for item in value]
    return literal(value) if isinstance(value, str) else value
