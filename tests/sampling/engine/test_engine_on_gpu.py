"""What of the engine can break on a GPU alone: captured passes, their memory, bfloat16, waiting hosts."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from editar.config import SamplingConfig
from editar.models.gpt import GPT
from editar.sampling.batching import in_batches
from editar.sampling.decode import SampleSeeds, generate
from editar.sampling.engine import Engine
from editar.sampling.engine.cache import BatchLayout
from tests.helpers.cuda import allocated, no_waiting
from tests.helpers.tiny_gpt import ROPES, config, model

pytestmark = pytest.mark.gpu

SETTINGS = {
    "greedy": SamplingConfig(cfg_scale=3.0, greedy=True),
    "greedy, no guidance": SamplingConfig(cfg_scale=1.0, greedy=True),
    "drawn": SamplingConfig(cfg_scale=2.5, top_k=10, top_p=0.9, temperature=0.8, seed=3),
    "guided start": SamplingConfig(cfg_scale=4.0, cfg_interval=2, top_k=10),
}


def small_gpt(device: torch.device, rope: str = "editar") -> GPT:
    torch.manual_seed(1)
    gpt = model(config(ROPES[rope])).eval()
    for parameter in gpt.parameters():  # as large as trained ones, so that each part matters
        torch.nn.init.normal_(parameter, std=0.3) if parameter.ndim > 1 else None
    return gpt.to(device)


def conditions(images: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(7)
    values = torch.randint(23, (images, 9), generator=generator), torch.randn(images, 5, 12, generator=generator)
    return values[0].to(device), values[1].to(device)


def seeds(cfg: SamplingConfig, count: int) -> SampleSeeds:
    return SampleSeeds(cfg.seed, [f"s{i}" for i in range(count)])


def engine_of(gpt: GPT, **options: bool | None) -> Engine:
    """As on a GPU by default; a rehearsal does not compile, which takes a minute there."""
    return Engine(gpt, **(options or ({} if gpt.output.weight.is_cuda else {"compile": False})))


def assert_captured(engine: Engine, said: str, device: torch.device) -> None:
    """Every prepared pass is the replay of a graph, not the eager pass that takes over when a capture fails."""
    assert "failed" not in said
    if device.type == "cuda":
        assert engine._steps
        for step in engine._steps.values():
            assert isinstance(getattr(step, "__self__", None), torch.cuda.CUDAGraph)


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("window", [1, 4, "auto"])
def test_captured_passes_write_the_plain_loops_codes(
    gpu: torch.device, window: int | str, settings: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Twice: the second call captures nothing. Windows of 4 and auto decode in parallel."""
    gpt, cfg = small_gpt(gpu), replace(SETTINGS[settings], window=window)
    source, text = conditions(3, gpu)
    engine = engine_of(gpt)
    plain = generate(gpt, source, text, cfg, seeds(cfg, 3))
    assert torch.equal(engine.generate(source, text, cfg, seeds(cfg, 3)), plain)
    assert_captured(engine, capsys.readouterr().err, gpu)
    prepared = dict(engine._steps)
    assert torch.equal(engine.generate(source, text, cfg, seeds(cfg, 3)), plain)
    assert engine._steps == prepared


@pytest.mark.parametrize("rope", ["editar", "shared"])
def test_other_shapes_are_captured_anew(gpu: torch.device, rope: str, capsys: pytest.CaptureFixture[str]) -> None:
    gpt, cfg = small_gpt(gpu, rope), replace(SETTINGS["drawn"], window=4)
    engine = engine_of(gpt)
    for images in (1, 3, 1):
        source, text = conditions(images, gpu)
        plain = generate(gpt, source, text, cfg, seeds(cfg, images))
        assert torch.equal(engine.generate(source, text, cfg, seeds(cfg, images)), plain)
        assert_captured(engine, capsys.readouterr().err, gpu)


@pytest.mark.parametrize("options", [{"compile": False}, {"compile": True, "capture": False}, {}], ids=str)
def test_known_codes_of_a_mask(gpu: torch.device, options: dict[str, bool]) -> None:
    if gpu.type == "cpu" and options.get("compile"):
        pytest.skip("a rehearsal does not compile")
    gpt, cfg = small_gpt(gpu), SETTINGS["drawn"]
    source, text = conditions(3, gpu)
    known_codes = source.clone()
    for image in range(3):
        known_codes[image, 2 * image : 2 * image + 4] = -1
    plain = generate(gpt, source, text, cfg, seeds(cfg, 3), known_codes=known_codes)
    for _ in range(2):
        found = engine_of(gpt, **options).generate(source, text, cfg, seeds(cfg, 3), known_codes=known_codes)
        assert torch.equal(found, plain)


def test_samples_of_one_image(gpu: torch.device) -> None:
    gpt, cfg = small_gpt(gpu), replace(SETTINGS["drawn"], window=4)
    source, text = conditions(2, gpu)
    fast = engine_of(gpt).generate(source, text, cfg, seeds(cfg, 6), samples=3)
    repeated = source.repeat_interleave(3, 0), text.repeat_interleave(3, 0)
    assert torch.equal(fast, generate(gpt, *repeated, cfg, seeds(cfg, 6)))


@torch.no_grad()
def test_bfloat16_is_near_float32(gpu: torch.device) -> None:
    """Logits of the same codes, by the engine's own pass, eager."""
    source, text = conditions(3, gpu)
    found = []
    for dtype in (torch.float32, torch.bfloat16):
        engine = Engine(small_gpt(gpu).to(dtype), compile=False)
        session = engine._session_for(BatchLayout(3, 2, 1), SETTINGS["greedy"])
        session.begin(source, None, None)
        session.prefill(source, text.to(dtype), None)
        positions = torch.arange(4, device=gpu).expand(6, -1)
        codes = session.rows(source[:, :4])
        step = type(session.fast.blocks[0]).step
        found.append(session.fast.step(codes, positions, 4, 9, True, session.layout, session.cache, step))
    exact, rounded = found
    assert (exact - rounded).abs().max() < 0.1 * exact.abs().max()
    assert not torch.equal(exact, rounded)


@pytest.mark.parametrize("settings", SETTINGS)
@torch.no_grad()
def test_a_pass_does_not_wait_for_the_gpu(gpu: torch.device, settings: str) -> None:
    gpt, cfg = small_gpt(gpu), SETTINGS[settings]
    source, text = conditions(3, gpu)
    engine = engine_of(gpt)
    engine.generate(source, text, cfg, seeds(cfg, 3))
    session = engine._session
    assert session is not None
    with no_waiting(gpu):
        for step in engine._steps.values():
            step()
        session.step(1, 1, 9, True)
        session.step(4, 4, 9, True)


def test_memory_does_not_grow(gpu: torch.device) -> None:
    gpt, cfg = small_gpt(gpu), SETTINGS["drawn"]
    source, text = conditions(3, gpu)
    engine = engine_of(gpt)
    engine.generate(source, text, cfg, seeds(cfg, 3))
    before = allocated(gpu)
    for _ in range(20):
        engine.generate(source, text, cfg, seeds(cfg, 3))
    assert allocated(gpu) == before
    engine.release()
    assert allocated(gpu) < before or gpu.type == "cpu"


def test_out_of_memory_halves_the_batch(gpu: torch.device, capsys: pytest.CaptureFixture[str]) -> None:
    """A real one: each picture takes 0.3 of the device's memory, so 2 of 8 at once fit."""
    each = 3 * torch.cuda.get_device_properties(gpu).total_memory // 10 if gpu.type == "cuda" else 1 << 50
    done: list[int] = []

    def work(part: slice) -> int:
        count = part.stop - part.start
        torch.empty((each * count if gpu.type == "cuda" or count > 2 else 1,), dtype=torch.uint8, device=gpu)
        done.extend(range(part.start, part.stop))
        return count

    def recover() -> None:
        if gpu.type == "cuda":
            torch.cuda.empty_cache()

    assert list(in_batches(8, 8, work, recover)) == [2, 2, 2, 2]
    assert done == list(range(8))
    assert "going on with a batch of 2" in capsys.readouterr().err
    recover()
