"""How an entry starts: compose the YAML, make the dataclass, run, and turn known errors into one line."""

from __future__ import annotations

import argparse
import errno
import io
import os
import re
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Any, NoReturn, ParamSpec, TypeVar, get_args

from editar.config import CONFIG_DIR, explain, is_open, kind_of, literal, to_dataclass
from editar.errors import ConfigError, LostProcess, UserError, one_line, out_of_memory
from editar.runtime.log import echo, say
from editar.runtime.stop import EXIT_STOPPED, Stopped

LONGEST = 1200  # letters of an error, which may quote paths of thousands

P = ParamSpec("P")
T = TypeVar("T")


def compose(cls: type, name: str, overrides: list[str]) -> Any:
    """The composed config `configs/NAME.yaml` under `key=value` overrides, as an OmegaConf node.

    The dataclass is the schema (`NAME_schema` in the YAML's defaults), so every field can be
    overridden and an unknown key stops here. Texts and paths arrive letter by letter (`as_written`).
    """
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from hydra.core.config_store import ConfigStore
    from hydra.errors import HydraException, OverrideParseException
    from omegaconf.errors import OmegaConfBaseException

    if not CONFIG_DIR.is_dir():
        raise ConfigError(f"{CONFIG_DIR} is missing: install editar again, from a clone or a whole wheel")
    ConfigStore.instance().store(name=f"{name}_schema", node=cls)
    try:
        with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
            return hydra_compose(name, [as_written(cls, override) for override in overrides])
    except OverrideParseException as error:
        raise ConfigError(f"{error.override}: not readable as KEY=VALUE; quote what is no letter or digit") from None
    except (HydraException, ValueError, OSError) as error:  # null for a config group, a key that no file could have
        if isinstance(error.__cause__, OmegaConfBaseException):
            raise explain(error.__cause__, cls) from None
        raise error if isinstance(error, ConfigError) else ConfigError(one_line(error)) from None
    except OmegaConfBaseException as error:
        raise explain(error, cls) from None


def as_written(cls: type, override: str) -> str:
    """An override whose value, if the field holds free text or a path, is quoted for Hydra and OmegaConf, which would
    read commas, apostrophes, `${...}` or `1e5` in their own way. `null` stays null, and what is quoted already loses
    its quotes. A key of an open section needs no plus sign. Raises ConfigError for `???`, which OmegaConf cannot hold,
    for a value without a key, for Hydra's own settings, for an empty mapping, which Hydra would merge to no effect, for
    a group's choice that there is not, and for a number where OmegaConf would take any as true."""
    key, given, text = override.partition("=")
    if (given and not key.strip("+~")) or override.startswith("-"):
        raise ConfigError(f"{override}: a setting is KEY=VALUE, and --help lists them")
    if re.match(r"[+~]*hydra\b", key):
        raise ConfigError(f"{key}: Hydra's own settings have no effect here; give output_dir, and none of hydra.*")
    if text in ("???", "'???'", '"???"'):
        raise ConfigError(f"{key}=??? stands for a value that is missing; a file of that name is ./???")
    if given and is_open(cls, key):
        return f"++{override}"
    group = key.lstrip("+").partition("@")[0]
    choices = sorted(path.stem for path in CONFIG_DIR.glob(f"{group}/*.yaml")) if re.fullmatch(r"\w+", group) else []
    if given and choices and text.strip("'\"") not in choices:
        raise ConfigError(f"{override}: {group} is one of {', '.join(choices)}")
    kind, free_text = kind_of(cls, key.lstrip("+"))
    if given and bool in (get_args(kind) or [kind]) and text.lower() not in ("true", "false", "null"):
        raise ConfigError(f"{override}: neither true nor false")
    if not free_text and text.replace(" ", "") == "{}":
        raise ConfigError(f"{override}: an empty mapping changes nothing; ~{key}.NAME leaves an entry out")
    if not given or not free_text or text == "null":
        return override
    if key == "results" and text[:1] in ("{", "["):  # several of them
        return override
    if len(text) > 1 and (quote := text[0]) == text[-1] and quote in "'\"":
        inner = text[1:-1].replace(f"\\{quote}", "\0")  # no argument of a program holds a null character
        text = text if quote in inner else inner.replace("\0", quote)
    quoted = re.sub(r"(\\+)(?='|\Z)", r"\1\1", literal(text)).replace("'", "\\'")
    return f"{key}='{quoted}'"


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
    with told_in_one_line(program or f"editar.{name}") as told:
        if any(argument in ("-h", "--help") for argument in arguments):
            from omegaconf import OmegaConf

            settings = [argument for argument in arguments if argument not in ("-h", "--help")]
            usage = f"usage: python {program or f'-m editar.{name}'} key=value ...   (??? = has to be given)\n"
            echo(f"{usage}\n{OmegaConf.to_yaml(compose(cls, name, settings))}")
            return
        cfg = load_config(cls, name, arguments)
        told.folder = getattr(cfg, "output_dir", None)
        action(cfg)


def at_least(least: int, most: int | None = None) -> Callable[[str], int]:
    """A script's whole number, as the `type` of an argparse argument: `least` or more, and no more than `most`."""

    def number(text: str) -> int:
        if (value := int(text)) < least:
            raise argparse.ArgumentTypeError(f"{value} is less than {least}")
        if most is not None and value > most:
            raise argparse.ArgumentTypeError(f"{value} is more than {most}")
        return value

    return number


def script(program: str) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Decorator of a script's `main`: errors as `told_in_one_line` says."""

    def wrap(main: Callable[P, T]) -> Callable[P, T]:
        @wraps(main)
        def guarded(*args: P.args, **kwargs: P.kwargs) -> T:
            with told_in_one_line(program):
                return main(*args, **kwargs)

        return guarded

    return wrap


@dataclass
class Told:
    """Where tracebacks go: the output folder if there is one, else the temporary folder."""

    folder: str | None = None

    def write_traceback(self) -> Path:
        name = f"traceback_{time.strftime('%Y%m%d_%H%M%S')}_{os.getpid()}.txt"
        for folder in (self.folder, tempfile.gettempdir()):
            if folder is not None and os.path.isdir(folder):
                with suppress(OSError):  # the folder's disk may be full: the temporary one is next
                    path = Path(folder) / name
                    path.write_text(traceback.format_exc(), encoding="utf-8", errors="backslashreplace")
                    return path
        traceback.print_exc()
        return Path("the lines above")


@contextmanager
def told_in_one_line(program: str) -> Iterator[Told]:
    """A mistake of the user's ends in one line and exit code 2, a stop signal in EXIT_STOPPED, Ctrl-C in 130; of any
    other error a line and exit code 1 remain, and the traceback in a file."""
    told = Told()
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # the shell closed it
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115 - for as long as the process lives
    if isinstance(sys.stdout, io.TextIOWrapper):  # a file's name is printed as it is, which need not even be UTF-8
        sys.stdout.reconfigure(encoding="utf-8", errors="surrogateescape")
    try:
        try:
            os.getcwd()
        except FileNotFoundError:  # which MKL answers by ending the process
            raise ConfigError("the working directory does not exist any more; change to one that does") from None
        yield told
    except Stopped as stopped:
        if os.environ.get("RANK", "0") == "0":
            say(f"{program}: {stopped}")
        raise SystemExit(EXIT_STOPPED) from None
    except KeyboardInterrupt:
        say(f"\n{program}: interrupted; the same command goes on where it stopped")
        raise SystemExit(130) from None
    except UserError as error:
        _tell(program, error, str(error))
    except Exception as error:
        if isinstance(error, OSError) and error.filename is not None:
            _tell(program, error, f"{error.filename}: {error.strerror}")
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EBADF):
            _tell(program, error, f"what it prints could not be written: {error.strerror}")
        if isinstance(error, UnicodeEncodeError):
            name = str(error.object)[max(0, error.start - 40) : error.end + 40]
            why = f"a name that {error.encoding}, this locale's encoding, cannot hold; set LC_ALL=C.UTF-8"
            if error.reason == "surrogates not allowed":
                why = "a name that is not UTF-8, which cannot be recorded; give another one"
            _tell(program, error, f"{name!a}: {why}")
        if out_of_memory(error):
            place = f"where it happened is in {told.write_traceback()}"
            advice = 'take less at once, as "Memory" in docs/troubleshooting.md says'
            _tell(program, error, f"out of memory ({one_line(error)}); {advice}; {place}")
        text = f"{type(error).__name__}: {one_line(error)}"
        _tell(program, error, f"{text} (an error of editar or of its surroundings; see {told.write_traceback()})", 1)


def _tell(program: str, error: Exception, text: str, code: int = 2) -> NoReturn:
    """Print an error once, although several processes may raise it. The first process prints immediately;
    the others wait, and torchrun ends them meanwhile. A process that lost its connection to another one waits
    longest, because that other process knows the cause."""
    if isinstance(error, LostProcess):
        time.sleep(20)
    elif os.environ.get("RANK", "0") != "0":
        time.sleep(15)  # the first may need long to leave on a busy machine
    text = text.replace("\n", "\\n")
    say(f"{program}: {text if len(text) <= LONGEST else f'{text[: LONGEST // 2]} ... {text[-LONGEST // 2 :]}'}")
    raise SystemExit(code) from None
