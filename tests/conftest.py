"""Small real objects shared by the tests: a tiny tokenizer, a tiny trained run, two-process launches."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent

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


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def tiny_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run folder of a tokenizer trained for three steps."""
    from editar.config import TokenizerTrainConfig
    from editar.runtime.entry import load_config
    from editar.training.tokenizer_loop import train_tokenizer

    folder = tmp_path_factory.mktemp("tokenizer") / "run"
    overrides = ["steps=3", "kmeans_at=1", "restart_every=2", "num_workers=0", "log_every=1", "batch_size=4"]
    return train_tokenizer(
        load_config(TokenizerTrainConfig, "train_tokenizer", [f"output_dir={folder}", *overrides, *TINY_TOKENIZER])
    )


def tiny_overrides(folder: Path, tokenizer: Path, *more: str) -> list[str]:
    """Overrides of a tiny nano training into `folder`."""
    return [f"output_dir={folder}", f"tokenizer.weights={tokenizer}", *TINY_TOKENIZER, *TINY_GPT, *more]


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: Path) -> Path:
    """Run folder of a GPT trained for four steps on the tiny tokenizer's codes."""
    from editar.config import TrainConfig
    from editar.runtime.entry import load_config
    from editar.training.loop import train

    folder = tmp_path_factory.mktemp("gpt") / "run"
    steps = ["steps=4", "eval_every=4", "save_every=2"]
    return train(load_config(TrainConfig, "train", tiny_overrides(folder, tiny_tokenizer, *steps)))


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


@pytest.fixture(scope="session")
def five_sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Prepared folders of the paper's five sources, made from miniature downloads: name -> folder."""
    import miniature

    from editar.data.prepare.parquet import Request, prepare

    root = tmp_path_factory.mktemp("five")
    makers = {
        "pipe": miniature.write_pipe,
        "multigen_depth": miniature.write_multigen_depth,
        "cocostuff": miniature.write_cocostuff,
        "seed_unsplash": miniature.write_seed,
    }
    folders = {}
    for name, make in makers.items():
        download = make(root / f"download_{name}", 24)
        folders[name] = root / name
        prepare(Request(source=name, origin=str(download), folder=folders[name], workers=1))
    return folders | {"multigen_canny": folders["multigen_depth"]}
