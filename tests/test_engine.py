"""The engine equals the plain loop: the same codes under every setting, in every grouping."""

from __future__ import annotations

import pytest
import torch

from editar.config import GPTConfig, RopeConfig, SamplingConfig
from editar.model.gpt import GPT
from editar.sampling.decode import SampleSeeds, generate
from editar.sampling.engine import Engine, known_runs

ROPES = {
    "editar": RopeConfig(),
    "identity": RopeConfig(text="identity"),
    "shared": RopeConfig("shared", "identity", "output", True, 50.0),
    "zero_output": RopeConfig("quadrants", "zero", "output"),
}
SETTINGS = {
    "greedy": SamplingConfig(cfg_scale=3.0, greedy=True),
    "greedy, no guidance": SamplingConfig(cfg_scale=1.0, greedy=True),
    "drawn": SamplingConfig(cfg_scale=2.5, top_k=20, top_p=0.9, temperature=0.8, seed=3),
    "drawn, no guidance": SamplingConfig(cfg_scale=1.0, top_k=0, top_p=0.7),
    "guided start": SamplingConfig(cfg_scale=4.0, cfg_interval=2, top_k=10),
}


def small_gpt(rope: str = "editar", kv_heads: int | None = None) -> GPT:
    torch.manual_seed(1)
    cfg = GPTConfig(
        dim=32, n_layer=2, n_head=4, n_kv_head=kv_heads, multiple_of=16, vocab_size=40, grid=4, text_tokens=5,
        text_dim=8, null_text_rows=5, teacher_dim=None, rope=ROPES[rope],
    )  # fmt: skip
    model = GPT(cfg).eval()
    for parameter in model.parameters():  # as large as trained ones, so that each part matters
        torch.nn.init.normal_(parameter, std=0.3) if parameter.ndim > 1 else None
    return model


@pytest.fixture(scope="module")
def gpt() -> GPT:
    return small_gpt()


def conditions(images: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(7)
    return torch.randint(40, (images, 16), generator=generator), torch.randn(images, 5, 8, generator=generator)


def seeds(cfg: SamplingConfig, count: int) -> SampleSeeds | None:
    return None if cfg.greedy else SampleSeeds(cfg.seed, [f"s{i}" for i in range(count)])


def both(model: GPT, images: int, cfg: SamplingConfig, **given: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    source, text = conditions(images)
    fast = Engine(model).generate(source, text, cfg, seeds(cfg, images), **given)
    return fast, generate(model, source, text, cfg, seeds(cfg, images), **given)


@pytest.mark.parametrize("images", [1, 3, 8])
@pytest.mark.parametrize("settings", SETTINGS)
def test_codes_are_those_of_the_plain_loop(gpt: GPT, settings: str, images: int) -> None:
    fast, plain = both(gpt, images, SETTINGS[settings])
    assert torch.equal(fast, plain)
    assert len(set(fast[0].tolist())) > 3  # a stuck model would agree for nothing


@pytest.mark.parametrize("kv_heads", [None, 2])
@pytest.mark.parametrize("rope", ROPES)
def test_every_positional_design(rope: str, kv_heads: int | None) -> None:
    for name in ("greedy", "drawn"):
        fast, plain = both(small_gpt(rope, kv_heads), 3, SETTINGS[name])
        assert torch.equal(fast, plain)


def test_dropped_source_images(gpt: GPT) -> None:
    fast, plain = both(gpt, 3, SETTINGS["greedy"], drop_image=torch.tensor([True, False, True]))
    assert torch.equal(fast, plain)
    assert not torch.equal(fast, both(gpt, 3, SETTINGS["greedy"])[0])


@pytest.mark.parametrize("settings", ["drawn", "drawn, no guidance"])
def test_samples_of_one_image_share_its_prefix(gpt: GPT, settings: str) -> None:
    """Two images, three samples each, against six separate images."""
    cfg = SETTINGS[settings]
    source, text = conditions(2)
    fast = Engine(gpt).generate(source, text, cfg, seeds(cfg, 6), samples=3)
    plain = generate(gpt, source.repeat_interleave(3, 0), text.repeat_interleave(3, 0), cfg, seeds(cfg, 6))
    assert torch.equal(fast, plain)
    assert not torch.equal(fast[0], fast[1])


GIVEN = {
    "nothing": "................",
    "begin": "xxxxx...........",
    "end": "......xxxxxxxxxx",
    "holes": "xx..xxxx.x.xxxx.",
    "one": "x...x...x...x...",
    "everything": "xxxxxxxxxxxxxxxx",
}


@pytest.mark.parametrize("pattern", GIVEN)
@pytest.mark.parametrize("settings", ["greedy", "drawn"])
def test_given_codes(gpt: GPT, settings: str, pattern: str) -> None:
    source, _ = conditions(3)
    given = torch.tensor([letter == "x" for letter in GIVEN[pattern]])
    forced = torch.where(given, source, -1)
    fast, plain = both(gpt, 3, SETTINGS[settings], forced=forced)
    assert torch.equal(fast, plain)
    assert torch.equal(fast[:, given], source[:, given])


def test_given_codes_may_differ_from_image_to_image(gpt: GPT) -> None:
    source, _ = conditions(3)
    forced = source.clone()
    for image in range(3):
        forced[image, 4 * image : 4 * image + 6] = -1
    fast, plain = both(gpt, 3, SETTINGS["drawn"], forced=forced)
    assert torch.equal(fast, plain)
    assert known_runs(forced, 16) == [(14, 16)]


def test_long_given_runs_are_read_in_pieces(gpt: GPT, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("editar.sampling.engine.LONGEST_READ", 3)
    source, _ = conditions(1)
    forced = torch.where(torch.arange(16) < 13, source, -1)
    fast, plain = both(gpt, 1, SETTINGS["greedy"], forced=forced)
    assert torch.equal(fast, plain)
