#!/usr/bin/env python
"""Which settings fit which GPUs, and for how long: the table in docs/training.md, by arithmetic, not measured.

    python scripts/plan_gpus.py                        # the paper's run
    python scripts/plan_gpus.py gpt=xxl teacher=none   # any override of experiment=editar_xl

For 1, 4 and 8 GPUs of common sizes: the first of plain DDP, activation checkpointing, FSDP with both that fits
with the largest micro-batch, leaving a tenth of the memory free, and the hours at 40 % MFU.
"""

from __future__ import annotations

import sys

from editar.config import TrainConfig
from editar.runtime.entry import load_config, script
from editar.runtime.log import echo
from editar.training.parallel import micro_batch
from editar.training.planning.cost import PEAK_FLOPS, memory, training_flops
from editar.training.planning.dry_run import ASSUMED_MFU, frozen_bytes

GPUS = (("4090", 24), ("A100", 40), ("A100", 80), ("H100", 80), ("H200", 141))  # name, GB
COUNTS = (1, 4, 8)
WAYS = (list[str](), ["activation_checkpointing=true"], ["parallel=fsdp", "activation_checkpointing=true"])
RECOMPUTED = 4 / 3  # the forward pass is a third of a step and runs twice


@script("plan_gpus")
def main() -> None:
    if {"-h", "--help"} & set(sys.argv[1:]):
        echo(__doc__)
        return
    echo("| GPU | " + " | ".join(f"{count} GPU{'s' * (count > 1)}" for count in COUNTS) + " |")
    echo("| --- |" + " --- |" * len(COUNTS))
    for name, gigabytes in GPUS:
        cells = (cell(count, gigabytes * 1e9, PEAK_FLOPS[name]) for count in COUNTS)
        echo(f"| {name}, {gigabytes} GB | " + " | ".join(cells) + " |")


def cell(count: int, room: float, peak: float) -> str:
    """The first way that fits, as `settings: GB, hours`."""
    for way in WAYS:
        if "parallel=fsdp" in way and count == 1:
            continue
        cfg = load_config(TrainConfig, "train", ["experiment=editar_xl", "output_dir=x", *sys.argv[1:], *way])
        for most in (16, 8, 4, 2, 1):
            cfg.micro_batch = most
            at_once = micro_batch(cfg, count)
            need = memory(cfg, count, at_once, frozen_bytes(cfg)).total
            if need <= 0.9 * room:
                work = cfg.steps * cfg.global_batch * training_flops(cfg.gpt) * (RECOMPUTED if way else 1)
                hours = work / (count * peak * ASSUMED_MFU) / 3600
                settings = " ".join([f"micro_batch={at_once}", *way])
                return f"`{settings}`: {need / 1e9:.0f} GB, {hours:.0f} h"
    return "does not fit"


if __name__ == "__main__":
    main()
