"""How many codes to guess and check in one pass (`sampling.window=auto`).

Every choice gives the same codes, so this is about time alone: the window with the most accepted codes per
second, from the time of the passes so far and from how often guesses were right.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence

import numpy as np

ALLOWED_LOSS = 0.04  # of the time that window 1 needs for an image: what trying wider windows may cost
MEMORY = 0.97  # weight of what was seen before a pass after it
REMEASURE = 16  # images or batches after which times that were not needed are measured anew
TRUST = 2  # passes before the time of a width is believed


class FixedWindow:
    """`sampling.window=N`."""

    def __init__(self, window: int) -> None:
        self.width = window

    def begin(self, tokens: int) -> None:
        pass

    def choose(self, rows: int, remaining: int) -> int:
        return self.width

    def measure(self, codes: int, seconds: float, trust: bool) -> None:
        pass

    def observe(self, rows: int, width: int, advances: Sequence[int], remaining: Sequence[int], seconds: float) -> None:
        pass


class AutoWindow:
    """Chooses among `widths` (ascending, the first is 1); learns from every pass, over all images.

    Two things are learned. `seconds` maps the number of codes read in a pass, rows * width, to its time; between
    and beyond measured points the time is interpolated. `right[k]` of `tried[k]` guesses were right at place k
    of a window, where all before it were: window w is then expected to accept 1 + h0 + h0 h1 + ... codes, w
    terms, with hk = right[k] / tried[k]; a place never reached behaves as the one before it. That takes no
    account of guesses getting better the longer they are in a wide window, so it counts as one pass beside
    the passes that a width has had: `accepted[width]` codes in `passes[width]`.

    `slack`, in passes of width 1, is what may still be lost in this image; right guesses earn more. A
    window is not taken where one accepted code would overdraw it, so where no guess is ever right an image
    takes about 1 + ALLOWED_LOSS of window 1's time at most.
    """

    def __init__(self, widths: Sequence[int]) -> None:
        self.widths = list(widths)
        self.seconds: dict[int, float] = {}
        self.measured: dict[int, int] = {}  # how often
        self.tried, self.right = np.zeros(self.widths[-1] - 1), np.zeros(self.widths[-1] - 1)
        self.accepted, self.passes = dict.fromkeys(self.widths, 0.0), dict.fromkeys(self.widths, 0.0)
        self.slack = 0.0
        self._trusted: list[int] = []  # keys of `seconds` measured often enough, ascending
        self._used: set[int] = set()
        self._begun = 0

    def begin(self, tokens: int) -> None:
        """A new image or batch of images of so many codes."""
        self.slack = ALLOWED_LOSS * tokens
        self._begun += 1
        if self._begun % REMEASURE == 0:  # times that were not needed lately may have been chance, or are old
            self.seconds = {codes: time for codes, time in self.seconds.items() if codes in self._used}
            self._trusted = [codes for codes in self._trusted if codes in self._used]
            self._used, self.measured = set(), dict.fromkeys(self._trusted, TRUST)

    def choose(self, rows: int, remaining: int) -> int:
        """The window of the next pass over so many rows, of which the slowest has `remaining` codes to go."""
        if not self._trusted or (self._trusted[0] > rows):
            return 1
        expected = self._expected()
        single, best, speed = self.time(rows), 1, 0.0
        for width in self.widths:
            if width > 1 and self._limit(rows * width) / single - 1 > self.slack:
                break
            codes = (self.accepted[width] + expected[min(width, remaining) - 1]) / (self.passes[width] + 1)
            rate = min(codes, remaining) / self.time(rows * width)
            if rate > speed:
                best, speed = width, rate
            if width >= remaining:
                break
        return best

    def _expected(self) -> list[float]:
        """How many codes a window of 1, 2, ... should accept, from what was seen at each place of all windows."""
        share, reached, total, expected = 0.5, 1.0, 1.0, [1.0]
        for tried, right in zip(self.tried.tolist(), self.right.tolist(), strict=True):
            share = (right + share) / (tried + 1)  # as if one guess more had been tried, right as often as before it
            reached *= share
            total += reached
            expected.append(total)
        return expected

    def time(self, codes: int) -> float:
        """Expected seconds of a pass that reads so many codes."""
        sizes, place = self._trusted, bisect_left(self._trusted, codes)
        if place < len(sizes):
            high = self.seconds[sizes[place]]
            if place == 0 or sizes[place] == codes:
                return high
            low, share = self.seconds[sizes[place - 1]], (codes - sizes[place - 1]) / (sizes[place] - sizes[place - 1])
            return low + share * (high - low)
        last = self.seconds[sizes[-1]]
        if len(sizes) == 1:
            return last
        slope = (last - self.seconds[sizes[-2]]) / (sizes[-1] - sizes[-2])
        return min(max(last + slope * (codes - sizes[-1]), last), self._limit(codes))

    def _limit(self, codes: int) -> float:
        """The most that such a pass can take: a pass over twice the codes takes at most twice the time."""
        place = bisect_right(self._trusted, codes)
        if place == 0:
            return self.seconds[self._trusted[0]]
        largest = self._trusted[place - 1]
        return self.seconds[largest] * codes / largest

    def observe(self, rows: int, width: int, advances: Sequence[int], remaining: Sequence[int], seconds: float) -> None:
        """Of each unfinished result: codes accepted in a pass of `width` and codes that had been left."""
        codes = rows * width
        self.measure(codes, seconds, width == 1)
        # The learned time, not this pass's own: on a busy machine every pass is now and then interrupted.
        self.slack += sum(advances) / len(advances) - (self.seconds[codes] / self.time(rows) if self._trusted else 1)
        self.tried *= MEMORY
        self.right *= MEMORY
        for known in self.widths:
            self.accepted[known] *= MEMORY
            self.passes[known] *= MEMORY
        if width in self.passes and min(remaining) >= width:
            self.accepted[width] += sum(advances) / len(advances)
            self.passes[width] += 1
        for advance, left in zip(advances, remaining, strict=True):
            self.right[: advance - 1] += 1 / len(advances)
            self.tried[: min(advance, width - 1, left - 1)] += 1 / len(advances)

    def measure(self, codes: int, seconds: float, trust: bool) -> None:
        """Learn the time of a pass.

        One that was interrupted counts little, and without `trust` none is believed at once.
        """
        self._used.add(codes)
        self.measured[codes] = self.measured.get(codes, 0) + 1
        before = self.seconds.get(codes)
        if before is None or seconds < before:
            self.seconds[codes] = seconds
        else:
            self.seconds[codes] += 0.2 * (min(seconds, 2 * before) - before)
        if codes not in self._trusted and (trust or self.measured[codes] >= TRUST):
            self._trusted = sorted([*self._trusted, codes])
