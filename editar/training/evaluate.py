"""What a training shows on the way: held-out losses and a fixed grid of edits, both on rows never trained on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import torch

from editar.data.loader import Batch, batches
from editar.data.sources import NANO_WORLDS
from editar.models.gpt import GPT
from editar.runtime.device import pick_dtype
from editar.sampling.pipeline import EditPipeline
from editar.training.build import Run
from editar.training.checkpoint import whole_weights
from editar.training.losses import LossOutput
from editar.training.preview import write_preview
from editar.weights.adapter import merge_lora
from editar.weights.load import load_gpt

PREVIEWS = 16
ALL = ""  # beside the names of sources and tasks


@torch.no_grad()
def heldout_losses(run: Run) -> dict[str, float]:
    """Held-out token loss and accuracy over all rows, and the loss per data source, of the nano world per task as well;
    the training's code path, nothing dropped, weights averaged where there is an average."""
    run.gpt.eval()
    sums: dict[str, np.ndarray] = {}  # ALL, source or task -> (loss, accuracy, rows)
    with run.ema.swapped() if run.ema is not None else nullcontext():
        for batch, counts in own_batches(run):
            text = run.encoders.text.embed(run.encoders.text.tokenize(batch.instructions))
            source, target = run.encoders.codes(batch.source), run.encoders.codes(batch.target)
            with run.autocast():
                found: LossOutput = run.wrapped(source, text, target, batch.absent)
            rows = zip(batch.ids, batch.tasks, found.nll.tolist(), found.accuracy.tolist(), strict=True)
            for id, task, loss, hits in rows if counts else ():
                for name in (ALL, *names_of(run, id, task)):
                    sums[name] = sums.get(name, np.zeros(3)) + np.array([loss, hits, 1.0])
    parts = run.ranks.gather(sums)
    names = sorted({name for part in parts for name in part})
    totals = {name: np.sum([part[name] for part in parts if name in part], axis=0) for name in names}
    loss, hits, count = totals.pop(ALL)
    values = {"heldout_token": float(loss / count), "heldout_accuracy": float(hits / count)}
    return values | {f"heldout_{name}": float(total[0] / total[2]) for name, total in totals.items()}


def names_of(run: Run, id: str, task: str) -> set[str]:
    """What a held-out row counts for: its source, and its task in the nano world."""
    source = id.rpartition("/")[0]  # `Source.row_id`
    return {source, task} if run.cfg.data.sources[source].kind in NANO_WORLDS else {source}


def own_batches(run: Run) -> Iterator[tuple[Batch, bool]]:
    """This process's share of the held-out batches. All processes get equally many, because under FSDP
    they gather weights together: the last may be one that does not count."""
    ranks = run.ranks
    total = -(-len(run.heldout_rows) // run.micro_batch)
    mine = list(range(ranks.rank, total, ranks.size))
    surplus = -(-total // ranks.size) - len(mine)
    for number, batch in enumerate(heldout_batches(run, [*mine, *[0] * surplus], run.micro_batch)):
        yield batch, number < len(mine)


def heldout_batches(run: Run, numbers: list[int], size: int) -> Iterator[Batch]:
    """Batches `numbers` of `size` held-out rows, on the device."""
    last = len(run.heldout_rows)
    chunks = [list(range(k * size, min((k + 1) * size, last))) for k in numbers]
    for batch in batches(run.heldout_rows, chunks, 0, run.ranks.device):
        yield batch.to(run.ranks.device)


def current_pipeline(run: Run) -> EditPipeline | None:
    """An editor with the current weights, on the first process (None elsewhere); every process must call it."""
    gpt = run.gpt
    if run.ema is not None or run.cfg.lora.rank or (run.cfg.parallel == "fsdp" and run.ranks.size > 1):
        gpt = whole_copy(run)
    if not run.ranks.is_main:
        return None
    return EditPipeline(run.cfg, gpt.eval(), run.encoders.tokenizer, run.encoders.text, compile=False)


def preview(run: Run, pipeline: EditPipeline, step: int) -> Path:
    """A fixed grid of held-out edits."""
    batch = next(heldout_batches(run, [0], PREVIEWS))
    source, target = run.encoders.codes(batch.source), run.encoders.codes(batch.target)
    path = run.folder / "samples" / f"step_{step:07d}.png"
    return write_preview(pipeline, source, target, batch.instructions, batch.ids, path, batch.absent)


def whole_copy(run: Run) -> GPT:
    """A GPT of its own with the whole (averaged) weights, the adapter merged in, on the first process's device."""
    weights = whole_weights(run.gpt, run.ema, run.ranks, run.checkpointer.file)
    with torch.device("meta"):
        gpt = GPT(run.cfg.gpt)
    if run.cfg.lora.rank and run.ranks.is_main:
        gpt = GPT(run.cfg.gpt)
        load_gpt(gpt, str(run.cfg.init_from))
        merge_lora(gpt, run.cfg.lora, weights)
        gpt.to(run.ranks.device, pick_dtype("bfloat16", run.ranks.device))
    elif run.ranks.is_main:
        gpt.load_state_dict(weights, assign=True)
        gpt.to(run.ranks.device)
    return gpt
