"""How an entry starts: compose the YAML, make the dataclass, run, and turn known errors into one line."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any, NoReturn, ParamSpec, TypeVar

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from editar.config import CONFIG_DIR, explain, to_dataclass
from editar.errors import ConfigError, LostProcess, UserError
from editar.runtime.log import say
from editar.runtime.stop import EXIT_STOPPED, Stopped

P = ParamSpec("P")
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
    """Body of an entry that takes `key=value` settings: `action(config)`, errors as `told_in_one_line` says.

    `program` is what help and errors call it (default: `editar.NAME`); `defaults` are overrides that
    the command line may override again.
    """
    arguments = [*defaults, *sys.argv[1:]]
    with told_in_one_line(program or f"editar.{name}"):
        if any(argument in ("-h", "--help") for argument in arguments):
            settings = [argument for argument in arguments if argument not in ("-h", "--help")]
            print(f"usage: python {program or f'-m editar.{name}'} key=value ...   (??? = has to be given)\n")
            print(OmegaConf.to_yaml(compose(cls, name, settings)))
            return
        action(load_config(cls, name, arguments))


def script(program: str) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Decorator of a script's `main`: errors as `told_in_one_line` says."""

    def wrap(main: Callable[P, T]) -> Callable[P, T]:
        @wraps(main)
        def guarded(*args: P.args, **kwargs: P.kwargs) -> T:
            with told_in_one_line(program):
                return main(*args, **kwargs)

        return guarded

    return wrap


@contextmanager
def told_in_one_line(program: str) -> Iterator[None]:
    """A mistake of the user's ends in one line and exit code 2, a stop signal in EXIT_STOPPED, Ctrl-C in 130."""
    try:
        yield
    except Stopped as stopped:
        if os.environ.get("RANK", "0") == "0":
            say(f"{program}: {stopped}")
        raise SystemExit(EXIT_STOPPED) from None
    except KeyboardInterrupt:
        say(f"\n{program}: interrupted; the same command goes on where it stopped")
        raise SystemExit(130) from None
    except OSError as error:
        if error.filename is None:
            raise  # not about a file: nothing a line could explain
        _tell(program, error, f"{error.filename}: {error.strerror}")
    except UserError as error:
        _tell(program, error, str(error))


def _tell(program: str, error: Exception, text: str) -> NoReturn:
    """Print an error once, although several processes may raise it. The first process prints immediately;
    the others wait, and torchrun ends them meanwhile. A process that lost its connection to another one waits
    longest, because that other process knows the cause."""
    if isinstance(error, LostProcess):
        time.sleep(20)
    elif os.environ.get("RANK", "0") != "0":
        time.sleep(5)
    say(f"{program}: {text}")
    raise SystemExit(2) from None
