"""Losses by name, and who loses which condition."""

from __future__ import annotations

import pytest
import torch

from editar.config import DropConfig, LossConfig
from editar.model.gpt import GPTOutput
from editar.training.losses import condition_drops, distill_loss, losses


def test_total_is_the_papers_sum() -> None:
    logits, target = torch.randn(2, 4, 9), torch.randint(9, (2, 4))
    student, teacher = torch.randn(2, 1, 3), torch.randn(2, 1, 3)
    terms = losses(GPTOutput(logits, student), target, teacher, LossConfig(distill_weight=0.5))
    nll = -logits.log_softmax(-1).gather(-1, target[..., None]).mean()
    torch.testing.assert_close(terms["token"], nll)
    torch.testing.assert_close(terms["distill"], 0.5 * (student - teacher).square().mean())
    assert losses(GPTOutput(logits, None), target, None, LossConfig()).keys() == {"token"}


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
