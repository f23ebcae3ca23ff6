"""Exact parallel decoding on the trained checkpoint: the same codes as the plain loop, in fewer passes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from editar.config import SamplingConfig
from editar.data.nano.world import NanoWorld
from editar.models.gpt import GPT
from editar.sampling.decode import SampleSeeds, choose, generate, generate_parallel, guidance_scales, guide
from editar.sampling.engine import Engine
from editar.sampling.masks import known_codes_outside
from editar.sampling.pipeline import EditPipeline

REFERENCE = Path(__file__).resolve().parents[2] / "reference/nano"
TOLERANCE = 1e-6  # how near to a boundary between two codes a float32 draw may fall on the other side


@dataclass
class Edits:
    """Held-out edits: source codes (I, N), text (I, L, C), and the sampling of the checkpoint."""

    model: GPT
    source: torch.Tensor
    text: torch.Tensor
    cfg: SamplingConfig

    def part(self, rows: slice) -> Edits:
        return replace(self, source=self.source[rows], text=self.text[rows])

    def repeat(self, samples: int) -> Edits:
        return replace(
            self, source=self.source.repeat_interleave(samples, 0), text=self.text.repeat_interleave(samples, 0)
        )

    def seeds(self, samples: int = 1) -> SampleSeeds:
        return SampleSeeds(self.cfg.seed, [f"s{i}" for i in range(samples * len(self.source))])

    def known(self, dilate: int = 1) -> torch.Tensor:
        """Known codes (I, N) outside a rectangle that lies elsewhere in each picture; -1 inside."""
        masks = [np.zeros((64, 64), bool) for _ in self.source]
        for i, mask in enumerate(masks):
            mask[8 * (i % 4) : 8 * (i % 4) + 24, 16:40] = True
        return known_codes_outside(self.source, masks, dilate)

    def plain(self, known_codes: torch.Tensor | None = None) -> torch.Tensor:
        return generate(self.model, self.source, self.text, self.cfg, self.seeds(), known_codes=known_codes)


def heldout(count: int) -> Edits:
    pipeline = EditPipeline.from_pretrained(REFERENCE, device="cpu")
    world = NanoWorld("heldout", count)
    samples = [world[i] for i in range(count)]
    source = pipeline.encode(np.stack([sample.source for sample in samples]))
    text = pipeline.text([sample.instruction for sample in samples])
    return Edits(pipeline.gpt, source, text, pipeline.cfg.sampling)


@pytest.fixture(scope="module")
def edits() -> Edits:
    return heldout(8)


SETTINGS = {
    "cold": {"temperature": 0.2},
    "warm": {},
    "hot, filtered": {"temperature": 1.0, "top_k": 100, "top_p": 0.95, "cfg_interval": 20, "cfg_scale": 3.0},
    "greedy": {"greedy": True},
    "no guidance": {"cfg_scale": 1.0},
}


@pytest.fixture(scope="module")
def plain(edits: Edits) -> dict[str, torch.Tensor]:
    """Codes of the plain loop under each of the settings, for all edits."""
    return {name: replace(edits, cfg=replace(edits.cfg, **changes)).plain() for name, changes in SETTINGS.items()}


@pytest.mark.parametrize("settings", SETTINGS)
def test_the_reference_writes_the_plain_loops_codes(
    edits: Edits, plain: dict[str, torch.Tensor], settings: str
) -> None:
    few = replace(edits.part(slice(2)), cfg=replace(edits.cfg, **SETTINGS[settings]))
    for window in (1, 16) if settings == "warm" else (16,):
        codes, passes = generate_parallel(few.model, few.source, few.text, few.cfg, window, few.seeds())
        assert torch.equal(codes, plain[settings][:2])
        assert (passes == 64).all() if window == 1 else (passes < 40).all()


@pytest.mark.parametrize(("batch", "windows"), [(1, (2, 5, 16, 64, "auto")), (3, (5, 16)), (8, (2, 64, "auto"))])
@pytest.mark.parametrize("settings", SETTINGS)
def test_the_engine_writes_the_plain_loops_codes(
    edits: Edits, plain: dict[str, torch.Tensor], settings: str, batch: int, windows: tuple[int | str, ...]
) -> None:
    few = replace(edits.part(slice(batch)), cfg=replace(edits.cfg, **SETTINGS[settings]))
    engine = Engine(few.model)
    for window in windows:
        codes = engine.generate(few.source, few.text, replace(few.cfg, window=window), few.seeds())
        assert torch.equal(codes, plain[settings][:batch])
        assert engine.stats.passes < 63 or window == "auto"


@pytest.mark.parametrize("window", [5, 64])
def test_the_engine_takes_the_references_passes(edits: Edits, window: int) -> None:
    few = edits.part(slice(3))
    _, passes = generate_parallel(few.model, few.source, few.text, few.cfg, window, few.seeds())
    engine = Engine(few.model)
    engine.generate(few.source, few.text, replace(few.cfg, window=window), few.seeds())
    assert engine.stats.image_passes == int(passes.sum()) - 3  # the first of each is the prefill
    assert engine.stats.passes == int(passes.max()) - 1
    assert engine.stats.codes_per_pass > 2


@pytest.mark.parametrize("batch", [1, 8])
def test_known_codes_count_as_accepted(edits: Edits, batch: int) -> None:
    few = edits.part(slice(batch))
    known = few.known()
    plain = few.plain(known)
    assert torch.equal(
        generate_parallel(few.model, few.source, few.text, few.cfg, 16, few.seeds(), None, known)[0], plain
    )
    engine, passes = Engine(few.model), []
    for window in (1, 2, 5, 16, 64, "auto"):
        codes = engine.generate(few.source, few.text, replace(few.cfg, window=window), few.seeds(), known_codes=known)
        assert torch.equal(codes, plain)
        assert engine.stats.codes == int((known[:, 1:] < 0).sum())
        passes.append(engine.stats.passes_per_image)
    assert passes[0] > passes[1] > passes[3]


def test_samples_of_one_source_move_on_at_their_own_pace(edits: Edits) -> None:
    one = edits.part(slice(1))
    warm = replace(one.cfg, temperature=2.0)
    plain = replace(one.repeat(5), cfg=warm).plain()
    for window in (2, 16, 64, "auto"):
        engine = Engine(one.model)
        cfg = replace(warm, window=window)
        assert torch.equal(engine.generate(one.source, one.text, cfg, one.seeds(5), samples=5), plain)
        if window == 16:  # some were finished before the others
            assert engine.stats.image_passes < 5 * engine.stats.passes
    two = edits.part(slice(2))
    cfg = replace(two.cfg, window=16)
    assert torch.equal(
        Engine(two.model).generate(two.source, two.text, cfg, two.seeds(3), samples=3), two.repeat(3).plain()
    )


def test_random_weights_accept_nothing(edits: Edits) -> None:
    """Where each code turns on all codes before it no guess is right; the codes are still the plain loop's."""
    few = edits.part(slice(2))
    model = GPT(few.model.cfg).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    few = replace(few, model=model)
    engine = Engine(model)
    assert torch.equal(engine.generate(few.source, few.text, replace(few.cfg, window=8), few.seeds()), few.plain())
    assert engine.stats.codes_per_pass < 1.5


def first_differences(edits: Edits, plain: torch.Tensor, other: torch.Tensor) -> list[float]:
    """How far, in probability, each first draw that differs lies from the nearest boundary between two codes."""
    distances = []
    uniform = edits.seeds().uniform(plain.shape[1])
    for i in (plain != other).any(1).nonzero()[:, 0].tolist():
        position = int((plain[i] != other[i]).nonzero()[0])
        inputs = edits.source[i : i + 1], edits.text[i : i + 1], plain[i : i + 1]
        logits = guide(
            edits.model(*inputs).logits,
            edits.model(*inputs, drop_text=torch.ones(1, dtype=torch.bool)).logits,
            guidance_scales(edits.cfg, plain.shape[1])[:, None],
        )[0, position]
        cumulative = (logits / edits.cfg.temperature).double().softmax(-1).cumsum(-1)
        distances.append(float((cumulative - uniform[position, i]).abs().min()))
    return distances


@pytest.mark.slow
def test_480_heldout_edits(capsys: pytest.CaptureFixture[str]) -> None:
    """Every window against the plain loop; float32 rounding may move a draw across a boundary it nearly touches."""
    edits = heldout(480)
    plain, lines = [], []
    parts = [slice(i, i + 60) for i in range(0, 480, 60)]
    for part in parts:
        plain.append(edits.part(part).plain())
    for window in (2, 8, 16, 32, 64):
        engine, distances, stats = Engine(edits.model), [], None
        for part, expected in zip(parts, plain, strict=True):
            few = edits.part(part)
            codes = engine.generate(few.source, few.text, replace(few.cfg, window=window), few.seeds())
            distances += first_differences(few, expected, codes)
            stats = engine.stats if stats is None else stats + engine.stats
        assert all(distance < TOLERANCE for distance in distances)
        lines.append(
            f"window {window}: {stats.passes_per_image:.2f} passes an image, {len(distances)} differ {distances}"
        )
    with capsys.disabled():
        print("\n" + "\n".join(lines))


@pytest.mark.slow
def test_no_draw_differs_in_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    """Model and engine compute norms, rotations and probabilities with `.float()`; here that keeps float64."""
    float32 = torch.Tensor.float
    monkeypatch.setattr(torch.Tensor, "float", lambda x: x if x.dtype == torch.float64 else float32(x))
    edits = heldout(64)
    edits = replace(edits, model=edits.model.double(), text=edits.text.double())
    plain = edits.plain()
    for window in (2, 16, 64):
        cfg = replace(edits.cfg, window=window)
        assert torch.equal(Engine(edits.model).generate(edits.source, edits.text, cfg, edits.seeds()), plain)


def test_choose_is_what_both_loops_draw_with() -> None:
    logits = torch.tensor([[0.0, 5.0, 0.0]])
    assert choose(logits, SamplingConfig(greedy=True), None).tolist() == [1]
    assert choose(logits, SamplingConfig(temperature=1.0), torch.tensor([0.999])).tolist() == [2]
