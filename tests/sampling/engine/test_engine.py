"""The engine equals the plain loop: the same codes under every setting, in every grouping."""

from __future__ import annotations

import gc
from dataclasses import replace

import pytest
import torch

from editar.config import GPTConfig, RopeConfig, SamplingConfig
from editar.errors import ConfigError
from editar.models.gpt import GPT
from editar.sampling.decode import SampleSeeds, generate, generate_parallel
from editar.sampling.engine import Engine
from editar.sampling.engine.linear import PackedLinear, pick_linear
from editar.sampling.stats import copy_bandwidth

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


def small_gpt(rope: str = "editar", kv_heads: int | None = None, sources: int = 1) -> GPT:
    torch.manual_seed(1)
    cfg = GPTConfig(
        dim=32, n_layer=2, n_head=4, n_kv_head=kv_heads, multiple_of=16, vocab_size=40, grid=4, text_tokens=5,
        text_dim=8, null_text_rows=5, teacher_dim=None, rope=ROPES[rope],
        images=sources,
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


def both(model: GPT, images: int, cfg: SamplingConfig, **options: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    source, text = conditions(images)
    fast = Engine(model).generate(source, text, cfg, seeds(cfg, images), **options)
    return fast, generate(model, source, text, cfg, seeds(cfg, images), **options)


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


@pytest.mark.parametrize("rope", ROPES)
def test_several_source_images(rope: str) -> None:
    """Two sources, in some rows one of them dropped, with known codes and several samples of each."""
    model = small_gpt(rope, sources=2)
    first, text = conditions(3)
    source = torch.cat([first, conditions(5)[0][2:]], dim=1)
    drop = torch.tensor([[False, False], [False, True], [True, False]])
    known = torch.where(torch.arange(16) % 3 == 0, first, -1)
    for name in ("greedy", "drawn"):
        cfg = SETTINGS[name]
        options = {"drop_image": drop, "known_codes": known}
        fast = Engine(model).generate(source, text, cfg, seeds(cfg, 3), **options)
        assert torch.equal(fast, generate(model, source, text, cfg, seeds(cfg, 3), **options))
        parallel, _ = generate_parallel(model, source, text, cfg, 8, seeds(cfg, 3), **options)
        assert torch.equal(fast, parallel)
        drawn = Engine(model).generate(source, text, cfg, seeds(cfg, 6), drop, samples=2)
        twice = [tensor.repeat_interleave(2, 0) for tensor in (source, text)]
        assert torch.equal(drawn, generate(model, *twice, cfg, seeds(cfg, 6), drop.repeat_interleave(2, 0)))
    other = source.roll(1, 0)
    source[:, 16:] = other[:, 16:]
    assert not torch.equal(Engine(model).generate(source, text, cfg, seeds(cfg, 3), **options)[:1], fast[:1])


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


KNOWN = {
    "nothing": "................",
    "begin": "xxxxx...........",
    "end": "......xxxxxxxxxx",
    "holes": "xx..xxxx.x.xxxx.",
    "one": "x...x...x...x...",
    "everything": "xxxxxxxxxxxxxxxx",
}


@pytest.mark.parametrize("pattern", KNOWN)
@pytest.mark.parametrize("settings", ["greedy", "drawn"])
def test_known_codes(gpt: GPT, settings: str, pattern: str) -> None:
    source, _ = conditions(3)
    known = torch.tensor([letter == "x" for letter in KNOWN[pattern]])
    known_codes = torch.where(known, source, -1)
    fast, plain = both(gpt, 3, SETTINGS[settings], known_codes=known_codes)
    assert torch.equal(fast, plain)
    assert torch.equal(fast[:, known], source[:, known])


def test_known_codes_may_differ_from_image_to_image(gpt: GPT) -> None:
    source, _ = conditions(3)
    known_codes = source.clone()
    for image in range(3):
        known_codes[image, 4 * image : 4 * image + 6] = -1
    fast, plain = both(gpt, 3, SETTINGS["drawn"], known_codes=known_codes)
    assert torch.equal(fast, plain)


def test_long_known_runs_are_read_in_pieces(gpt: GPT, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("editar.sampling.engine.engine.LONGEST_READ", 3)
    source, _ = conditions(1)
    known_codes = torch.where(torch.arange(16) < 13, source, -1)
    fast, plain = both(gpt, 1, SETTINGS["greedy"], known_codes=known_codes)
    assert torch.equal(fast, plain)


def test_the_second_call_allocates_nothing_and_prepares_nothing(gpt: GPT) -> None:
    engine, cfg = Engine(gpt), SETTINGS["drawn"]
    source, text = conditions(3)
    first = engine.generate(source, text, cfg, seeds(cfg, 3))
    session = engine._session
    for _ in range(20):
        assert torch.equal(engine.generate(source, text, cfg, seeds(cfg, 3)), first)
        assert engine._session is session
    other = replace(cfg, cfg_scale=1.5, temperature=0.3, seed=9, batch_size=2)
    assert torch.equal(
        engine.generate(source, text, other, seeds(other, 3)), generate(gpt, source, text, other, seeds(other, 3))
    )
    assert engine._session is session  # neither scale, temperature nor seed needs other buffers
    gc.collect()
    before = live_tensors()
    for _ in range(3):
        engine.generate(source, text, cfg, seeds(cfg, 3))
    gc.collect()
    assert live_tensors() == before


def live_tensors() -> int:
    return sum(isinstance(thing, torch.Tensor) for thing in gc.get_objects())


def test_another_shape_or_setting_replaces_the_buffers(gpt: GPT) -> None:
    engine = Engine(gpt)
    for images, name in ((1, "drawn"), (3, "drawn"), (3, "greedy"), (1, "drawn")):
        source, text = conditions(images)
        cfg = SETTINGS[name]
        plain = generate(gpt, source, text, cfg, seeds(cfg, images))
        assert torch.equal(engine.generate(source, text, cfg, seeds(cfg, images)), plain)


@pytest.mark.parametrize("settings", ["greedy", "drawn"])
def test_packed_weights_write_the_same_codes(gpt: GPT, settings: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("editar.sampling.engine.linear.PACK_FROM", 0)
    assert pick_linear(gpt.output.weight, compiles=False, int8=False) is PackedLinear
    for images in (1, 3):  # fewer and, in wide passes, more rows than a packed product takes
        fast, plain = both(gpt, images, replace(SETTINGS[settings], window=15))
        assert torch.equal(fast, plain)


def test_weights_that_change_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Packed copies of the weights would go on answering for the old model."""
    monkeypatch.setattr("editar.sampling.engine.linear.PACK_FROM", 0)
    model = small_gpt()
    engine, cfg = Engine(model), SETTINGS["greedy"]
    source, text = conditions(2)
    before = engine.generate(source, text, cfg)
    with torch.no_grad():
        model.layers[0].feed_forward.w2.weight.mul_(-1)
    after = engine.generate(source, text, cfg)
    assert not torch.equal(before, after)
    assert torch.equal(after, generate(model, source, text, cfg))


def test_progress_and_stats_count_every_code(gpt: GPT) -> None:
    engine, counted = Engine(gpt), []
    source, text = conditions(2)
    known_codes = torch.where(torch.arange(16) < 10, source, -1)
    engine.generate(source, text, SETTINGS["greedy"], known_codes=known_codes, progress=counted.append)
    assert sum(counted) == 2 * 16
    stats = engine.stats
    assert (stats.images, stats.codes, stats.codes_per_pass) == (2, 12, 12 / stats.image_passes)
    assert stats.bytes > 0 and stats.ms_per_pass > 0
    total = stats + stats
    assert (total.images, total.codes, total.passes_per_image) == (4, 24, stats.passes_per_image)
    assert "passes an image" in total.line(16, copy_bandwidth(torch.device("cpu"), megabytes=4))


def test_a_window_wider_than_the_image_is_cut_with_a_note(gpt: GPT, capsys: pytest.CaptureFixture[str]) -> None:
    source, text = conditions(2)
    cfg = replace(SETTINGS["drawn"], window=1000)
    plain = generate(gpt, source, text, cfg, seeds(cfg, 2))
    for _ in range(2):
        assert torch.equal(Engine(gpt).generate(source, text, cfg, seeds(cfg, 2)), plain)
    assert capsys.readouterr().err.count("sampling.window=1000 is more than the 16 codes of an image; using 16") == 1


def test_finished_results_leave_the_batch(gpt: GPT) -> None:
    """All but one image are known to the end; what is left must not disturb, or be disturbed by, what is gone."""
    source, _ = conditions(8)
    known_codes = source.clone()
    known_codes[5, 3:] = -1
    known_codes[2, 15] = -1
    for window in (1, 4, "auto"):
        cfg = replace(SETTINGS["drawn"], window=window)
        fast, plain = both(gpt, 8, cfg, known_codes=known_codes)
        assert torch.equal(fast, plain)


def test_drawing_without_seeds_is_refused(gpt: GPT) -> None:
    with pytest.raises(ValueError, match="needs seeds"):
        Engine(gpt).generate(*conditions(1), SamplingConfig())


@pytest.mark.slow
@pytest.mark.parametrize(("window", "graphs"), [(1, 2), (5, 1), ("auto", 4)])
def test_compiled_passes_write_the_same_codes(
    gpt: GPT, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], window: int | str, graphs: int
) -> None:
    """Window 1 has a graph for each of two buckets, every other width one; each serves both blocks."""
    monkeypatch.setattr("editar.sampling.engine.capture.BUCKETS", 2)
    torch._dynamo.reset()
    counters = torch._dynamo.utils.counters["stats"]
    counters.clear()
    engine, cfg = Engine(gpt, compile=True), replace(SETTINGS["drawn"], window=window)
    source, text = conditions(3)
    plain = generate(gpt, source, text, cfg, seeds(cfg, 3))
    for _ in range(2):
        assert torch.equal(engine.generate(source, text, cfg, seeds(cfg, 3)), plain)
        assert len(engine._steps) == graphs
        # torch 2.6 makes one graph for each block.
        assert counters["unique_graphs"] == graphs or torch.__version__.startswith("2.6")
    assert "torch.compile failed" not in capsys.readouterr().err
    # Another scale, temperature and seed need nothing new.
    compiled, other = counters["unique_graphs"], replace(cfg, cfg_scale=4.0, temperature=1.2, seed=11)
    plain = generate(gpt, source, text, other, seeds(other, 3))
    assert torch.equal(engine.generate(source, text, other, seeds(other, 3)), plain)
    assert counters["unique_graphs"] == compiled > 0


@pytest.mark.slow
def test_a_compiled_pass_writes_keys_and_values_in_place(gpt: GPT) -> None:
    """No copy of the cache in a layer: inductor's code scatters into its inputs and copies nothing back."""
    from torch._inductor.utils import run_and_get_code

    source, text = conditions(3)
    with torch._inductor.config.patch(force_disable_caches=True):
        cfg = replace(SETTINGS["greedy"], window=3)
        _, code = run_and_get_code(Engine(gpt, compile=True).generate, source, text, cfg)
    kernels = [line for line in "".join(code).splitlines() if "async_compile.cpp_pybinding" in line]
    assert any("index_copy" in line for line in kernels) and not any("copy__" in line for line in kernels)


def test_a_failing_compiler_is_said_once(gpt: GPT, capsys: pytest.CaptureFixture[str]) -> None:
    source, text = conditions(1)
    plain = generate(gpt, source, text, SETTINGS["greedy"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "compile", broken_compiler)
        for _ in range(2):
            assert torch.equal(Engine(gpt, compile=True).generate(source, text, SETTINGS["greedy"]), plain)
    assert (
        capsys.readouterr().err.count(
            "torch.compile failed; going on without it, slower. Cause: RuntimeError: no compiler here"
        )
        == 1
    )


def broken_compiler(function: object, **options: object) -> None:
    raise RuntimeError("no compiler here")


def test_int8_weights_stay_near_the_exact_ones() -> None:
    """Most choices of a prefix's first codes survive rounding; what cannot be had is named."""
    model = small_gpt()
    source, text = conditions(8)
    exact = Engine(model).generate(source, text, SETTINGS["greedy"])
    rounded = Engine(model, int8=True).generate(source, text, SETTINGS["greedy"])
    assert (exact[:, 0] == rounded[:, 0]).float().mean() >= 0.75
    with pytest.raises(ConfigError, match="int8=true needs a float32 model on a CPU, not compiled"):
        Engine(model.bfloat16(), int8=True).generate(source, text.bfloat16(), SETTINGS["greedy"])
