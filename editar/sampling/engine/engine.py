"""The fast way from a prefix to target codes; `decode.generate` is the readable one it equals.

A pass reads a window of guessed codes of each row, draws the code after each and accepts as far as the guesses
were right (`decode.generate_parallel` has the rule in full; a window of 1 is the plain loop). The buffers are
static, the source image's keys are stored once per image, only positions that are written are read, and guidance
and drawing need no host-device synchronisation. On a GPU a block is compiled once per width and the whole pass
captured in a CUDA graph; on a CPU it runs eagerly over exactly the positions written.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np
import torch

from editar.config import SamplingConfig
from editar.models.gpt import GPT
from editar.sampling.decode import SampleSeeds, uniform_numbers
from editar.sampling.engine.blocks import FastGPT
from editar.sampling.engine.cache import BatchLayout
from editar.sampling.engine.capture import WIDTHS as PREPARED_WIDTHS
from editar.sampling.engine.capture import Step, prepare_all, say_once
from editar.sampling.engine.linear import flushed_denormals, pick_linear
from editar.sampling.engine.session import Session
from editar.sampling.engine.window import AutoWindow, FixedWindow
from editar.sampling.stats import Clock, GenerationStats, Pass, step_bytes

LONGEST_READ = 128  # known codes read at once; bounds the memory of their scores
EAGER_WIDTHS = (1, 2, 4, 8, 16, 24, 32, 48, 64)

Progress = Callable[[int], None]


class Engine:
    """Generates with one model; packed weights, buffers and captured passes stay between calls.

    compile  True compiles the pass (and captures it on a GPU), False runs it eagerly, None compiles
             on a GPU only.
    capture  whether a compiled pass is captured on a GPU; False is for measurements.
    int8     rounds the weights to 8 bits (CPU): faster, the codes are no longer those of the plain loop.
    """

    def __init__(self, model: GPT, compile: bool | None = None, int8: bool = False, capture: bool = True) -> None:
        self.model, self.compile, self.int8, self.capture = model, compile, int8, capture
        self.timer = time.perf_counter  # what `stats` are measured with
        self.stats = GenerationStats()  # of the newest call
        self._fast: FastGPT | None = None
        self._session: Session | None = None
        self._steps: dict[tuple[int, int], Step] = {}
        self._auto: AutoWindow | None = None

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
        """Source codes (I, K N) and text (I, L, C) -> target codes (I * samples, N) int64.

        As `decode.generate`, with `samples` results per image and one stream of `seeds` for each
        result. `known_codes` (I, N) holds given target codes, -1 where one is to be chosen. `progress` is
        called with the number of codes accepted, over all results, since the last time.
        """
        layout = BatchLayout(len(source_codes), 2 if cfg.cfg_scale > 1 else 1, samples)
        draft = source_codes[:, : self.model.cfg.image_tokens]  # the first image is what is edited
        uniform = uniform_numbers(cfg, seeds, draft)
        clock = Clock(source_codes.device, self.timer)
        session = self._session_for(layout, cfg)
        prepare_s = clock.lap()
        session.begin(draft, known_codes, uniform)
        clock.lap()
        with flushed_denormals(source_codes.device):
            session.prefill(source_codes, text, drop_image)
            prefill_s = clock.lap()
            decoding = Decoding(session, self._steps, self._window(cfg), known_codes, self.timer, progress)
            decoding.run()
        self.stats = GenerationStats(
            images=layout.images * samples,
            prepare_s=prepare_s,
            prefill_s=prefill_s,
            decode_s=clock.lap(),
            passes=decoding.passes,
            image_passes=decoding.image_passes,
            codes=decoding.codes,
            bytes=step_bytes(session.fast, session.cache) * decoding.passes,
        )
        return session.codes.clone()

    def _session_for(self, layout: BatchLayout, cfg: SamplingConfig) -> Session:
        """The session of this shape and these settings: the last one if it fits, else a new one."""
        if self._fast is None or self._fast.stale:
            self.release()
            self._fast = FastGPT(self.model, pick_linear(self.model.output.weight, self._compiles, self.int8))
        session = self._session
        if session is None or not session.fits(layout, cfg):
            self._session = session = None  # the old buffers go before the new ones come
            self._steps = {}
            self._session = session = Session(self._fast, layout, replace(cfg))
            session.set_sampling(cfg)
            if self._compiles:
                self._steps = prepare_all(session, self.capture)
                for (width, _), step in self._steps.items():
                    _, seconds = Pass(session.position, step, width, width, self.timer).read()
                    self._window(cfg).measure(layout.rows * width, seconds, trust=True)
        session.set_sampling(cfg)
        return session

    def _window(self, cfg: SamplingConfig) -> AutoWindow | FixedWindow:
        length = self.model.cfg.image_tokens
        if isinstance(cfg.window, str):
            if self._auto is None:
                widths = PREPARED_WIDTHS if self._compiles else EAGER_WIDTHS
                self._auto = AutoWindow(sorted({min(width, length - 1) for width in widths}))
            return self._auto
        if cfg.window > length:
            say_once(f"sampling.window={cfg.window} is more than the {length} codes of an image; using {length}")
        return FixedWindow(min(cfg.window, length - 1))  # code 0 comes from the prefill

    @property
    def held_bytes(self) -> int:
        """Memory of the buffers kept between calls."""
        return 0 if self._session is None else self._session.cache.prefix_bytes + self._session.cache.target_bytes

    @property
    def _compiles(self) -> bool:
        return self.model.output.weight.device.type == "cuda" if self.compile is None else self.compile

    def release(self) -> None:
        """Give back packed weights, buffers, captured passes and what was learned about windows."""
        self._fast = self._session = self._auto = None
        self._steps = {}


class Decoding:
    """The passes of one generation after the prefill, as the host directs them.

    `position` (B,) is what the host knows of the session's; on a GPU a pass may be under way that moves it on.
    Counts what `GenerationStats` tells.
    """

    def __init__(
        self,
        session: Session,
        steps: dict[tuple[int, int], Step],
        window: AutoWindow | FixedWindow,
        known_codes: torch.Tensor | None,
        timer: Callable[[], float],
        progress: Progress | None,
    ) -> None:
        self.whole = self.session = session
        self.steps, self.window, self.timer, self.progress = steps, window, timer, progress
        results, self.length = session.codes.shape
        self.masked = known_codes is not None
        self.runs = known_run_lengths(session.known) if self.masked else np.zeros((results, self.length + 1), np.int64)
        self.position = np.zeros(results, np.int64)
        self.results = torch.arange(results, device=session.codes.device)  # which ones are left
        self.passes = self.image_passes = self.accepted = 0
        self.codes = int((self.runs[:, 1:-1] == 0).sum())  # to be chosen; the prefill gave code 0

    def run(self) -> None:
        """Pass after pass until every code is accepted."""
        self.window.begin(self.length)
        total = self.runs.shape[0] * self.length
        under_way: Pass | None = None
        while True:
            left = self._remaining()
            accepted = total - int(left.sum())
            if self.progress is not None:
                self.progress(accepted - self.accepted)
            self.accepted = accepted
            if not left.any():
                break
            started = self._start(left, under_way)
            if under_way is not None:
                self._finish(under_way)
            # The next pass may be handed in before this one is read, unless this one can be the last.
            if self.session.position.is_cuda and not self.masked and self._remaining().max() > started.width:
                under_way = started
            else:
                self._finish(started)
                under_way = None
                self._drop_finished()
        self._store()

    def _known_ahead(self) -> np.ndarray:
        """(B,): how many codes right after `position` are known."""
        return self.runs[np.arange(len(self.runs)), self.position + 1]

    def _remaining(self) -> np.ndarray:
        """(B,): codes after `position`, 0 where all of them are known."""
        remaining = self.length - 1 - self.position
        return np.where(self._known_ahead() == remaining, 0, remaining) if self.masked else remaining

    def _start(self, left: np.ndarray, under_way: Pass | None) -> Pass:
        """Hand in the next pass; `left` is `_remaining`."""
        session, unfinished, most = self.session, left > 0, int(left.max())
        position = self.position[unfinished]
        drawn = self.window.choose(session.layout.rows, most)
        ahead = int(self._known_ahead()[unfinished].min()) if self.masked else 0
        width = min(drawn + ahead, max(drawn, LONGEST_READ), self.length - 1)
        if not self.steps:
            width = min(width, -(-most // 8) * 8)  # few different shapes: libraries prepare each one they meet
            drawn = min(drawn, width)
        newest = int(position.max()) + (under_way.width if under_way else 0)
        end = min(newest, self.length - 1 - width) + width  # beyond the last position that is read
        step = next((s for (w, n), s in self.steps.items() if w == width == drawn and n >= end), None)
        if step is None:
            aligned = width == 1 and int(position.min()) == newest
            step = partial(session.step, width, drawn, end, masked=not aligned)
        return Pass(session.position, step, width, drawn, self.timer)

    def _finish(self, done: Pass) -> None:
        """Read how far a pass got and count it."""
        position, seconds = done.read()
        left = self._remaining()
        unfinished = left > 0
        advances = (position - self.position)[unfinished].tolist()
        self.passes += 1
        self.image_passes += len(advances)
        if done.drawn == done.width:
            self.window.observe(self.session.layout.rows, done.width, advances, left[unfinished].tolist(), seconds)
        self.position = position

    def _drop_finished(self) -> None:
        """Go on with the unfinished results alone once at least a quarter are finished; copying them costs about
        what a pass does."""
        left, layout = self._remaining() > 0, self.session.layout
        if self.steps or 4 * left.sum() > 3 * len(left) or not left.any() or min(layout.images, layout.samples) > 1:
            return
        self._store()
        kept = torch.from_numpy(left.nonzero()[0]).to(self.results.device)
        self.session, self.results = self.session.keep(kept), self.results[kept]
        self.position, self.runs = self.position[left], self.runs[left]

    def _store(self) -> None:
        """Bring the codes of the results that are left to the session that has all."""
        if self.session is not self.whole:
            self.whole.codes[self.results] = self.session.codes


def known_run_lengths(known: torch.Tensor) -> np.ndarray:
    """known (B, N) bool -> (B, N + 1) int64: how many known codes stand in a row from each position on."""
    flags = known.cpu().numpy()
    runs = np.zeros((flags.shape[0], flags.shape[1] + 1), np.int64)
    for position in range(flags.shape[1] - 1, -1, -1):
        runs[:, position] = np.where(flags[:, position], runs[:, position + 1] + 1, 0)
    return runs
