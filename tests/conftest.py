"""Small real objects shared by the tests: a tiny tokenizer, a tiny trained run, prepared data sets."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from tests.helpers.tiny import TINY_TOKENIZER, tiny_overrides


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def gpu() -> torch.device:
    """For tests marked gpu. In a rehearsal (`benchmarks/gpu.py --rehearse`) it is the CPU, where they leave out what
    only CUDA has; so their code has run before it meets a GPU."""
    if not torch.cuda.is_available() and "EDITAR_REHEARSE" not in os.environ:
        pytest.skip("needs a CUDA device")
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture(scope="session")
def tiny_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run folder of a tokenizer trained for three steps."""
    from editar.config import TokenizerTrainConfig
    from editar.runtime.entry import load_config
    from editar.training.tokenizer.loop import train_tokenizer

    folder = tmp_path_factory.mktemp("tokenizer") / "run"
    overrides = ["steps=3", "kmeans_at=1", "restart_every=2", "num_workers=0", "log_every=1", "batch_size=4"]
    return train_tokenizer(
        load_config(TokenizerTrainConfig, "train_tokenizer", [f"output_dir={folder}", *overrides, *TINY_TOKENIZER])
    )


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: Path) -> Path:
    """Run folder of a GPT trained for four steps on the tiny tokenizer's codes."""
    from editar.config import TrainConfig
    from editar.runtime.entry import load_config
    from editar.training.loop import train

    folder = tmp_path_factory.mktemp("gpt") / "run"
    steps = ["steps=4", "eval_every=4", "save_every=2"]
    return train(load_config(TrainConfig, "train", tiny_overrides(folder, tiny_tokenizer, *steps)))


@pytest.fixture(scope="session")
def five_sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Prepared folders of the paper's five sources, made from miniature downloads: name -> folder."""
    from editar.data.prepare.prepare import prepare
    from editar.data.prepare.request import Request
    from tests.helpers import miniature

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
