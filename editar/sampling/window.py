"""How many codes to guess and check in one pass (`sampling.window=auto`).

Every choice gives the same codes, so this is about time alone: the window with the most accepted codes per
second, from the time of the passes so far and from how often guesses were right.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

ALLOWED_LOSS = 0.04  # of the time that window 1 needs for an image: what trying wider windows may cost
MEMORY = 0.9  # weight of what was seen before a pass after it
REMEASURE = 8  # images or batches between passes of width 1 whose only purpose is to time them again


class FixedWindow:
    """`sampling.window=N`."""

    def __init__(self, window: int) -> None:
        self.width = window

    def begin(self, tokens: int) -> None:
        pass

    def choose(self, rows: int, remaining: int) -> int:
        return self.width

    def observe(self, rows: int, width: int, advances: Sequence[int], remaining: Sequence[int], seconds: float) -> None:
        pass


class AutoWindow:
    """Chooses among `widths` (ascending, the first is 1); learns from every pass, over all images.

    Two things are learned. `seconds` maps the number of codes read in a pass, rows * width, to its time; between
    and beyond measured points the time is interpolated. `right[k]` of `tried[k]` guesses were right at place k
    of a window, where all before it were: window w is then expected to accept 1 + h0 + h0 h1 + ... codes, w
    terms, with hk = right[k] / tried[k]; a place never reached behaves as the one before it.

    `slack`, in passes of width 1, is what may still be lost in this image; right guesses earn more. A
    window is not taken where one accepted code would overdraw it, so where no guess is ever right an image
    takes at most 1 + ALLOWED_LOSS of window 1's time.
    """

    def __init__(self, widths: Sequence[int]) -> None:
        self.widths = list(widths)
        self.seconds: dict[int, float] = {}
        self.tried, self.right = np.zeros(self.widths[-1]), np.zeros(self.widths[-1])
        self.slack = 0.0
        self._begun = 0
        self._first = True

    def begin(self, tokens: int) -> None:
        """A new image or batch of images of so many codes."""
        self.slack = ALLOWED_LOSS * tokens
        self._first = True
        self._begun += 1

    def choose(self, rows: int, remaining: int) -> int:
        """The window of the next pass over so many rows, of which the slowest has `remaining` codes to go."""
        if self._first and (rows not in self.seconds or self._begun % REMEASURE == 0):
            return 1
        accepted = self._accepted()
        single, best, speed = self.time(rows), 1, 0.0
        for width in self.widths:
            if width > 1 and self.time(rows * width, worst=True) / single - 1 > self.slack:
                break
            rate = accepted[min(width, remaining) - 1] / self.time(rows * width)
            if rate > speed:
                best, speed = width, rate
            if width >= remaining:
                break
        return best

    def _accepted(self) -> np.ndarray:
        """(widest,): how many codes a window of each width accepts on average."""
        share, shares = 0.5, np.empty(len(self.tried))
        for place, (tried, right) in enumerate(zip(self.tried.tolist(), self.right.tolist(), strict=True)):
            share = (right + share) / (tried + 1)
            shares[place] = share
        return 1 + np.concatenate([[0.0], shares[:-1].cumprod().cumsum()])

    def time(self, codes: int, worst: bool = False) -> float:
        """Expected seconds of a pass that reads so many codes; beyond all measured, on a straight line through the
        last two points, or, at `worst`, in proportion to the last."""
        known = sorted(self.seconds)
        if codes <= known[-1]:
            return float(np.interp(codes, known, [self.seconds[n] for n in known]))
        last, limit = self.seconds[known[-1]], self.seconds[known[-1]] * codes / known[-1]
        if worst or len(known) == 1:
            return limit if worst else last
        slope = (last - self.seconds[known[-2]]) / (known[-1] - known[-2])
        return min(max(last + slope * (codes - known[-1]), last), limit)

    def observe(self, rows: int, width: int, advances: Sequence[int], remaining: Sequence[int], seconds: float) -> None:
        """Of each unfinished result: codes accepted in a pass of `width` and codes that had been left."""
        before = self.seconds.get(rows * width)
        if before is None or seconds < before:
            self.seconds[rows * width] = seconds
        else:  # a pass that was interrupted counts little
            self.seconds[rows * width] += 0.2 * (min(seconds, 2 * before) - before)
        self.slack += sum(advances) / len(advances) - seconds / self.time(rows)
        self._first = False
        self.tried *= MEMORY
        self.right *= MEMORY
        for advance, left in zip(advances, remaining, strict=True):
            self.right[: advance - 1] += 1 / len(advances)
            self.tried[: min(advance, width - 1, left - 1)] += 1 / len(advances)
