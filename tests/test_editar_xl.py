"""The paper's model, without its bytes: names, shapes and size of `experiment=editar_xl`."""

from __future__ import annotations

import json

import pytest
import torch

from editar.config import RopeConfig, TrainConfig
from editar.models.gpt import GPT
from editar.runtime.entry import load_config
from tests.helpers import tiny

GOLDEN = tiny.GOLDEN
WIDTH, LAYERS, FFN, CODES, CAPTION, GRID, TEXT = 1280, 36, 3584, 16384, 2048, 32, 120


@pytest.fixture(scope="module")
def cfg() -> TrainConfig:
    return load_config(TrainConfig, "train", ["experiment=editar_xl", "output_dir=x"])


@pytest.fixture(scope="module")
def xl(cfg: TrainConfig) -> GPT:
    with torch.device("meta"):
        return GPT(cfg.gpt)


def test_config_is_the_papers(cfg: TrainConfig) -> None:
    gpt = cfg.gpt
    assert (gpt.dim, gpt.n_layer, gpt.n_head, gpt.ffn_dim) == (WIDTH, LAYERS, 20, FFN)
    assert (gpt.vocab_size, gpt.text_dim, gpt.text_tokens, gpt.grid) == (CODES, CAPTION, TEXT, GRID)
    assert (gpt.prefix_tokens, gpt.sequence_tokens, gpt.teacher_dim) == (1144, 2168, 768)
    assert gpt.rope == RopeConfig()
    assert (cfg.steps, cfg.global_batch, cfg.optim.lr, cfg.loss.distill_weight) == (40000, 64, 1e-4, 0.5)


def test_parameter_count(xl: GPT) -> None:
    """777.7 M (777,678,080): every parameter but the alignment layer (3.9 M), and no null table, which are buffers."""
    sizes = {name: parameter.numel() for name, parameter in xl.named_parameters()}
    alignment = sum(size for name, size in sizes.items() if name.startswith("alignment."))
    per_layer = 4 * WIDTH * WIDTH + 3 * WIDTH * FFN + 2 * WIDTH
    caption = CAPTION * WIDTH + WIDTH * WIDTH
    tables = 2 * CODES * WIDTH  # embedding and output are not tied
    total = sum(sizes.values()) - alignment
    assert total == LAYERS * per_layer + caption + tables + WIDTH == 777_678_080
    assert alignment == 768 * WIDTH * 2 * 2 + 768
    assert {name: tuple(buffer.shape) for name, buffer in xl.named_buffers()} == {
        "img_uncond_embedding": (GRID * GRID, WIDTH),
        "cls_embedding.uncond_embedding": (TEXT, CAPTION),
    }


def test_every_key_is_the_official_one_at_scale(xl: GPT) -> None:
    """The release's tiny stand-in has dim 16, 64 codes, 24-d text, a 4 x 4 grid, FFN 256 and 2 layers."""
    tiny = torch.load(GOLDEN / "release_ckpt" / "t2i_tiny.pt", weights_only=True)["model"]
    golden = json.loads((GOLDEN / "release_ckpt" / "keys.json").read_text())
    shapes = {key: tuple(value.shape) for key, value in tiny.items()}
    shapes |= {"img_uncond_embedding": (16, 16), "alignment.weight": (768, 16, 2, 2), "alignment.bias": (768,)}
    scale = {16: WIDTH, 48: 3 * WIDTH, 64: CODES, 24: CAPTION, 256: FFN, 120: TEXT, 768: 768, 2: 2}
    expected = {}
    for key in golden["editar_release"]["model_keys"]:
        shape = tuple(scale[n] for n in shapes[key])
        if key == "img_uncond_embedding":
            shape = (GRID * GRID, WIDTH)
        if not key.startswith("layers."):
            expected[key] = shape
        elif key.startswith("layers.0."):
            expected |= {key.replace("layers.0.", f"layers.{i}."): shape for i in range(LAYERS)}
    assert {key: tuple(value.shape) for key, value in xl.state_dict().items()} == expected


def test_parameters_and_buffers_are_split_as_in_the_official_model(xl: GPT) -> None:
    groups = json.loads((GOLDEN / "release_ckpt" / "keys.json").read_text())["editar_release"]
    trained = set(groups["optimizer_group0_names"] + groups["optimizer_group1_names"])
    first = {
        name
        for name, _ in xl.named_parameters()
        if not name.startswith("layers.") or name.startswith(("layers.0.", "layers.1."))
    }
    assert first == trained
