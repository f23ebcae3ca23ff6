"""What a run tells: one console line per log step, metrics.jsonl always, wandb when asked."""

from __future__ import annotations

import json
import sys
import time
import uuid
from pathlib import Path
from typing import Any

from editar.config import WandbConfig


def say(text: str) -> None:
    """One line for the person at the terminal."""
    print(text, file=sys.stderr, flush=True)


def duration(seconds: float) -> str:
    """75 -> '1:15', 3700 -> '1:01:40'."""
    minutes, secs = divmod(int(max(seconds, 0)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{secs:02d}" if hours else f"{minutes}:{secs:02d}"


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
    ) -> None:
        self.path = folder / "metrics.jsonl"
        self.total_steps, self.unit, self.active = total_steps, unit, active
        self.run: Any = None
        self._last = (time.perf_counter(), start_step)
        if not active:
            return
        self._keep_rows_before(start_step)
        if wandb is not None and wandb.enabled:
            self.run = _start_wandb(wandb, folder)

    def _keep_rows_before(self, start_step: int) -> None:
        if not self.path.exists():
            return
        rows = [line for line in self.path.read_text().splitlines() if line.endswith("}")]
        kept = [line for line in rows if json.loads(line)["step"] <= start_step]
        self.path.write_text("".join(line + "\n" for line in kept))

    def log(self, step: int, values: dict[str, float], units_per_step: int = 0) -> None:
        """Record `values` after `step` steps; with `units_per_step`, add the rate and the time left."""
        if not self.active:
            return
        now = time.perf_counter()
        seconds, steps = now - self._last[0], step - self._last[1]
        row: dict[str, float] = {"step": step, **values}
        line = f"step {step}/{self.total_steps}  " + "  ".join(f"{k} {_short(v)}" for k, v in values.items())
        if units_per_step and steps > 0:
            row[f"{self.unit}_per_s"] = steps * units_per_step / seconds
            left = (self.total_steps - step) * seconds / steps
            line += f"  {row[f'{self.unit}_per_s']:.1f} {self.unit}/s  {duration(left)} left"
            self._last = (now, step)
        with self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")
        say(line)
        if self.run is not None:
            self.run.log(values, step=step)

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


def _short(value: float) -> str:
    return f"{value:.2e}" if value != 0 and abs(value) < 1e-2 else f"{value:.3f}"


def _start_wandb(cfg: WandbConfig, folder: Path) -> Any:
    """Start wandb, or continue the run whose id lies in the folder."""
    import wandb

    id_file = folder / "wandb_id.txt"
    run_id = id_file.read_text().strip() if id_file.exists() else uuid.uuid4().hex[:8]
    id_file.write_text(run_id)
    return wandb.init(
        project=cfg.project,
        name=cfg.name or folder.name,
        id=run_id,
        resume="allow",
        dir=str(folder),
        mode=cfg.mode,  # type: ignore[arg-type]
    )
