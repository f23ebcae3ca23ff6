"""A torch profiler trace of a few early steps, to open in Perfetto or chrome://tracing."""

from __future__ import annotations

from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile, schedule

from editar.runtime.log import say

SKIP, WARM_UP, RECORD = 2, 1, 3  # steps


class Trace:
    """Call `step` after every training step; writes `folder/trace.json` once, when `active`."""

    def __init__(self, folder: Path, active: bool) -> None:
        self.folder = folder
        self.profiler: profile | None = None
        if active:
            folder.mkdir(parents=True, exist_ok=True)
            activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * torch.cuda.is_available()
            plan = schedule(wait=SKIP, warmup=WARM_UP, active=RECORD, repeat=1)
            self.profiler = profile(activities=activities, schedule=plan, on_trace_ready=self._write)
            self.profiler.start()

    def step(self) -> None:
        if self.profiler is not None:
            self.profiler.step()

    def _write(self, profiler: profile) -> None:
        path = self.folder / "trace.json"
        profiler.export_chrome_trace(str(path))
        say(f"profile of steps {SKIP + WARM_UP + 1} to {SKIP + WARM_UP + RECORD} in {path}")
        self.profiler = None
