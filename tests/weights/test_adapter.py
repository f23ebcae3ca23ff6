"""Adapters: what peft computes, what it reads, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import PeftModel
from torch import nn

from editar.config import LoraConfig, LossConfig
from editar.errors import CheckpointError, ConfigError
from editar.models.gpt import GPT
from editar.runtime.files import save_weights
from editar.training.losses import Objective
from editar.weights.adapter import adapt, adapter_weights, eight_bit, load_adapter, merge_lora, write_adapter_config
from tests.helpers.tiny_gpt import config, model

LORA = LoraConfig(rank=3, alpha=6.0)
SIZES = config()


def inputs() -> tuple[torch.Tensor, ...]:
    codes = torch.randint(SIZES.vocab_size, (2, 2, SIZES.image_tokens))
    return codes[0], torch.randn(2, SIZES.text_tokens, SIZES.text_dim), codes[1]


def adapted(cfg: LoraConfig = LORA) -> tuple[GPT, dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """A GPT whose adapters do something, its base's weights, and the adapters by peft's names."""
    gpt = model(SIZES).eval()
    base = {name: value.clone() for name, value in gpt.state_dict().items()}
    adapt(gpt, cfg)
    for parameter in gpt.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.3)
    return gpt, base, adapter_weights(gpt.state_dict())


def fresh(base: dict[str, torch.Tensor]) -> GPT:
    gpt = GPT(SIZES).eval()
    gpt.load_state_dict(base)
    return gpt


@torch.no_grad()
def test_merged_weights_compute_what_the_adapters_compute() -> None:
    gpt, base, adapter = adapted()
    merged, given = fresh(base), inputs()
    before = merged(*given).logits
    merge_lora(merged, LORA, adapter)
    torch.testing.assert_close(merged(*given).logits, gpt(*given).logits, rtol=1e-4, atol=1e-4)
    assert (merged(*given).logits - before).abs().max() > 0.1


@torch.no_grad()
def test_peft_reads_the_files(tmp_path: Path) -> None:
    gpt, base, adapter = adapted()
    save_weights(adapter, tmp_path / "adapter_model.safetensors")
    write_adapter_config(tmp_path, LORA, "runs/base")
    found = PeftModel.from_pretrained(fresh(base), tmp_path)
    given = inputs()
    torch.testing.assert_close(found(*given).logits, gpt(*given).logits, rtol=1e-4, atol=1e-4)
    assert found.peft_config["default"].base_model_name_or_path == "runs/base"


def test_only_adapters_learn_and_a_bf16_base_computes_the_same() -> None:
    """Under autocast a float32 weight is rounded to bfloat16 before every product anyway."""
    losses, gradients = [], []
    for held in ("fp32", "bf16"):
        torch.manual_seed(3)
        gpt, _, _ = adapted(LoraConfig(rank=2, base=held, targets=["wqkv", "w2"]))
        torch.manual_seed(5)
        with torch.autocast("cpu", torch.bfloat16):
            loss = Objective(gpt, LossConfig())(*inputs()).terms["token"]
        loss.backward()
        trained = {name: p for name, p in gpt.named_parameters() if p.requires_grad}
        assert all(".lora_" in name and p.dtype == torch.float32 for name, p in trained.items())
        assert len(trained) == 2 * 2 * SIZES.n_layer
        assert gpt.layers[0].attention.wo.weight.dtype == (torch.bfloat16 if held == "bf16" else torch.float32)
        losses.append(loss.item())
        gradients.append({name: p.grad for name, p in trained.items()})
    assert losses[0] == losses[1]
    assert all(torch.equal(gradients[0][name], gradients[1][name]) for name in gradients[0])


def test_an_adapter_that_does_not_fit_is_named() -> None:
    _, base, adapter = adapted()
    first = next(iter(adapter))
    without = {name: value for name, value in adapter.items() if name != first}
    for cfg, given, message in (
        (LORA, without, "lora_A.weight is missing, expected"),
        (LoraConfig(rank=4), adapter, r"is \(3, \d+\), expected \(4, \d+\)"),
        (LoraConfig(rank=3, targets=["wo"]), adapter, "expected nothing"),
    ):
        gpt = fresh(base)
        with pytest.raises(CheckpointError, match=message):
            merge_lora(gpt, cfg, given)
        assert all(torch.equal(value, base[name]) for name, value in gpt.state_dict().items())


def test_an_adapter_of_no_numbers_is_named(tmp_path: Path) -> None:
    _, _, adapter = adapted()
    first, value = next(iter(adapter.items()))
    for spoilt, message in ((value.int(), "no floating-point weights"), (value * torch.nan, "not finite")):
        save_weights(adapter | {first: spoilt}, tmp_path / "adapter_model.safetensors")
        with pytest.raises(CheckpointError, match=rf"adapter_model\.safetensors: {message}: {first}"):
            load_adapter(tmp_path)


def test_eight_bits_need_their_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("editar.weights.adapter.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"lora\.base=int8 needs bitsandbytes: pip install"):
        adapt(model(SIZES), LoraConfig(rank=2, base="int8"))


def test_eight_bits_are_nearly_the_layer() -> None:
    torch.manual_seed(0)
    layer, given = nn.Linear(64, 48, bias=False), torch.randn(10, 64, requires_grad=True)
    results = []
    for made in (layer, eight_bit(layer)):
        output = made(given)
        results.append((output.float(), torch.autograd.grad(output.square().sum(), given)[0]))
    for exact, rounded in zip(*results, strict=True):
        assert 0 < (rounded - exact).norm() < 0.05 * exact.norm()
