"""The whole evaluation of a checkpoint on the nano world: edit, score, write, show."""

from __future__ import annotations

import hashlib
from dataclasses import asdict
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from editar.config import EvalConfig
from editar.data.nano.world import NanoWorld, render
from editar.data.sample import EditSample
from editar.evaluation.nano.scoring import Summary, Verdict, judge, shuffled, summarise, table
from editar.generation.editors import ModelEditor
from editar.generation.generate import EditJob, generate
from editar.images import contact_sheet, save_image
from editar.runtime.distributed import distributed
from editar.runtime.files import checksum, provenance, write_json
from editar.sampling.pipeline import EditPipeline

PROTOCOL = "nano-v1"


def evaluate_nano(cfg: EvalConfig) -> Summary | None:
    """Edit `cfg.samples` held-out samples with a checkpoint, score them beside the tokenizer's ceiling.

    Returns the checkpoint's summary; None on the ranks of torchrun that only help to edit.
    """
    folder, checkpoint = Path(cfg.output_dir), Path(str(cfg.checkpoint))
    with distributed(cfg.device) as ranks:
        pipeline = EditPipeline.from_pretrained(checkpoint, ranks.device, cfg.sampling, dtype=cfg.dtype)
        world = NanoWorld("heldout", cfg.samples, pipeline.cfg.data.seed)
        plans = [world.plan(i) for i in range(len(world))]
        samples = [render(plan) for plan in plans]
        instructions = [sample.instruction for sample in samples]
        if cfg.shuffle_instructions:
            instructions = shuffled(instructions)
        jobs = [
            EditJob(
                sample.id,
                sample.id,
                text,
                sample.target_caption,
                partial(np.asarray, sample.source),
                len(sample.source),
            )
            for sample, text in zip(samples, instructions, strict=True)
        ]
        sources = hashlib.sha256(b"".join(np.asarray(sample.source).tobytes() for sample in samples))
        files = generate(ModelEditor(pipeline, checkpoint), jobs, folder, ranks, sources.hexdigest)
    if not ranks.is_main:
        return None
    outputs = [np.asarray(Image.open(file)) for file in files]
    verdicts = [judge(plan, output) for plan, output in zip(plans, outputs, strict=True)]
    ceiling = pipeline.reconstruct([sample.target for sample in samples])
    columns = {
        "model": summarise(verdicts),
        "tokenizer ceiling": summarise([judge(plan, picture) for plan, picture in zip(plans, ceiling, strict=True)]),
    }
    result = {
        "protocol": PROTOCOL,
        "samples": len(samples),
        "shuffled_instructions": cfg.shuffle_instructions,
        "data_seed": pipeline.cfg.data.seed,
        "sampling": asdict(pipeline.cfg.sampling),
        "weights_sha256": checksum(checkpoint / "model.safetensors"),
        "made_by": provenance(),
        "model": columns["model"].as_dict(),
        "ceiling": columns["tokenizer ceiling"].as_dict(),
        "rows": [asdict(verdict) for verdict in verdicts],
    }
    write_json(folder / "metrics.json", result)
    save_image(sheet(samples, outputs, verdicts), folder / "grid.png")
    print(table(columns))
    print(f"\nmistakes: {', '.join(f'{name} {n}' for name, n in columns['model'].mistakes.items()) or 'none'}")
    print(f"pictures: {folder / 'grid.png'} (source | target | output)   numbers: {folder / 'metrics.json'}")
    return columns["model"]


def sheet(samples: list[EditSample], outputs: list[np.ndarray], verdicts: list[Verdict], most: int = 32) -> np.ndarray:
    """source | target | output, two columns of samples, a green or red bar under each; enlarged twice."""
    cells = []
    for sample, output, verdict in list(zip(samples, outputs, verdicts, strict=True))[:most]:
        row = contact_sheet([[sample.source, sample.target, output]])
        bar = np.full((3, row.shape[1], 3), (40, 160, 70) if verdict.success else (210, 50, 40), np.uint8)
        cells.append(np.concatenate([row, bar]))
    if len(cells) % 2:
        cells.append(np.full_like(cells[0], 255))
    return contact_sheet([cells[i : i + 2] for i in range(0, len(cells), 2)]).repeat(2, 0).repeat(2, 1)
