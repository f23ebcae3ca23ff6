"""Losses by name, the chunked cross entropy, and who loses which condition."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from editar.config import DropConfig, LossConfig
from editar.training import losses
from editar.training.losses import Objective, condition_drops, distill_loss, token_loss
from tests.helpers.tiny_gpt import ROPES, config, model


def rows() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    hidden, weight = torch.randn(2, 5, 8, requires_grad=True), torch.randn(11, 8, requires_grad=True)
    return hidden, weight, torch.randint(11, (2, 5))


@pytest.mark.parametrize("chunk", [11, 3 * 11, 2**26], ids=["one row", "three rows", "all at once"])
def test_chunked_cross_entropy_equals_torchs(monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    monkeypatch.setattr(losses, "CHUNK_LOGITS", chunk)
    hidden, weight, target = rows()
    loss, nll, hits = token_loss(hidden, weight, target)
    logits = hidden @ weight.T
    expected = F.cross_entropy(logits.flatten(0, 1), target.flatten())
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(nll, F.cross_entropy(logits.transpose(1, 2), target, reduction="none"))
    assert torch.equal(hits, logits.argmax(-1) == target)
    found = torch.autograd.grad(3 * loss, (hidden, weight))
    for ours, theirs in zip(found, torch.autograd.grad(3 * expected, (hidden, weight)), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_scores_need_no_gradient() -> None:
    hidden, weight, target = rows()
    with torch.no_grad():
        loss, nll, _ = token_loss(hidden, weight, target)
    torch.testing.assert_close(loss, nll.mean())
    assert not token_loss(hidden, weight, target)[1].requires_grad


def test_under_autocast_the_product_is_bf16_and_the_loss_float32() -> None:
    hidden, weight, target = rows()
    with torch.autocast("cpu", torch.bfloat16):
        loss, _, _ = token_loss(hidden, weight, target)
        logits = F.linear(hidden, weight).float()
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, F.cross_entropy(logits.flatten(0, 1), target.flatten()))
    loss.backward()
    assert weight.grad is not None and weight.grad.dtype == torch.float32


def test_total_is_the_papers_sum() -> None:
    gpt = model(config(ROPES["editar"]))
    cfg = gpt.cfg
    source, target = torch.randint(cfg.vocab_size, (2, 2, cfg.image_tokens))
    text = torch.randn(2, cfg.text_tokens, cfg.text_dim)
    output = gpt(source, text, target)
    assert output.features is not None
    teacher = torch.randn_like(output.features)
    scores = Objective(gpt, LossConfig(distill_weight=0.5))(source, text, target, teacher=teacher)
    nll = F.cross_entropy(output.logits.transpose(1, 2), target, reduction="none")
    torch.testing.assert_close(scores.terms["token"], nll.mean())
    torch.testing.assert_close(scores.nll, nll.mean(1))
    torch.testing.assert_close(scores.terms["distill"], 0.5 * (output.features - teacher).square().mean())
    torch.testing.assert_close(scores.accuracy, (output.logits.argmax(-1) == target).float().mean(1))
    assert Objective(gpt, LossConfig())(source, text, target).terms.keys() == {"token"}


def test_recomputed_blocks_give_the_same_gradients() -> None:
    gpt = model(config(ROPES["editar"]))
    cfg = gpt.cfg
    source, target = torch.randint(cfg.vocab_size, (2, 2, cfg.image_tokens))
    text = torch.randn(2, cfg.text_tokens, cfg.text_dim)
    found = []
    for gpt.recompute in (False, True):
        gpt.zero_grad()
        Objective(gpt, LossConfig())(source, text, target).terms["token"].backward()
        found.append([p.grad.clone() for p in gpt.parameters() if p.grad is not None])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_maps_of_other_sizes_are_named() -> None:
    with pytest.raises(ValueError, match=r"student features \(1, 4, 3\) do not match the teacher's \(1, 9, 3\)"):
        distill_loss(torch.zeros(1, 4, 3), torch.zeros(1, 9, 3))


def test_drop_thresholds_are_strict_and_float32() -> None:
    r = torch.tensor([0.0, 0.0499999, 0.05, 0.0999999, 0.1, 0.5, 0.95, 0.9500001, 0.9999999])
    image, text = condition_drops(r, DropConfig())
    assert image.tolist() == [True, True, True, True, False, False, False, False, False]
    assert text.tolist() == [True, True, False, False, False, False, False, True, True]


def test_drop_shares() -> None:
    image, text = condition_drops(torch.linspace(0, 1, 100001)[:-1], DropConfig())
    assert (image & text).float().mean() == pytest.approx(0.05, abs=1e-4)
    assert (image & ~text).float().mean() == pytest.approx(0.05, abs=1e-4)
    assert (text & ~image).float().mean() == pytest.approx(0.05, abs=1e-4)
