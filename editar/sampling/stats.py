"""What a generation cost: prefill, time per token, bytes moved against what the machine can move."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from editar.sampling.blocks import FastGPT
from editar.sampling.cache import SharedCache


@dataclass(frozen=True)
class GenerationStats:
    """Sums over one or several generations. `prepare_s` went into buffers, compiling and capturing, once for
    a shape; `steps` counts decode steps (one token of every row), `bytes` what those steps had to read."""

    images: int = 0
    prepare_s: float = 0.0
    prefill_s: float = 0.0
    decode_s: float = 0.0
    steps: int = 0
    bytes: float = 0.0

    def __add__(self, other: GenerationStats) -> GenerationStats:
        mine, theirs = vars(self), vars(other)
        return GenerationStats(**{name: mine[name] + theirs[name] for name in mine})

    @property
    def ms_per_token(self) -> float:
        return 1000 * self.decode_s / max(self.steps, 1)

    @property
    def gb_per_s(self) -> float:
        return self.bytes / max(self.decode_s, 1e-9) / 1e9

    @property
    def images_per_s(self) -> float:
        return self.images / max(self.prefill_s + self.decode_s, 1e-9)

    def line(self, tokens: int, bandwidth: float) -> str:
        """One line for the terminal; `tokens` per image, `bandwidth` of the machine in GB/s."""
        total = self.prefill_s + self.decode_s
        prepared = f"prepared in {self.prepare_s:.1f} s, " if self.prepare_s > 1 else ""
        return (
            f"{prepared}prefill {self.prefill_s:.2f} s, {self.ms_per_token:.2f} ms a token, "
            f"{self.images * tokens / max(total, 1e-9):.0f} tokens/s, {self.gb_per_s:.1f} GB/s "
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


def step_bytes(fast: FastGPT, cache: SharedCache) -> float:
    """Bytes one decode step reads: every matrix once, the shared keys and values, half of the target's."""
    return fast.bytes + cache.prefix_bytes + cache.target_bytes / 2


def copy_bandwidth(device: torch.device, megabytes: int = 256, repeats: int = 5) -> float:
    """GB/s, read and written, of the best of a few copies."""
    source = torch.ones(megabytes << 20, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    clock = Clock(device)
    laps = []
    for _ in range(repeats + 1):
        target.copy_(source)
        laps.append(clock.lap())
    return 2 * source.numel() / min(laps[1:]) / 1e9
