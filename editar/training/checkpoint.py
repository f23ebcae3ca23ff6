"""Checkpoints of a training run: everything needed to go on exactly, written atomically.

`resume` continues with weights, moments and step of the same run; `init_from` takes weights only. A
checkpoint is a folder `checkpoints/step_0001000/` that torch.distributed.checkpoint (DCP) fills, every
process its share, and that appears by one rename; it fits any number of processes, DDP or FSDP. There
is no RNG in it: dropout is a function of (seed, step, rank), draws of (seed, draw).

Frozen weights are in no checkpoint: they are loaded from where they came from. The newest weights are also put at
`model.safetensors` (of an adapter, `adapter_model.safetensors`), where `editar.edit` and `editar.eval` look.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)

from editar.errors import CheckpointError, LostProcess, one_line
from editar.runtime.distributed import Ranks, lost_connection
from editar.runtime.files import save_weights, weights_step
from editar.runtime.log import say
from editar.training.ema import Ema
from editar.training.parallel import full_state
from editar.weights.run_checkpoint import (
    FAILURES,
    State,
    complete,
    damage,
    has_checksums,
    latest_checkpoint,
    open_reader,
    partial_of,
    put_in_place,
    read_step,
    root_cause,
    step_of,
)

UNREADABLE = "{}: not readable or of another model ({}); remove that folder to resume earlier"


@dataclass(frozen=True)
class NewestWeights:
    """The file of a run's newest weights: `select` takes them from the model's tensors and names them as the file does;
    `header` stands in the file beside the step."""

    name: str = "model.safetensors"
    select: Callable[[Mapping[str, Any]], dict[str, Any]] = dict
    header: Mapping[str, str] = field(default_factory=dict)

    def save(self, weights: dict[str, torch.Tensor], folder: Path, step: int) -> None:
        save_weights(weights, folder / self.name, {"step": str(step), **self.header})


class Checkpointer:
    """Writes checkpoints of one run, in the background if asked; keeps the newest `keep` and every
    step that is a multiple of `keep_every`."""

    def __init__(
        self,
        folder: Path,
        ranks: Ranks,
        keep: int,
        keep_every: int,
        background: bool,
        file: NewestWeights = NewestWeights(),  # frozen
    ) -> None:
        self.folder, self.root, self.ranks, self.file = folder, folder / "checkpoints", ranks, file
        self.keep, self.keep_every, self.background = keep, keep_every, background
        self.pending: tuple[int, Future[None]] | None = None
        self.pool = ThreadPoolExecutor(1)  # waits for DCP's thread and reads all of it again, for the checksums
        # Of its own, because the background thread talks to the other processes while they train.
        self.group: Any = dist.new_group(backend="gloo") if ranks.size > 1 else None
        if ranks.is_main:
            for left_over in self.root.glob(".step_*.part"):
                shutil.rmtree(left_over)

    def save(self, step: int, state: State, weights: dict[str, torch.Tensor]) -> None:
        """Write `state` as step's checkpoint and `weights` (whole, on the first process) to the weights file.
        Raises CheckpointError, for instance when the disk is full."""
        self.finish()
        partial = partial_of(self.folder, step)
        if self.ranks.is_main:
            shutil.rmtree(partial, ignore_errors=True)
        self.ranks.barrier()
        try:
            if self.background:
                found = dcp.async_save(staged(state), checkpoint_id=partial, process_group=self.group)
                assert isinstance(found, Future)
                self.pending = (step, self.pool.submit(self._put_in_place, step, found))
            else:
                dcp.save(state, checkpoint_id=partial, process_group=self.group)
                self._put_in_place(step)
            if self.ranks.is_main:
                self.file.save(weights, self.folder, step)
        except FAILURES as error:
            raise self._failed(step, error) from error

    def poll(self) -> None:
        """Raise what went wrong with a background checkpoint once that is known; cheap, for every step."""
        if self.pending is not None and self.pending[1].done():
            self.finish()

    def finish(self) -> None:
        """Wait for the background checkpoint, if any, to be in place."""
        if self.pending is None:
            return
        (step, future), self.pending = self.pending, None
        try:
            future.result()
        except FAILURES as error:
            raise self._failed(step, error) from error

    def _put_in_place(self, step: int, written: Future[Any] | None = None) -> None:
        if written is not None:
            written.result()  # complete only when every process has written its share
        if not self.ranks.is_main:
            return
        put_in_place(self.folder, step, self.ranks.size)
        for old in complete(self.folder)[: -self.keep]:
            if not self.keep_every or step_of(old) % self.keep_every:
                shutil.rmtree(old)

    def _failed(self, step: int, error: BaseException) -> Exception:
        cause = root_cause(error)
        if lost_connection(cause):
            return LostProcess(f"checkpoint of step {step}: another process is gone ({one_line(cause)})")
        if self.ranks.is_main:
            shutil.rmtree(partial_of(self.folder, step), ignore_errors=True)  # it may be what fills the disk
        newest = latest_checkpoint(self.folder)
        kept = f"{newest.name} is complete" if newest else "there is no earlier one"
        free = shutil.disk_usage(self.folder).free / 1e9
        return CheckpointError(
            f"{self.root}: checkpoint of step {step} could not be written ({one_line(cause)}; {free:.1f} GB free); "
            f"{kept}. Make room and start the same command again"
        )


def training_state(model: nn.Module, optimizers: list[torch.optim.Optimizer], ema: Ema | None) -> State:
    """The live tensors of a training by parameter name: what `save` writes and `load_checkpoint` fills.

    Learning rates and the like are not in it; they come from the config.
    """
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    trained |= {name for name, _ in model.named_buffers()}  # not what 8-bit layers add to theirs
    own = {name: value for name, value in model.state_dict().items() if name in trained}
    state: State = {"model": own} | ({} if ema is None else {"ema": dict(ema.average)})
    for index, optimizer in enumerate(optimizers):
        state[f"optimizer_{index}"] = get_optimizer_state_dict(model, optimizer)["state"]
    return state


def intact_checkpoint(folder: Path, ranks: Ranks) -> Path | None:
    """The newest checkpoint whose files are as they were written, None if there is no checkpoint at all; every
    process must call it and reads its share. Raises CheckpointError if all of them are damaged."""
    for path in reversed(found := complete(folder)):
        problem = next((p for p in ranks.gather(damage(path, slice(ranks.rank, None, ranks.size))) if p), None)
        if problem is None:
            if ranks.is_main and not has_checksums(path):
                say(f"note: {path} is older than checksums and was not checked")
            return path
        if path == found[0]:
            raise CheckpointError(UNREADABLE.format(path, problem))
        if ranks.is_main:
            say(f"warning: {path.name} is damaged ({problem}); going back to the checkpoint before")
    return None


def load_checkpoint(path: Path, model: nn.Module, optimizers: list[torch.optim.Optimizer], ema: Ema | None) -> int:
    """Fill model, optimisers and average in place -> the step. Raises CheckpointError if it does not fit."""
    try:
        step, (reader, _) = read_step(path), open_reader(path)
        state = training_state(model, optimizers, ema)
        _drop_unborn(state, reader.read_metadata().state_dict_metadata)
        dcp.load(state, storage_reader=reader)
    except FAILURES as error:  # damaged or missing files: many types, one meaning
        raise CheckpointError(UNREADABLE.format(path, one_line(root_cause(error)))) from error
    for index, optimizer in enumerate(optimizers):
        groups = get_optimizer_state_dict(model, optimizer)["param_groups"]
        loaded = {"state": state[f"optimizer_{index}"], "param_groups": groups}
        set_optimizer_state_dict(model, optimizer, loaded, options=StateDictOptions(strict=False))
    return step


def _drop_unborn(state: State, stored: Mapping[str, Any]) -> None:
    """Leave out the moments of weights that had no gradient yet when the checkpoint was written, such as those of a
    codebook before its k-means; they begin anew."""
    born = {name.rpartition(".")[0] for name in stored}
    for key in (key for key in state if key.startswith("optimizer_")):
        state[key] = {name: moments for name, moments in state[key].items() if f"{key}.{name}" in born}


def resume(
    folder: Path,
    model: nn.Module,
    optimizers: list[torch.optim.Optimizer],
    ema: Ema | None,
    ranks: Ranks,
    file: NewestWeights = NewestWeights(),  # frozen
) -> int:
    """Continue from the newest intact checkpoint of this folder if there is one; returns the next step.

    A kill may have left the weights file behind or ahead of the checkpoint: it is written again then."""
    newest = intact_checkpoint(folder, ranks)
    if newest is None:
        return 0
    step = load_checkpoint(newest, model, optimizers, ema)
    if any(ranks.gather(ranks.is_main and weights_step(folder / file.name) != step)):
        whole = whole_weights(model, ema, ranks, file)
        if ranks.is_main:
            file.save(whole, folder, step)
    if ranks.is_main:
        say(f"resuming {folder} at step {step}")
    return step


def staged(state: State) -> State:
    """Copies of the tensors that training goes on changing; DCP itself copies those on a GPU."""
    return {
        key: staged(value) if isinstance(value, dict) else value.clone() if value.device.type == "cpu" else value
        for key, value in state.items()
    }


def whole_weights(
    model: nn.Module,
    ema: Ema | None,
    ranks: Ranks,
    file: NewestWeights = NewestWeights(),  # frozen
) -> dict[str, torch.Tensor]:
    """What the weights file gets: the average where there is one, else the weights; on the first
    process. Every process must call it."""
    return full_state(file.select(model.state_dict() | ({} if ema is None else ema.average)), ranks)
