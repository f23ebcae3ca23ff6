"""How an entry starts: compose the YAML, make the dataclass, run, and turn known errors into one line."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from typing import Any, NoReturn, TypeVar

from omegaconf.errors import OmegaConfBaseException

from editar.config import CONFIG_DIR, ConfigError, explain, to_dataclass
from editar.runtime.distributed import LostProcess
from editar.runtime.log import say
from editar.runtime.stop import EXIT_STOPPED, Stopped

T = TypeVar("T")


def compose(cls: type, name: str, overrides: list[str]) -> Any:
    """The composed config `configs/NAME.yaml` under `key=value` overrides, as an OmegaConf node.

    The dataclass is the schema (`NAME_schema` in the YAML's defaults), so every field can be
    overridden and an unknown key stops here.
    """
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from hydra.core.config_store import ConfigStore
    from hydra.errors import HydraException

    if not CONFIG_DIR.is_dir():
        raise ConfigError(f"{CONFIG_DIR} is missing: install editar with `pip install -e .` from a clone")
    ConfigStore.instance().store(name=f"{name}_schema", node=cls)
    try:
        with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
            return hydra_compose(name, overrides)
    except HydraException as error:
        if isinstance(error.__cause__, OmegaConfBaseException):
            raise explain(error.__cause__, cls) from None
        raise ConfigError(" ".join(str(error).split())) from None
    except OmegaConfBaseException as error:
        raise explain(error, cls) from None


def load_config(cls: type[T], name: str, overrides: list[str]) -> T:
    return to_dataclass(cls, compose(cls, name, overrides))


def run(
    cls: type[T], name: str, action: Callable[[T], object], program: str | None = None, defaults: tuple[str, ...] = ()
) -> None:
    """Entry body: `action(config)`; a mistake of the user's ends in one line and exit code 2.

    `program` is what help and errors call it (default: `editar.NAME`); `defaults` are overrides that
    the command line may override again.
    """
    arguments = [*defaults, *sys.argv[1:]]
    if any(argument in ("-h", "--help") for argument in arguments):
        print(
            f"usage: python {program or f'-m editar.{name}'} key=value ...   (keys and defaults: configs/{name}.yaml)\n"
        )
        from editar.config import to_yaml

        print(to_yaml(cls))
        return
    try:
        action(load_config(cls, name, arguments))
    except Stopped as stopped:
        if os.environ.get("RANK", "0") == "0":
            say(f"{program or f'editar.{name}'}: {stopped}")
        raise SystemExit(EXIT_STOPPED) from None
    except OSError as error:
        if error.filename is None:
            raise  # not about a file: nothing a line could explain
        _tell(program or f"editar.{name}", error, f"{error.filename}: {error.strerror}")
    except user_errors() as error:
        _tell(program or f"editar.{name}", error, str(error))


def _tell(program: str, error: Exception, text: str) -> NoReturn:
    _let_others_speak(error)
    print(f"{program}: {text}", file=sys.stderr)
    raise SystemExit(2) from None


def _let_others_speak(error: Exception) -> None:
    """Of several processes only one should tell an error. The first speaks at once; torchrun then ends the
    others while they wait here. What a lost connection hides is told where it happened."""
    if isinstance(error, LostProcess):
        time.sleep(20)
    elif os.environ.get("RANK", "0") != "0":
        time.sleep(5)


def user_errors() -> tuple[type[Exception], ...]:
    """Errors whose text is written for the user."""
    from editar.images import ImageError
    from editar.runtime.files import CheckpointError, DataError, TrainingError

    return (ConfigError, DataError, ImageError, CheckpointError, TrainingError, LostProcess)
