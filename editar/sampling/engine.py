"""The fast way from a prefix to target codes; `decode.generate` is the readable one it equals.

The buffers are static, the source image's keys are stored once per image, only positions that are written
are read, and guidance and drawing need no host-device synchronisation. On a GPU a block is compiled once per
bucket of positions and the whole step captured in a CUDA graph; on a CPU it runs eagerly over exactly the
positions written.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch

from editar.config import SamplingConfig
from editar.models.gpt import GPT
from editar.runtime.log import say
from editar.sampling.blocks import FastBlock, FastGPT
from editar.sampling.cache import BatchLayout, SharedCache
from editar.sampling.decode import SampleSeeds, draw_tokens, filter_logits, guide
from editar.sampling.linear import pick_linear
from editar.sampling.stats import Clock, GenerationStats, step_bytes

BUCKETS = 4  # compiled or captured steps per generation, each over a longer stretch of target positions
LONGEST_READ = 128  # known codes read at once; bounds the memory of their scores

Progress = Callable[[int], None]
_said: set[str] = set()


class Session:
    """Everything one shape of generation needs, allocated once: cache, codes, random numbers.

    `position` is the newest code written to `codes`, -1 before the first; `sample_next` writes the next. Guidance
    and temperature are tensors that `set_sampling` fills, so that other values need nothing prepared again.
    """

    def __init__(self, fast: FastGPT, layout: BatchLayout, cfg: SamplingConfig) -> None:
        self.fast, self.layout, self.cfg = fast, layout, cfg
        length, place = fast.cfg.image_tokens, fast.device
        self.cache = SharedCache(fast.cfg, layout, fast.zero_text, place, fast.dtype)
        wide = layout.images * layout.samples
        self.codes = torch.zeros(wide, length, dtype=torch.long, device=place)
        self.known_codes = torch.full((wide, length), -1, dtype=torch.long, device=place)
        self.uniform = torch.zeros(length, wide, dtype=torch.float64, device=place)
        self.scale = torch.empty(length, device=place)
        self.temperature = torch.empty((), device=place)
        self.position = torch.full((1,), -1, dtype=torch.long, device=place)

    def fits(self, layout: BatchLayout, cfg: SamplingConfig) -> bool:
        """Whether these buffers and steps serve that shape and those settings."""
        mine, theirs = ((c.greedy, c.top_k, c.top_p) for c in (self.cfg, cfg))
        return self.layout == layout and mine == theirs

    def set_sampling(self, cfg: SamplingConfig) -> None:
        self.scale.fill_(cfg.cfg_scale)
        if cfg.cfg_interval >= 0:
            self.scale[cfg.cfg_interval + 2 :] = 1.0
        self.temperature.fill_(max(cfg.temperature, 1e-5))

    def sample_next(self, logits: torch.Tensor) -> None:
        """Choose the next code of each sample from logits (R, V) and write it."""
        slot = self.position + 1
        branches = logits.view(self.layout.images, self.layout.branches, self.layout.samples, -1)
        mixed = branches[:, 0].flatten(0, 1)
        if self.layout.branches == 2:
            mixed = guide(mixed, branches[:, 1].flatten(0, 1), self.scale.index_select(0, slot))
        if self.cfg.greedy:
            token = mixed.argmax(-1)
        else:
            kept = filter_logits(mixed / self.temperature, self.cfg.top_k, self.cfg.top_p)
            token = draw_tokens(kept.softmax(-1), self.uniform.index_select(0, slot)[0])
        given = self.known_codes.index_select(1, slot)[:, 0]
        self.codes.index_copy_(1, slot, torch.where(given >= 0, given, token)[:, None])
        self.position.add_(1)

    def rows(self, codes: torch.Tensor) -> torch.Tensor:
        """Codes (I * M, s) -> of each row, (R, s): both branches read the same."""
        g = self.layout
        return codes.view(g.images, 1, g.samples, -1).expand(-1, g.branches, -1, -1).reshape(g.rows, -1)

    def step(self, length: int, masked: bool) -> None:
        """Read the newest code of each row and write the next."""
        newest = self.rows(self.codes.index_select(1, self.position))[:, 0]
        self.sample_next(self.fast.step(newest, self.position, length, masked, self.layout, self.cache))

    def start(
        self, source: torch.Tensor, text: torch.Tensor, drop_image: torch.Tensor | None, known: int
    ) -> torch.Tensor | None:
        """Read the prefix -> logits of code 0 per row, (R, V); None where the first `known` > 0 codes are given."""
        self.position.fill_(-1)
        logits = self.fast.prefill(source, text, self.layout, self.cache, drop_image)
        return None if known else logits.repeat_interleave(self.layout.samples, dim=0)

    def write_known(self, start: int, end: int) -> None:
        """Write the given codes start..end - 1 and read what is unread, but the last of them."""
        self.codes[:, start:end] = self.known_codes[:, start:end]
        first = max(start - 1, 0)
        if end < self.codes.shape[1]:
            for begin in range(first, end - 1, LONGEST_READ):
                stop = min(begin + LONGEST_READ, end - 1)
                self.fast.read(self.rows(self.codes[:, begin:stop]), begin, self.layout, self.cache)
        self.position.fill_(end - 1)


class Engine:
    """Generates with one model; packed weights, buffers and captured steps stay between calls.

    compile  True compiles the step (and captures it on a GPU), False runs it eagerly, None compiles
             on a GPU only.
    int8     rounds the weights to 8 bits (CPU): faster, the codes are no longer those of the plain loop.
    """

    def __init__(self, model: GPT, compile: bool | None = None, int8: bool = False) -> None:
        self.model, self.compile, self.int8 = model, compile, int8
        self.timer = time.perf_counter  # what `stats` are measured with
        self.stats = GenerationStats()  # of the newest call
        self._fast: FastGPT | None = None
        self._session: Session | None = None
        self._steps: dict[int, Callable[[], None]] = {}

    @torch.no_grad()
    def generate(
        self,
        source_codes: torch.Tensor,
        text: torch.Tensor,
        cfg: SamplingConfig,
        seeds: SampleSeeds | None = None,
        drop_image: torch.Tensor | None = None,
        known_codes: torch.Tensor | None = None,
        samples: int = 1,
        progress: Progress | None = None,
    ) -> torch.Tensor:
        """Source codes (I, N) and text (I, L, C) -> target codes (I * samples, N) int64.

        As `decode.generate`, with `samples` results per image and one stream of `seeds` for each
        result. `known_codes` (I, N) holds given target codes, -1 where one is to be chosen. `progress` is
        called with the number of codes written, over all results, since the last time.
        """
        if seeds is None and not cfg.greedy:
            raise ValueError("generate needs seeds unless cfg.greedy is set")
        layout = BatchLayout(len(source_codes), 2 if cfg.cfg_scale > 1 else 1, samples)
        clock = Clock(source_codes.device, self.timer)
        session = self._enter(layout, cfg)
        prepare_s = clock.lap()
        length = source_codes.shape[1]
        if seeds is not None and not cfg.greedy:
            session.uniform.copy_(seeds.uniform(length))
        session.known_codes.fill_(-1)
        if known_codes is not None:
            session.known_codes.copy_(known_codes.repeat_interleave(samples, dim=0))
        runs = known_runs(known_codes, length)
        known = runs[0][1] if runs and runs[0][0] == 0 else 0
        clock.lap()
        logits = session.start(source_codes, text, drop_image, known)
        prefill = clock.lap()
        self._write_all(session, logits, runs, progress)
        written = length - sum(end - start for start, end in runs) - (known == 0)  # the prefill gives code 0
        self.stats = GenerationStats(
            images=layout.images * samples,
            prepare_s=prepare_s,
            prefill_s=prefill,
            decode_s=clock.lap(),
            steps=written,
            bytes=step_bytes(session.fast, session.cache) * written,
        )
        return session.codes.clone()

    def _write_all(
        self, session: Session, logits: torch.Tensor | None, runs: list[tuple[int, int]], progress: Progress | None
    ) -> None:
        """Write every code in order: given runs at once, the others one by one."""
        ends = dict(runs)
        slot, length = 0, session.codes.shape[1]
        while slot < length:
            before = slot
            if slot in ends:
                session.write_known(slot, ends[slot])
                slot = ends[slot]
            elif slot == 0 and logits is not None:
                session.sample_next(logits)
                slot = 1
            else:
                self._step(session, slot)
                slot += 1
            if progress is not None:
                progress((slot - before) * len(session.codes))

    def _enter(self, layout: BatchLayout, cfg: SamplingConfig) -> Session:
        """The session of this shape and these settings: the last one if it fits, else a new one."""
        if self._fast is None or self._fast.stale:
            self.release()
            weight = self.model.output.weight
            self._fast = FastGPT(self.model, pick_linear(weight, self._compiles, self.int8))
        session = self._session
        if session is None or not session.fits(layout, cfg):
            self._session = session = None  # the old buffers go before the new ones come
            self._steps = {}
            self._session = session = Session(self._fast, layout, replace(cfg))
            session.set_sampling(cfg)
            if self._compiles:
                self._steps = {bucket: prepare(session, bucket) for bucket in buckets(session.codes.shape[1])}
        session.set_sampling(cfg)
        return session

    def _step(self, session: Session, slot: int) -> None:
        """Write code `slot` of every sample from the `slot` codes before it."""
        if not self._compiles:
            session.step(slot, masked=False)
            return
        self._steps[next(bucket for bucket in self._steps if bucket >= slot)]()

    @property
    def held_bytes(self) -> int:
        """Memory of the buffers kept between calls."""
        return 0 if self._session is None else self._session.cache.prefix_bytes + self._session.cache.target_bytes

    @property
    def _compiles(self) -> bool:
        return self.model.output.weight.device.type == "cuda" if self.compile is None else self.compile

    def release(self) -> None:
        """Give back packed weights, buffers and captured steps."""
        self._fast = self._session = None
        self._steps = {}


def known_runs(known_codes: torch.Tensor | None, length: int) -> list[tuple[int, int]]:
    """Stretches [start, end) of at least two codes that are given in every row of known_codes (I, N)."""
    if known_codes is None:
        return []
    known = [False, *(known_codes >= 0).all(0).tolist(), False]
    starts = [i for i in range(length) if known[i + 1] and not known[i]]
    ends = [i for i in range(1, length + 1) if known[i] and not known[i + 1]]
    return [(start, end) for start, end in zip(starts, ends, strict=True) if end - start > 1]


def buckets(length: int) -> list[int]:
    """How many target positions each prepared step looks at, ascending; the last is all."""
    stretch = -(-length // BUCKETS)
    return [min(end, length) for end in range(stretch, length + stretch, stretch)]


def prepare(session: Session, bucket: int) -> Callable[[], None]:
    """The step over `bucket` target positions: its blocks compiled, on a GPU captured; eager where that fails."""
    session.position.fill_(0)  # what a step writes there is written again
    step = partial(session.step, bucket, True)
    try:
        if session.fast.compiled is None:
            session.fast.compiled = torch.compile(FastBlock.step, dynamic=False)
        with torch._dynamo.config.patch(cache_size_limit=256):  # every shape and bucket is a graph of its own
            warm_up(session, step)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # a compiler may raise anything; sampling must go on
        session.fast.compiled = FastBlock.step
        say_once(f"sampling: torch.compile failed; going on without it, slower. Cause: {cause(error)}")
    if not session.position.is_cuda:
        return step
    try:
        return capture(session, step)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        say_once(f"sampling: the CUDA graph capture failed; going on without it, slower. Cause: {cause(error)}")
    return step


def warm_up(session: Session, step: Callable[[], None]) -> None:
    """Run a step and take it back: what it writes is written again by the next run."""
    step()
    session.position.sub_(1)


def capture(session: Session, step: Callable[[], None]) -> Callable[[], None]:
    """Record one step as a CUDA graph (the session's tensors never move) -> its replay."""
    with torch.cuda.device(session.position.device):
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            warm_up(session, step)  # libraries allocate their workspaces on a stream's first use
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):  # data workers may go on meanwhile
            step()
    return graph.replay


def cause(error: Exception) -> str:
    """The whole message of an error, with its type; compilers explain themselves over several lines."""
    return f"{type(error).__name__}: {error}".strip()


def say_once(text: str) -> None:
    if text not in _said:
        _said.add(text)
        say(text)
