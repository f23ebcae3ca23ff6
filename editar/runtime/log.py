"""What a run tells: one console line per log step, metrics.jsonl always, wandb when asked."""

from __future__ import annotations

import json
import math
import os
import re
import resource
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from editar.config import WandbConfig
from editar.errors import ConfigError
from editar.runtime.files import parse_json, write_text

CONTROLS = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]")


def say(text: str) -> None:
    """One line for the person at the terminal; what would steer the terminal, from a file's contents, is escaped."""
    with unread(sys.stderr, OSError):  # nor does a full disk under it stop the work
        print(CONTROLS.sub(lambda found: found[0].encode("unicode_escape").decode(), text), file=sys.stderr, flush=True)


def echo(text: object) -> None:
    """A result, on standard output."""
    with unread(sys.stdout, BrokenPipeError):
        print(text, flush=True)


@contextmanager
def unread(stream: TextIO, errors: type[OSError]) -> Iterator[None]:
    """A pipe that nobody reads any more, as after `| head`, is no reason to stop: what follows goes nowhere."""
    try:
        yield
    except errors:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def duration(seconds: float) -> str:
    """75 -> '1:15', 3700 -> '1:01:40'."""
    minutes, secs = divmod(int(max(seconds, 0)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{secs:02d}" if hours else f"{minutes}:{secs:02d}"


@dataclass(frozen=True)
class Costs:
    """What one sample costs, for the rates of a log line: positions read, FLOPs of forward and backward,
    and the job's peak FLOP/s (None: not known, no MFU)."""

    tokens: int
    flops: float
    peak_flops: float | None


class MetricLogger:
    """Appends rows to `folder/metrics.jsonl` and prints them with rate and time left.

    `start_step` is where this process starts: rows of later steps that an interrupted run had
    already written are dropped, so the file has no gap and no repeat.
    """

    def __init__(
        self,
        folder: Path,
        total_steps: int,
        start_step: int = 0,
        unit: str = "samples",
        wandb: WandbConfig | None = None,
        active: bool = True,
        costs: Costs | None = None,
    ) -> None:
        self.path = folder / "metrics.jsonl"
        self.total_steps, self.unit, self.active, self.costs = total_steps, unit, active, costs
        self.run: Any = None
        self._last = (time.perf_counter(), start_step)
        self._waited_s = 0.0
        if not active:
            return
        if self.path.exists() and not self.path.is_file():
            raise ConfigError(f"{self.path} is no file; remove it")
        self._keep_rows_before(start_step)
        if wandb is not None and wandb.enabled:
            self.run = _start_wandb(wandb, folder)

    def _keep_rows_before(self, start_step: int) -> None:
        if self.path.exists():
            kept = [line for line, row in self._rows() if row["step"] <= start_step]
            write_text(self.path, "".join(line + "\n" for line in kept))

    def _rows(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """The file's rows as text and as values, without those that were written halfway or damaged."""
        for line in self.path.read_bytes().splitlines():
            try:
                text = line.decode()
                row = parse_json(text)
            except ValueError:
                continue
            if isinstance(row, dict) and isinstance(row.get("step"), int):
                yield text, row

    def has(self, step: int, name: str) -> bool:
        """Whether the file holds a row of `step` with `name`."""
        if not self.active or not self.path.exists():
            return False
        return any(row["step"] == step and name in row for _, row in self._rows())

    def log(self, step: int, values: dict[str, float], units_per_step: int = 0, waited_s: float = 0.0) -> None:
        """Record `values` after `step` steps; with `units_per_step`, add rates, memory, the share of the time
        spent waiting for data (`waited_s`: seconds of it since this process began) and the time left.

        A value that is not finite is null in the file.
        """
        if not self.active:
            return
        now = time.perf_counter()
        seconds, steps = now - self._last[0], step - self._last[1]
        row: dict[str, float | None] = {"step": step}
        row |= {name: value if math.isfinite(value) else None for name, value in values.items()}
        line = f"step {step}/{self.total_steps}  " + "  ".join(f"{k} {_short(v)}" for k, v in values.items())
        if units_per_step and steps > 0:
            rates = self._rates(steps * units_per_step / seconds, (waited_s - self._waited_s) / seconds)
            row |= rates
            line += f"  {rates[f'{self.unit}_per_s']:.1f} {self.unit}/s"
            if "mfu" in rates:
                line += f"  MFU {100 * rates['mfu']:.1f} %"
            if self.costs is not None:
                line += f"  {rates['memory_gb']:.1f} GB  data wait {100 * rates['data_wait']:.0f} %"
            line += f"  {duration((self.total_steps - step) * seconds / steps)} left"
            self._last, self._waited_s = (now, step), waited_s
        with self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")
        say(line)
        if self.run is not None:
            self.run.log({name: value for name, value in row.items() if name != "step"}, step=step)

    def _rates(self, units_per_s: float, data_wait: float) -> dict[str, float]:
        rates = {f"{self.unit}_per_s": units_per_s}
        if self.costs is None:
            return rates
        flops = units_per_s * self.costs.flops
        rates |= {"tokens_per_s": units_per_s * self.costs.tokens, "tflops_per_s": flops / 1e12}
        if self.costs.peak_flops is not None:
            rates["mfu"] = flops / self.costs.peak_flops
        return rates | {"memory_gb": peak_memory() / 1e9, "data_wait": data_wait}

    def log_image(self, step: int, name: str, path: Path) -> None:
        if self.active and self.run is not None:
            import wandb

            self.run.log({name: wandb.Image(str(path))}, step=step)

    def pause(self) -> None:
        """Restart the clock: time spent since the last line (evaluation, saving) is not training."""
        self._last = (time.perf_counter(), self._last[1])

    def close(self) -> None:
        if self.run is not None:
            self.run.finish()


def peak_memory() -> int:
    """Most bytes this process has held: of the GPU where there is one, else of main memory."""
    import torch  # here, because the help text says nothing of memory

    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    scale = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale


def _short(value: float) -> str:
    return f"{value:.2e}" if value != 0 and abs(value) < 1e-2 else f"{value:.3f}"


def _start_wandb(cfg: WandbConfig, folder: Path) -> Any:
    """Start wandb, or continue the run whose id lies in the folder."""
    import wandb

    id_file = folder / "wandb_id.txt"
    run_id = id_file.read_text(encoding="utf-8").strip() if id_file.exists() else uuid.uuid4().hex[:8]
    write_text(id_file, run_id)
    return wandb.init(
        project=cfg.project,
        name=cfg.name or folder.name,
        id=run_id,
        resume="allow",
        dir=str(folder),
        mode=cfg.mode,  # type: ignore[arg-type]
    )
