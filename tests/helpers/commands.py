"""Commands as documentation writes them, composed without doing their work.

Settings of an entry go through `load_config`, arguments of a script through the script's own parser, and what a shell
script or Slurm would start is recorded and composed in its turn. A command that nobody can compose raises.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.metadata import metadata
from importlib.util import find_spec
from pathlib import Path

from packaging.requirements import Requirement
from torch.distributed.run import get_args_parser as torchrun_parser

from editar.config import AppConfig, EditConfig, EvalConfig, SamplingConfig, TokenizerTrainConfig, TrainConfig, override
from editar.evaluation.registry import benchmark_class
from editar.runtime.entry import load_config
from tests.helpers.tiny import ROOT

ENTRIES: dict[str, type] = {
    "train": TrainConfig,
    "train_tokenizer": TokenizerTrainConfig,
    "eval": EvalConfig,
    "edit": EditConfig,
    "app": AppConfig,
}
# Scripts that take nothing but settings of a training, and what they add in front.
SETTINGS = {
    "scripts/cache_codes.py": ["output_dir=x"],
    "scripts/plan_gpus.py": ["experiment=editar_xl", "output_dir=x"],
}
PYTHONS = ("python", "python3", ".venv/bin/python")


class Unknown(AssertionError):
    """A command that cannot be composed."""


def compose(command: str) -> None:
    """Raises Unknown, the entries' UserError, or SystemExit of a script's parser."""
    words = shlex.split(command, comments=True)
    environment = {}
    while words and re.match(r"^[A-Z_]+=", words[0]):
        name, _, environment[name] = words.pop(0).partition("=")
    program, *arguments = words or [""]
    if program in PYTHONS:
        python(arguments)
    elif program == "torchrun":
        parsed = torchrun_parser().parse_args(arguments)
        python([*["-m"] * parsed.module, parsed.training_script, *parsed.training_script_args])
    elif program == "sbatch":
        options = [word for word in arguments if word.startswith("--")]
        shell(arguments[len(options)], arguments[len(options) + 1 :], environment)
    elif program.endswith(".sh"):
        shell(program, arguments, environment)
    elif program == "make":
        make(arguments)
    elif program == "export":
        if not all(re.match(r"^[A-Z_]+=\S", word) for word in arguments):
            raise Unknown(f"export {arguments}")
    elif program == "pip" and arguments[:1] == ["install"]:
        pip_install(arguments[1:])
    else:
        raise Unknown(f"nobody knows how to compose {command!r}")


def python(words: list[str]) -> None:
    if words[:1] == ["-m"] and words[1].startswith("editar."):
        settings(words[1].removeprefix("editar."), words[2:])
    elif words[:2] == ["-m", "torch.distributed.run"]:
        compose(shlex.join(["torchrun", *words[2:]]))
    elif words[:2] == ["-m", "pytest"]:
        missing = [word for word in words[2:] if not word.startswith("-") and not (ROOT / word).exists()]
        if missing:
            raise Unknown(f"pytest: no {missing[0]}")
    elif words[:1] == ["-c"]:
        compile(words[1], "<command>", "exec")
    elif words[0] in SETTINGS and (ROOT / words[0]).is_file():
        load_config(TrainConfig, "train", [*SETTINGS[words[0]], *words[1:]])
    elif words[0].endswith(".py") and (ROOT / words[0]).is_file():
        script(words[0], words[1:])
    else:
        raise Unknown(f"python {shlex.join(words)}: no such script or entry")


def settings(entry: str, overrides: list[str]) -> None:
    """Overrides of an entry; a mention of its bare name, or of its --help, only has to exist."""
    if entry not in ENTRIES or find_spec(f"editar.{entry}") is None:
        raise Unknown(f"editar.{entry} is no entry")
    if overrides in ([], ["--help"]):
        return
    cfg = load_config(ENTRIES[entry], entry, overrides)
    if isinstance(cfg, EvalConfig):
        benchmark_class(cfg.benchmark)
    if isinstance(cfg, (EvalConfig, EditConfig, AppConfig)):
        override(SamplingConfig(), cfg.sampling, "sampling")


class Parsed(BaseException):
    """Carries what a script's parser found out of its `main`."""


@contextmanager
def only_parsing() -> Iterator[None]:
    """`parse_args` ends the script with what it found."""
    real = argparse.ArgumentParser.parse_args

    def stop(self: argparse.ArgumentParser, *given: object) -> None:
        raise Parsed(real(self, *given))  # type: ignore[call-overload]

    argparse.ArgumentParser.parse_args = stop  # type: ignore[assignment, method-assign]
    try:
        yield
    finally:
        argparse.ArgumentParser.parse_args = real  # type: ignore[method-assign]


def script(path: str, arguments: list[str]) -> None:
    """A Python script's arguments through its own parser, and the settings among them."""
    module = import_module(path.removesuffix(".py").replace("/", "."))
    before, sys.argv = sys.argv, [path, *arguments]
    try:
        with only_parsing():
            module.main()
        if arguments:
            raise Unknown(f"{path} takes no arguments")
        return
    except Parsed as parsed:
        options = parsed.args[0]
    finally:
        sys.argv = before
    if path in ("scripts/inspect_data.py", "scripts/train_instruct_pix2pix.py"):
        load_config(TrainConfig, "train", ["output_dir=x", *options.overrides])
    elif path == "scripts/ablate.py":
        for overrides in module.grid(options.overrides).values():
            load_config(TrainConfig, "train", ["output_dir=x", *overrides])
        settings("eval", ["checkpoint=x", "output_dir=x", *options.eval])
    elif path == "scripts/convert_weights.py" and options.config:
        load_config(TrainConfig, "train", ["output_dir=x", *options.config])


RECORDER = """#!/bin/sh
{ for word in "$@"; do printf '%s\\0' "$word"; done; printf '\\n'; } >> "$RECORD"
"""
SRUN = """#!/bin/sh
while [ "${1#-}" != "$1" ]; do shift; done
exec "$@"
"""


def shell(path: str, arguments: list[str], environment: dict[str, str]) -> None:
    """Run a shell script with a Python that only notes its arguments; compose what it noted."""
    if not (ROOT / path).is_file():
        raise Unknown(f"no script {path}")
    unknown = [name for name in environment if not re.search(rf"\b{name}\b", read_with_sources(path))]
    if unknown:
        raise Unknown(f"{path} does not read {', '.join(unknown)}")
    with tempfile.TemporaryDirectory() as folder:
        tools = {"python": RECORDER, "srun": SRUN, "scontrol": "#!/bin/sh\necho node1\n"}
        for name, text in tools.items():
            (Path(folder) / name).write_text(text)
            (Path(folder) / name).chmod(0o755)
        record = Path(folder) / "record"
        fixed = {"PYTHON": f"{folder}/python", "RECORD": str(record), "PATH": f"{folder}:{os.environ['PATH']}"}
        slurm = {"SLURM_JOB_NODELIST": "node1", "SLURM_NNODES": "1", "SLURM_JOB_ID": "1"}
        done = subprocess.run(
            ["bash", path, *arguments], cwd=ROOT, env=os.environ | slurm | environment | fixed,
            capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        if done.returncode:
            raise Unknown(f"{path}: {done.stderr[-500:]}")
        calls = [line.split("\0")[:-1] for line in record.read_text().splitlines()]
    if not calls:
        raise Unknown(f"{path} starts nothing")
    for call in calls:
        python(call)


def read_with_sources(path: str) -> str:
    """A shell script, its settings' home scripts/eval.sh included."""
    text = (ROOT / path).read_text()
    return text + ((ROOT / "scripts/eval.sh").read_text() if "eval.sh" in text else "")


def make(words: list[str]) -> None:
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    variables = re.findall(r"^([A-Z]+) \?=", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for word in words:
        if word not in targets and word.partition("=")[0] not in variables:
            raise Unknown(f"make {word}: no such target")


def pip_install(words: list[str]) -> None:
    """Extras of this package, constraint files and names of packages."""
    rest = iter(words)
    for word in rest:
        if word == "-c":
            if not (ROOT / next(rest)).is_file():
                raise Unknown("pip install: no such file after -c")
        elif word == "-e":
            match = re.fullmatch(r"\.(\[([\w,]+)\])?", next(rest))
            extras = set(match[2].split(",")) if match and match[2] else set()
            if match is None or not extras <= set(metadata("editar").get_all("Provides-Extra") or ()):
                raise Unknown(f"pip install -e: {words}")
        else:
            Requirement(word)
