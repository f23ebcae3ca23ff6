"""Run folders: atomic writes, weights beside their config, and what made them.

torch and OmegaConf are imported where they are used, so that a command's help needs no torch.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import zlib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import safe_open

from editar.config import from_yaml, to_yaml
from editar.errors import BenchmarkError, CheckpointError, ConfigError, one_line

if TYPE_CHECKING:
    import torch

CHECKSUM = "tensors_crc32"  # in the header of a weights file
GIT_SECONDS = 20  # on a slow disk it takes a few; it may hang


def some(items: list[str], count: int = 5, sep: str = ", ") -> str:
    """The first `count` items, and how many more."""
    return sep.join(items[:count]) + (f"{sep}and {len(items) - count} more" if len(items) > count else "")


@contextmanager
def atomic(path: str | Path) -> Iterator[Path]:
    """Where to write what will become `path`: it gets its name when the body is done, so readers see the old
    file or the new one, never half. Makes the folder; nothing is left of a body that fails. What another start left,
    or a link that somebody put in its place, is never written through."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, "is a folder, where a file is to be written", str(path))
    partial = path.with_name(f".{path.name}.part")
    partial.unlink(missing_ok=True)
    try:
        yield partial
        os.replace(partial, path)
    except BaseException as error:
        partial.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename is None:  # a full disk does not say which file
            error.filename = str(path)
        raise


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """Where to write what will become `folder`, which must not exist: it appears when the body is done."""
    if folder.exists():
        raise CheckpointError(f"{folder} exists already; choose another folder or remove it")
    partial = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        yield partial
        os.replace(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def spare_inputs(out: str | Path, inputs: Iterable[str | Path]) -> None:
    """Raise ConfigError if writing `out` would replace one of `inputs`, or a file in a folder among them."""
    real = Path(os.path.realpath(out))
    if real.exists() and any(place in (real, *real.parents) for place in map(Path, map(os.path.realpath, inputs))):
        raise ConfigError(f"{out} is among what is read, and never replaced; give another name")


def write_text(path: str | Path, text: str) -> None:
    with atomic(path) as partial:
        partial.write_text(text, encoding="utf-8")


def read_bytes(path: Path) -> bytes:
    """A file's content. Raises ValueError for what is no file, such as a pipe, which would wait for a writer."""
    if path.exists() and not path.is_file():
        raise ValueError(f"{path.name} is no file")
    return path.read_bytes()


def parse_json(text: str | bytes) -> Any:
    """The value of a JSON text that somebody else wrote. Raises ValueError for whatever is not readable JSON, or holds
    half of a surrogate pair or a null character, which no file and no name could hold."""
    if isinstance(text, bytes):
        text = text.decode(json.detect_encoding(text))
    try:
        value = json.loads(text)
    except RecursionError:
        raise ValueError("not readable JSON: nested without end") from None
    if r"\ud" in text.lower():
        # Only the halves by which Python writes names that are not UTF-8 pass.
        json.dumps(value, ensure_ascii=False).encode(errors="surrogateescape")
    if r"\u0000" in text and re.search(r"(?<!\\)(\\\\)*\\u0000", text):
        raise ValueError("a text in it holds a null character")
    return value


def write_json(path: str | Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=1, default=float) + "\n")


def save_weights(state: dict[str, torch.Tensor], path: str | Path, metadata: dict[str, str] | None = None) -> None:
    """state dict -> safetensors, atomically; `metadata` lands in the file's header, with a checksum of the tensors.
    Equal input, equal bytes."""
    from safetensors.torch import save_file

    tensors = {key: value.detach().cpu().contiguous() for key, value in state.items()}
    with atomic(path) as partial:
        try:
            partial.touch()
            mode = partial.stat().st_mode  # as of any other file; safetensors would keep everybody else out
            save_file(
                tensors, str(partial), metadata={"format": "pt"} | (metadata or {}) | {CHECKSUM: tensors_crc(tensors)}
            )
            partial.chmod(mode)
            _sort_header(partial)
        except Exception as error:  # safetensors raises its own untyped errors when the disk is full
            raise CheckpointError(f"{path}: could not be written ({one_line(error)})") from None


def _sort_header(path: Path) -> None:
    """Put the keys of a safetensors header in order, in place: safetensors writes metadata in a random one."""
    with open(path, "r+b") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
        text = json.dumps(header, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
        file.seek(8)
        file.write(text.ljust(size))  # the format pads with spaces


def tensors_crc(tensors: Mapping[str, torch.Tensor]) -> str:
    """CRC-32 over the names and bytes of CPU tensors, 8 hex digits: notices what a disk or a copy damaged."""
    import torch

    found = 0
    for key in sorted(tensors):
        content = tensors[key].contiguous().reshape(-1).view(torch.uint8).numpy()
        found = zlib.crc32(content.data, zlib.crc32(key.encode(), found))
    return f"{found:08x}"


def weights_header(path: Path) -> dict[str, str]:
    """What stands beside the tensors of a safetensors file. Raises CheckpointError."""
    try:
        with safe_open(str(path), framework="pt") as file:
            return dict(file.metadata() or {})
    except Exception as error:  # safetensors raises its own untyped errors for damaged files
        raise CheckpointError(f"{path}: not a readable safetensors file ({one_line(error)})") from None


def weights_step(path: Path) -> int | None:
    """The training step in the header of a safetensors file; None where there is no such file or step."""
    try:
        if not path.is_file():  # opening a pipe would wait for a writer
            return None
        with safe_open(str(path), framework="pt") as file:
            return int((file.metadata() or {})["step"])
    except Exception:  # safetensors raises its own untyped errors; whatever it is, there is no step
        return None


def load_weights(path: str | Path) -> dict[str, torch.Tensor]:
    """safetensors -> state dict on the CPU. Raises CheckpointError when missing or damaged."""
    from safetensors.torch import load_file

    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: no such weights file")
    try:
        tensors = load_file(str(path))
        with safe_open(str(path), framework="pt") as file:
            written = (file.metadata() or {}).get(CHECKSUM)
    except Exception as error:  # safetensors raises its own untyped errors for damaged files
        raise CheckpointError(f"{path}: not a readable safetensors file ({error})") from None
    if written is not None and written != tensors_crc(tensors):
        raise CheckpointError(f"{path}: its tensors are not as they were written, the file is damaged; copy it anew")
    return tensors


def load_state(module: torch.nn.Module, state: dict[str, torch.Tensor], origin: str | Path) -> None:
    """Strict load: all or, with a CheckpointError that names what does not fit, nothing."""
    check_state(module, state, origin)
    module.load_state_dict(state)


def check_state(
    module: torch.nn.Module,
    state: dict[str, torch.Tensor],
    origin: str | Path,
    accepted: Collection[str] = (),
    problems: Sequence[str] = (),
    advice: str = "",
) -> None:
    """Raise CheckpointError if a key of `state`, read from `origin`, is missing, unexpected or mis-shaped.

    Keys in `accepted` may be missing or unexpected; `problems` were found before and are told first, `advice` last.
    """
    own = module.state_dict()
    found = [*problems, *(f"missing {key}" for key in own if key not in state and key not in accepted)]
    found += [f"unexpected {key}" for key in state if key not in own and key not in accepted]
    found += [
        f"{key} holds {state[key].dtype}, the config needs {value.dtype}"
        for key, value in own.items()
        if key in state and state[key].is_floating_point() != value.is_floating_point()
    ]
    found += [
        f"{key} is {tuple(state[key].shape)}, the config needs {tuple(value.shape)}"
        for key, value in own.items()
        if key in state and state[key].shape != value.shape
    ]
    if found:
        raise CheckpointError(f"{origin}: does not fit the configured model: {some(found, sep='; ')}{advice}")


def content_sum(files: Iterable[Path]) -> str:
    """SHA-256 over the files' contents in order; names and places do not matter. Raises BenchmarkError."""
    digest = hashlib.sha256()
    for file in files:
        try:
            digest.update(bytes.fromhex(checksum(file)))
        except OSError as error:
            raise BenchmarkError(f"{file}: cannot be read ({error.strerror}); is the download complete?") from None
    return digest.hexdigest()


def checksum(path: str | Path) -> str:
    """SHA-256 of a file, hex. Raises OSError, also for what is no file: a pipe would wait for a writer."""
    if os.path.exists(path) and not os.path.isfile(path):
        raise OSError(errno.EINVAL, "is no file", str(path))
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def check_run_folder(folder: Path, cfg: Any) -> None:
    """Whether a run of `cfg` may start or go on in `folder`: what is there must have been made with the same config,
    but for the fields that may change. A setting that its config.yaml does not know yet had today's default. Raises
    ConfigError with the first few differing keys."""
    path = folder / "config.yaml"
    if not path.is_file():
        return
    old, new = (_flat(asdict(config)) for config in (from_yaml(type(cfg), path), cfg))
    inside = f"{old['output_dir']}/"  # a folder that was moved took what lies in it along
    moved = {
        key: f"{folder}/{value[len(inside) :]}"
        for key, value in old.items()
        if isinstance(value, str) and value.startswith(inside)
    }
    free = {field.name for field in fields(cfg) if field.metadata.get("may_change")}
    kept = [key for key in {**old, **new} if key.split(".")[0] not in free]
    changed = [key for key in kept if new.get(key) not in (old.get(key), moved.get(key, old.get(key)))]
    if changed:
        listed = ", ".join(f"{key} was {old.get(key)}, now {new.get(key)}" for key in changed[:3])
        raise ConfigError(
            f"{folder} holds a run with another config ({listed}); choose another output_dir or remove that folder"
        )


def write_run_folder(folder: Path, cfg: Any) -> None:
    """Write config.yaml and add this start to provenance.json. Called when all that can be checked is checked, so
    that a failed start leaves nothing that the corrected one would contradict."""
    path = folder / "provenance.json"
    starts = [*read_starts(folder), provenance()]
    write_text(folder / "config.yaml", to_yaml(cfg))
    write_json(path, starts)


def read_starts(folder: Path) -> list[dict[str, str]]:
    """The entries of provenance.json, none where there is no such file. Raises ConfigError for a damaged one."""
    path = folder / "provenance.json"
    if not path.exists():
        return []
    try:
        starts = parse_json(read_bytes(path))
    except ValueError as error:
        raise ConfigError(f"{path}: damaged ({one_line(error)}); remove it") from None
    if not isinstance(starts, list) or not all(isinstance(start, dict) for start in starts):
        raise ConfigError(f"{path}: damaged (not a list of starts); remove it")
    return starts


def _flat(node: Any, prefix: str = "") -> dict[str, Any]:
    """Nested mapping -> {dotted key: value}."""
    if not isinstance(node, dict):
        return {prefix: node}
    items = [_flat(value, f"{prefix}.{key!s}" if prefix else str(key)) for key, value in node.items()]
    return {key: value for item in items for key, value in item.items()}


def provenance() -> dict[str, str]:
    """Command, commit, versions and host of this process."""
    import torch

    git = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        place = Path(__file__).parent
        found = subprocess.run(git, cwd=place, capture_output=True, check=False, timeout=GIT_SECONDS).stdout
    except (OSError, subprocess.TimeoutExpired):  # no git on this machine, or one that hangs
        found = b""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    return {
        "command": " ".join([os.path.relpath(sys.argv[0]), *sys.argv[1:]]),
        "commit": found.decode(errors="replace").strip() or "unknown",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "host": platform.node(),
        "gpu": gpu,
        "cpus": str(os.cpu_count()),
    }
