"""The nano world's T5 encoder: transformers' with the same weights, and the weights that its checkpoints know."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from transformers import T5Config, T5EncoderModel

from editar.config import TextConfig
from editar.models.nano_t5 import NanoT5
from editar.models.text import WordTokenizer
from tests.helpers.tiny import ROOT

TEXTS = ["make the red circle blue", "add a small green triangle at the top left " * 4, "remove", ""]


def theirs(cfg: TextConfig, ours: NanoT5) -> T5EncoderModel:
    """transformers' module with our weights, and the table of T5's buckets: 0-7 the token itself and those before it,
    16 + n the n-th after it."""
    shape = T5Config(
        vocab_size=ours.shared.num_embeddings, d_model=cfg.dim, d_kv=cfg.dim // cfg.nano_heads, d_ff=2 * cfg.dim,
        num_layers=cfg.nano_layers, num_heads=cfg.nano_heads, dropout_rate=0.0, feed_forward_proj="gated-gelu",
    )  # fmt: skip
    table = torch.zeros(32, cfg.nano_heads)
    for head, offset in enumerate(ours.offsets):
        table[abs(offset) + 16 * (offset > 0), head] = 5.0
    table_name = "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
    model = T5EncoderModel(shape)
    missing, unexpected = model.load_state_dict(ours.state_dict() | {table_name: table}, strict=False)
    assert set(missing) <= {"encoder.embed_tokens.weight"} and not unexpected  # that one is `shared`
    return model


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("sizes", [{}, {"dim": 48, "nano_heads": 3, "nano_layers": 3, "nano_seed": 5}])
def test_it_computes_what_transformers_does(sizes: dict[str, int], dtype: torch.dtype) -> None:
    cfg = TextConfig(**{"name": "nano", "dim": 64, "max_tokens": 24, **sizes})
    tokenizer = WordTokenizer(cfg.max_tokens)
    ours = NanoT5(cfg, tokenizer.size)
    model, tokens = theirs(cfg, ours).to(dtype).eval(), tokenizer(TEXTS)[0]
    with torch.no_grad():
        expected = model(input_ids=tokens.ids, attention_mask=tokens.mask).last_hidden_state
        found = ours.to(dtype)(tokens.ids, tokens.mask).last_hidden_state
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 if dtype == torch.float32 else 0.04)


def test_a_seed_means_the_weights_of_the_published_checkpoints() -> None:
    """Whatever version of transformers is installed; torch's random state stays."""
    state = torch.get_rng_state()
    model = NanoT5(TextConfig(name="nano", dim=64, max_tokens=24), 74)
    assert torch.equal(torch.get_rng_state(), state)
    last = {
        "encoder.block.0.layer.0.SelfAttention.k.weight": [-0.107672, -0.178053, 0.347098],
        "encoder.block.1.layer.1.DenseReluDense.wo.weight": [-0.008908, 0.006212, 0.015649],
        "shared.weight": [-0.87772, -0.494734, 1.779147],
    }
    for name, values in last.items():
        assert model.state_dict()[name].flatten()[-3:].tolist() == pytest.approx(values, abs=2e-6)


def test_the_nano_encoder_needs_no_transformers() -> None:
    code = (
        "import sys, torch; from editar.config import TextConfig; from editar.models.text import TextEncoder\n"
        "TextEncoder(TextConfig(name='nano', dim=64), torch.device('cpu'))(['make it blue'])\n"
        "print(sorted({'transformers', 'torch._dynamo', 'scipy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
