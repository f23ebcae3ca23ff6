"""What a generation cost: prefill, passes and their time, bytes moved against what the machine can move."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:  # the engine keeps these statistics: imported in earnest, each would need the other first
    from editar.sampling.engine.blocks import FastGPT
    from editar.sampling.engine.cache import SharedCache


@dataclass(frozen=True)
class GenerationStats:
    """Sums over one or several generations.

    prepare_s     seconds for buffers, compiling and capturing, once for a shape
    passes        forward passes of the model after the prefill
    image_passes  the same counted once for each image that was not finished
    codes         codes that these passes chose, without those that were known
    bytes         what the passes had to read from memory
    """

    images: int = 0
    prepare_s: float = 0.0
    prefill_s: float = 0.0
    decode_s: float = 0.0
    passes: int = 0
    image_passes: int = 0
    codes: int = 0
    bytes: float = 0.0

    def __add__(self, other: GenerationStats) -> GenerationStats:
        mine, theirs = vars(self), vars(other)
        return GenerationStats(**{name: mine[name] + theirs[name] for name in mine})

    @property
    def passes_per_image(self) -> float:
        return self.image_passes / max(self.images, 1)

    @property
    def codes_per_pass(self) -> float:
        """Codes accepted in a pass of one image; 1 is the plain loop."""
        return self.codes / max(self.image_passes, 1)

    @property
    def ms_per_pass(self) -> float:
        return 1000 * self.decode_s / max(self.passes, 1)

    @property
    def gb_per_s(self) -> float:
        return self.bytes / max(self.decode_s, 1e-9) / 1e9

    @property
    def images_per_s(self) -> float:
        return self.images / max(self.prefill_s + self.decode_s, 1e-9)

    def line(self, tokens: int, bandwidth: float) -> str:
        """One line for the terminal; `tokens` per image, `bandwidth` of the machine in GB/s."""
        prepared = f"prepared in {self.prepare_s:.1f} s, " if self.prepare_s > 1 else ""
        return (
            f"{prepared}prefill {self.prefill_s:.2f} s, {self.passes_per_image:.1f} passes an image "
            f"({self.codes_per_pass:.1f} tokens each, {self.ms_per_pass:.2f} ms), "
            f"{self.images_per_s * tokens:.0f} tokens/s, {self.gb_per_s:.1f} GB/s "
            f"({100 * self.gb_per_s / bandwidth:.0f} % of the copy bandwidth {bandwidth:.1f}), "
            f"{self.images_per_s:.2f} images/s"
        )


class Clock:
    """Time between laps; on a GPU each lap waits for the work handed in."""

    def __init__(self, device: torch.device, timer: Callable[[], float] = time.perf_counter) -> None:
        self.device, self.timer = device, timer
        self._last = self._now()

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return self.timer()

    def lap(self) -> float:
        now = self._now()
        seconds, self._last = now - self._last, now
        return seconds


class Pass:
    """One pass of a generation, handed in at once; `read` waits for it.

    width, drawn  codes it reads and draws for each result
    """

    def __init__(
        self, position: torch.Tensor, step: Callable[[], None], width: int, drawn: int, timer: Callable[[], float]
    ) -> None:
        """`step` moves `position` (B,) on; `timer` measures it on a CPU."""
        self.width, self.drawn = width, drawn
        self.events: list[torch.cuda.Event] = []
        if position.is_cuda:
            self.events = [torch.cuda.Event(enable_timing=True) for _ in range(2)]
            self.events[0].record()
            step()
            self.position = torch.empty_like(position, device="cpu", pin_memory=True)
            self.position.copy_(position, non_blocking=True)
            self.events[1].record()
        else:
            before = timer()
            step()
            self.seconds = timer() - before
            self.position = position.clone()

    def read(self) -> tuple[np.ndarray, float]:
        """Where every result stands after the pass, (B,) int64, and the seconds it took."""
        if self.events:
            self.events[1].synchronize()
            return self.position.numpy(), self.events[0].elapsed_time(self.events[1]) / 1000
        return self.position.numpy(), self.seconds


def step_bytes(fast: FastGPT, cache: SharedCache) -> float:
    """Bytes one pass reads: every matrix once, the shared keys and values, half of the target's."""
    return fast.bytes + cache.prefix_bytes + cache.target_bytes / 2


def copy_bandwidth(device: torch.device, megabytes: int = 256, repeats: int = 5) -> float:
    """GB/s, read and written, of the best of a few laps; on a GPU a lap is ten copies, one would be mostly waiting."""
    copies = 10 if device.type == "cuda" else 1
    source = torch.ones(megabytes << 20, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    clock = Clock(device)
    laps = []
    for _ in range(repeats + 1):
        for _ in range(copies):
            target.copy_(source)
        laps.append(clock.lap())
    return 2 * copies * source.numel() / min(laps[1:]) / 1e9
