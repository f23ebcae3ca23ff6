"""What many tests share: where things are, overrides that make a training tiny, and launches of real processes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from editar.config import TrainConfig
from editar.runtime.entry import load_config

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = ROOT / "tests" / "golden"

# Shapes small enough for a test on one core; everything else is the nano experiment.
TINY_TOKENIZER = [
    "tokenizer.ch=8",
    "tokenizer.norm_groups=4",
    "tokenizer.z_channels=16",
    "tokenizer.codebook_size=64",
]
TINY_GPT = [
    "gpt.dim=32",
    "gpt.n_layer=2",
    "gpt.n_head=2",
    "gpt.multiple_of=16",
    "data.train_samples=24",
    "data.heldout_samples=8",
    "num_workers=0",
    "global_batch=4",
    "micro_batch=4",
    "log_every=1",
]


def train_config(*overrides: str) -> TrainConfig:
    """A training's settings as the command line would make them."""
    return load_config(TrainConfig, "train", ["output_dir=unused", *overrides])


def tiny_overrides(folder: Path, tokenizer: Path, *more: str) -> list[str]:
    """Overrides of a tiny nano training into `folder`."""
    return [f"output_dir={folder}", f"tokenizer.weights={tokenizer}", *TINY_TOKENIZER, *TINY_GPT, *more]


def run_module(
    module: str, *arguments: str, processes: int = 0, timeout: float = 400
) -> subprocess.CompletedProcess[str]:
    """`python -m module ...` (or `python script.py ...`), under torchrun with `processes` gloo workers."""
    launcher = [sys.executable]
    if processes:
        launcher += ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    if not module.endswith(".py"):
        launcher.append("-m")
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run(
        [*launcher, module, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=timeout
    )
