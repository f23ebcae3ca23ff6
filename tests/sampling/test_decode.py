"""Sampling: filters, guidance and seeds."""

from __future__ import annotations

import pytest
import torch

from editar.config import GPTConfig, SamplingConfig
from editar.models.gpt import GPT
from editar.sampling.decode import SampleSeeds, draw_tokens, filter_logits, generate, guide, probabilities


@pytest.fixture(scope="module")
def gpt() -> GPT:
    torch.manual_seed(1)
    model = GPT(
        GPTConfig(
            dim=32, n_layer=2, n_head=4, multiple_of=16, vocab_size=40, grid=3, text_tokens=4, text_dim=8,
            null_text_rows=4, teacher_dim=None,
        )
    ).eval()  # fmt: skip
    torch.nn.init.normal_(model.output.weight, std=0.3)
    return model


def conditions(batch: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(7)
    return torch.randint(40, (batch, 9), generator=generator), torch.randn(batch, 4, 8, generator=generator)


def test_top_k_keeps_ties_and_clamps() -> None:
    logits = torch.tensor([[1.0, 3.0, 2.0, 2.0]])
    assert filter_logits(logits, 2, 1.0).isfinite().tolist() == [[False, True, True, True]]
    assert filter_logits(logits, 99, 1.0).isfinite().all()
    assert torch.equal(filter_logits(logits, 0, 1.0), logits)


def test_top_p_keeps_the_token_that_crosses() -> None:
    logits = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log()
    assert filter_logits(logits, 0, 0.6).isfinite().sum() == 2
    assert filter_logits(logits, 0, 0.0).isfinite().tolist() == [[True, False, False, False]]
    assert filter_logits(logits, 0, 1.0).isfinite().all()


def test_filtering_leaves_its_input_alone() -> None:
    logits = torch.randn(3, 20)
    before = logits.clone()
    filter_logits(logits, 5, 0.5)
    assert torch.equal(logits, before)


def test_temperature_zero_is_greedy() -> None:
    logits = torch.randn(4, 30)
    probs = probabilities(logits, SamplingConfig(temperature=0.0, top_k=0))
    assert torch.equal(probs.argmax(-1), logits.argmax(-1))
    assert (probs.max(-1).values > 0.99).all()


def test_draws_follow_the_probabilities() -> None:
    probs = torch.tensor([[0.0, 0.2, 0.0, 0.8]])
    uniform = torch.linspace(0, 1, 1001, dtype=torch.float64)[:-1]
    tokens = torch.stack([draw_tokens(probs, u[None]) for u in uniform])[:, 0]
    assert set(tokens.tolist()) == {1, 3}
    assert (tokens == 1).float().mean() == pytest.approx(0.2, abs=2e-3)


def test_guidance_is_the_papers_equation() -> None:
    cond, uncond = torch.randn(2, 5), torch.randn(2, 5)
    torch.testing.assert_close(guide(cond, uncond, 3.0), uncond + 3 * (cond - uncond))
    torch.testing.assert_close(guide(cond, uncond, 1.0), cond)


@pytest.mark.parametrize("cfg_scale", [1.0, 2.5])
def test_a_sample_does_not_depend_on_its_batch(gpt: GPT, cfg_scale: float) -> None:
    settings = SamplingConfig(cfg_scale=cfg_scale, top_k=20, top_p=0.9)
    source, text = conditions(5)
    ids = [f"s{i}" for i in range(5)]
    whole = generate(gpt, source, text, settings, SampleSeeds(0, ids))
    for i in range(5):
        alone = generate(gpt, source[i : i + 1], text[i : i + 1], settings, SampleSeeds(0, ids[i : i + 1]))
        assert torch.equal(alone[0], whole[i])


def test_seeds_matter_and_repeat(gpt: GPT) -> None:
    source, text = conditions(2)
    settings = SamplingConfig(cfg_scale=1.0, top_k=0)
    first = generate(gpt, source, text, settings, SampleSeeds(0, ["a", "b"]))
    assert torch.equal(first, generate(gpt, source, text, settings, SampleSeeds(0, ["a", "b"])))
    assert not torch.equal(first, generate(gpt, source, text, settings, SampleSeeds(1, ["a", "b"])))
    assert not torch.equal(first, generate(gpt, source, text, settings, SampleSeeds(0, ["a", "b"], draw=1)))


def test_scale_one_equals_no_guidance_and_interval_zero_guides_two_tokens(gpt: GPT) -> None:
    source, text = conditions(3)
    plain = generate(gpt, source, text, SamplingConfig(cfg_scale=1.0, greedy=True))
    barely = generate(gpt, source, text, SamplingConfig(cfg_scale=1.0 + 1e-6, greedy=True))
    assert torch.equal(plain, barely)
    full = generate(gpt, source, text, SamplingConfig(cfg_scale=6.0, greedy=True))
    interval = generate(gpt, source, text, SamplingConfig(cfg_scale=6.0, cfg_interval=0, greedy=True))
    assert torch.equal(full[:, :2], interval[:, :2])
    assert not torch.equal(full, interval)


def test_a_dropped_source_no_longer_matters(gpt: GPT) -> None:
    source, text = conditions(2)
    drop = torch.tensor([True, True])
    settings = SamplingConfig(greedy=True, cfg_scale=2.0)
    a = generate(gpt, source, text, settings, drop_image=drop)
    assert torch.equal(a, generate(gpt, (source + 1) % 40, text, settings, drop_image=drop))


def test_drawing_without_seeds_is_refused(gpt: GPT) -> None:
    with pytest.raises(ValueError, match="needs seeds"):
        generate(gpt, *conditions(1), SamplingConfig())
