"""What a training shows on the way: held-out losses and a fixed grid of edits, both on rows never trained on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import torch

from editar.data.loader import Batch, batches
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


@torch.no_grad()
def heldout_losses(run: Run) -> dict[str, float]:
    """Held-out token loss and accuracy, over all rows and per task; the training's code path, nothing
    dropped, weights averaged where there is an average."""
    run.gpt.eval()
    sums: dict[str, np.ndarray] = {}  # task -> (loss, accuracy, rows)
    with run.ema.swapped() if run.ema is not None else nullcontext():
        for batch, counts in own_batches(run):
            text = run.encoders.text.embed(run.encoders.text.tokenize(batch.instructions))
            source, target = run.encoders.codes(batch.source), run.encoders.codes(batch.target)
            with run.autocast():
                found: LossOutput = run.wrapped(source, text, target)
            rows = zip(batch.tasks, found.nll.tolist(), found.accuracy.tolist(), strict=True)
            for task, loss, hits in rows if counts else ():
                sums[task] = sums.get(task, np.zeros(3)) + np.array([loss, hits, 1.0])
    parts = run.ranks.gather(sums)
    tasks = sorted({task for part in parts for task in part})
    totals = {task: np.sum([part[task] for part in parts if task in part], axis=0) for task in tasks}
    loss, hits, count = np.sum(list(totals.values()), axis=0)
    values = {"heldout_token": float(loss / count), "heldout_accuracy": float(hits / count)}
    return values | {f"heldout_{task}": float(total[0] / total[2]) for task, total in totals.items()}


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
    return write_preview(pipeline, source, target, batch.instructions, batch.ids, path)


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
