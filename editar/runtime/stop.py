"""Being told to stop: SIGTERM (Slurm, Kubernetes, spot machines) and SIGUSR1 ask a training to save and leave."""

from __future__ import annotations

import signal
from types import FrameType, TracebackType

EXIT_STOPPED = 75  # "try again" in sysexits.h: everything is saved, start the same command again
SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


class Stopped(Exception):
    """The run was told to stop and has saved; entries exit with EXIT_STOPPED."""


class StopSignals:
    """Inside the context the signals only set `asked` to their name; the loop leaves when it can."""

    asked: str = ""

    def __enter__(self) -> StopSignals:
        self._before = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.asked = signal.Signals(number).name
