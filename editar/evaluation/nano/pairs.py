"""Nano edits with two pictures: does the model use the second one, and the right one?

`second=other` gives another sample's second picture, which asks for something else; `swapped` exchanges the two; `none`
leaves the second out. A model that reads its pictures fails all three.
"""

from __future__ import annotations

import hashlib
from functools import partial

import numpy as np

from editar.data.nano import scene as ns
from editar.data.nano.pairs import NanoPairs, other_references
from editar.errors import ConfigError
from editar.evaluation.nano.run import Nano
from editar.generation.generate import EditJob


class NanoPairsBenchmark(Nano):
    """The held-out pairs of scenes of `data_seed`."""

    name, title, protocol, world = "nano_pairs", "Nano world, two pictures", "nano-pairs-v1", NanoPairs
    settings = ("samples", "data_seed", "second")

    def pictures(self) -> list[list[np.ndarray]]:
        """What the model is given of each sample, one or two of (64, 64, 3) uint8."""
        first, second = [s.source for s in self.samples], [s.more[0] for s in self.samples]
        if self.cfg.second == "none":
            return [[source] for source in first]
        if self.cfg.second == "swapped":
            first, second = second, first
        elif self.cfg.second == "other":
            try:
                second = [ns.draw(scene) for scene in other_references(self.plans)]
            except ValueError as error:
                raise ConfigError(f"samples={self.cfg.samples}: {error}") from None
        return [list(pair) for pair in zip(first, second, strict=True)]

    def jobs(self) -> list[EditJob]:
        return [
            EditJob(sample.id, sample.id, sample.instruction, sample.target_caption, partial(list, given), None)
            for sample, given in zip(self.samples, self.pictures(), strict=True)
        ]

    def sources_sum(self) -> str:
        return hashlib.sha256(b"".join(picture.tobytes() for given in self.pictures() for picture in given)).hexdigest()
