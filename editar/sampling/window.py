"""How many codes to guess and check in one pass (`sampling.window=auto`).

Every choice gives the same codes, so this is about time alone: the window with the most accepted codes per
second, from the time of the passes so far and from how often guesses were right.
"""

from __future__ import annotations

from bisect import bisect_left
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
        self.tried, self.right = np.zeros(self.widths[-1] - 1), np.zeros(self.widths[-1] - 1)
        self.slack = 0.0
        self._sizes: list[int] = []  # the keys of `seconds`, ascending
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

    def _accepted(self) -> list[float]:
        """How many codes a window of 1, 2, ... accepts on average."""
        share, reached, total, accepted = 0.5, 1.0, 1.0, [1.0]
        for tried, right in zip(self.tried.tolist(), self.right.tolist(), strict=True):
            share = (right + share) / (tried + 1)  # as if one guess more had been tried, right as often as before it
            reached *= share
            total += reached
            accepted.append(total)
        return accepted

    def time(self, codes: int, worst: bool = False) -> float:
        """Expected seconds of a pass that reads so many codes; beyond all measured, on a straight line through the
        last two points, or, at `worst`, in proportion to the last."""
        sizes, place = self._sizes, bisect_left(self._sizes, codes)
        if place < len(sizes):
            high = self.seconds[sizes[place]]
            if place == 0 or sizes[place] == codes:
                return high
            low, share = self.seconds[sizes[place - 1]], (codes - sizes[place - 1]) / (sizes[place] - sizes[place - 1])
            return low + share * (high - low)
        last = self.seconds[sizes[-1]]
        limit = last * codes / sizes[-1]
        if worst or len(sizes) == 1:
            return limit if worst else last
        slope = (last - self.seconds[sizes[-2]]) / (sizes[-1] - sizes[-2])
        return min(max(last + slope * (codes - sizes[-1]), last), limit)

    def observe(self, rows: int, width: int, advances: Sequence[int], remaining: Sequence[int], seconds: float) -> None:
        """Of each unfinished result: codes accepted in a pass of `width` and codes that had been left."""
        before = self.seconds.get(rows * width)
        if before is None or seconds < before:
            self.seconds[rows * width] = seconds
            self._sizes = sorted(self.seconds)
        else:  # a pass that was interrupted counts little
            self.seconds[rows * width] += 0.2 * (min(seconds, 2 * before) - before)
        self.slack += sum(advances) / len(advances) - seconds / self.time(rows)
        self._first = False
        self.tried *= MEMORY
        self.right *= MEMORY
        for advance, left in zip(advances, remaining, strict=True):
            self.right[: advance - 1] += 1 / len(advances)
            self.tried[: min(advance, width - 1, left - 1)] += 1 / len(advances)
