"""Checkpoint folders of a training run: their names, which is the newest, and the whole state in one process.

`checkpoints/step_0001000/` is a torch.distributed.checkpoint (DCP), of which every process wrote its share, and a
state.json with the step and the SHA-256 of every file. Its tensors go by parameter names, so they fit any number of
processes:

    model.NAME                                     weights and null tables
    ema.NAME                                       their running average, with optim.ema_decay
    optimizer_0.NAME.{step,exp_avg,exp_avg_sq}     AdamW
    optimizer_1.NAME.momentum                      Muon, with optim.name=muon

DCP keeps its table of contents as a pickle and would run whatever that names. `open_reader` lets nothing but that
table through, so a folder from anywhere may be read and resumed.
"""

from __future__ import annotations

import os
import pathlib
import pickle
import re
import shutil
import warnings
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint import FileSystemReader
from torch.distributed.checkpoint import metadata as dcp_metadata
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta, TensorStorageMetadata

from editar.errors import CheckpointError, one_line
from editar.runtime.files import checksum, parse_json, write_json

warnings.filterwarnings("ignore", message=".*assuming the intent is to", category=UserWarning)  # one process: meant
FAILURES = (Exception, CheckpointException)  # DCP's own, which is a BaseException, wraps what went wrong on any process
State = dict[str, Any]  # nested dicts whose leaves are tensors
# What a table of contents is made of, besides numbers, texts and builtin containers.
TABLE = {
    **{
        (dcp_metadata.__name__, name): getattr(dcp_metadata, name)
        for name in (
            *("Metadata", "MetadataIndex", "TensorStorageMetadata", "TensorProperties", "ChunkStorageMetadata"),
            *("StorageMeta", "_MEM_FORMAT_ENCODING"),
        )
    },
    (_StorageInfo.__module__, "_StorageInfo"): _StorageInfo,
    ("torch", "Size"): torch.Size,
    ("torch.serialization", "_get_layout"): lambda name: torch.strided,
    **{("torch", name): dtype for name, dtype in vars(torch).items() if isinstance(dtype, torch.dtype)},
    **{(module, "PosixPath"): pathlib.PurePosixPath for module in ("pathlib", "pathlib._local")},
}


class _TableUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in TABLE:
            raise pickle.UnpicklingError(f"refused: it names {module}.{name}, which no checkpoint needs")
        return TABLE[module, name]


class TableReader(FileSystemReader):
    """DCP's reader, but for the pickle. Entries that are not tensors, which DCP would unpickle as well, and files
    outside of the folder are refused too."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        if kwargs.get("rank") is not None:
            raise FileNotFoundError("tables of single processes are not used here")
        with open(Path(self.path) / ".metadata", "rb") as file:
            found = _TableUnpickler(file).load()
        if not isinstance(found, Metadata):
            raise pickle.UnpicklingError("holds no table of contents")
        for key, value in found.state_dict_metadata.items():
            if not isinstance(value, TensorStorageMetadata):
                raise pickle.UnpicklingError(f"refused: {key} is not a tensor")
        for part in found.storage_data.values():
            if Path(part.relative_path).name != part.relative_path:
                raise pickle.UnpicklingError(f"refused: {part.relative_path} is not a file of this folder")
        found.storage_meta = StorageMeta(load_id=self.load_id)
        return found


def open_reader(path: Path) -> tuple[TableReader, Metadata]:
    """DCP's reader of a checkpoint and its table of contents, read before DCP itself touches anything."""
    reader = TableReader(path)
    return reader, reader.read_metadata()


def name_of(step: int) -> str:
    return f"step_{step:07d}"


def step_of(path: Path) -> int:
    return int(path.name.removeprefix("step_"))


def complete(folder: Path) -> list[Path]:
    """Checkpoints of a run folder, oldest first."""
    found = (folder / "checkpoints").glob("step_*")
    return sorted((path for path in found if re.fullmatch(r"step_\d+", path.name)), key=step_of)


def latest_checkpoint(folder: Path) -> Path | None:
    return found[-1] if (found := complete(folder)) else None


def partial_of(folder: Path, step: int) -> Path:
    """Where a checkpoint of the run in `folder` is written before `put_in_place`."""
    return folder / "checkpoints" / f".{name_of(step)}.part"


def put_in_place(folder: Path, step: int, processes: int) -> None:
    """Complete a written checkpoint and give it its name, which replaces one of the same step."""
    partial, final = partial_of(folder, step), folder / "checkpoints" / name_of(step)
    sums = {file.name: checksum(file) for file in sorted(partial.iterdir()) if file.name != "state.json"}
    state = {"step": step, "world_size": processes, "torch": torch.__version__, "sha256": sums}
    write_json(partial / "state.json", state)
    shutil.rmtree(final, ignore_errors=True)
    os.replace(partial, final)


def _read_state(path: Path) -> dict[str, Any]:
    return parse_json((path / "state.json").read_bytes())


def read_step(path: Path) -> int:
    return int(_read_state(path)["step"])


def damage(path: Path, part: slice = slice(None)) -> str | None:
    """What is wrong with the files of a checkpoint, None if nothing is; looks at `part` of them and at the step.
    Older checkpoints hold no checksums."""
    if odd := [file.name for file in path.iterdir() if not file.is_file() or file.is_symlink()]:
        return f"{odd[0]} is not a plain file"
    try:
        state = _read_state(path)
        if state["step"] != step_of(path):
            return f"state.json speaks of step {state['step']}"
        sums = dict(state.get("sha256", {}))
        changed = [name for name in sorted(sums)[part] if checksum(path / name) != sums[name]]
    except (OSError, ValueError, AttributeError, TypeError, KeyError) as error:
        return one_line(error)
    return f"{changed[0]} is not as it was written" if changed else None


def has_checksums(path: Path) -> bool:
    return "sha256" in _read_state(path)


def read_whole(path: Path) -> tuple[int, State]:
    """Step and all tensors of a checkpoint on the CPU, nested as they were saved. Raises CheckpointError."""
    if found := damage(path):
        raise CheckpointError(f"{path}: not a readable checkpoint ({found})")
    try:
        step, (reader, metadata) = read_step(path), open_reader(path)
        stored: dict[str, Any] = metadata.state_dict_metadata
        flat = {key: torch.empty(value.size, dtype=value.properties.dtype) for key, value in stored.items()}
        dcp.load(flat, storage_reader=reader)
    except FAILURES as error:  # damaged or missing files: many types, one meaning
        raise CheckpointError(f"{path}: not a readable checkpoint ({one_line(root_cause(error))})") from error
    state: State = {}
    for key, (*outer, name) in metadata.planner_data.items():
        place = state
        for part in outer:
            place = place.setdefault(part, {})
        place[name] = flat[key]
    return step, state


def write_whole(folder: Path, step: int, state: State) -> None:
    """Write a checkpoint of the run in `folder` from one process. Raises CheckpointError."""
    try:
        dcp.save(state, checkpoint_id=partial_of(folder, step))
        put_in_place(folder, step, processes=1)
    except FAILURES as error:
        cause = one_line(root_cause(error))
        raise CheckpointError(f"{folder}: checkpoint of step {step} could not be written ({cause})") from error


def root_cause(error: BaseException) -> BaseException:
    """DCP reports {rank: (exception, traceback)}: the first of them."""
    if isinstance(error, CheckpointException) and error.failures:
        return next(iter(error.failures.values()))[0]
    return error
