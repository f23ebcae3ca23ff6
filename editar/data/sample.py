"""What a data source yields: a pair of pictures with its texts.

A pair may be usable in both directions and may carry several wordings. Which of them a draw gets is
decided by two numbers in [0, 1), so that the codes cache can keep the pair and leave the choice open.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image

from editar.conditions import canny_condition
from editar.images import batch_to_tensor, resize_and_crop, to_uint8


class BadRow(ValueError):
    """A row that cannot be used; the message is the reason, without the row's name."""


@dataclass(frozen=True)
class Texts:
    """Instructions of a pair: source -> target, target -> source (empty when it is never reversed),
    and the chance of the latter."""

    instructions: tuple[str, ...]
    reversed_instructions: tuple[str, ...] = ()
    reverse_chance: float = 0.0

    def choose(self, direction: float, wording: float) -> tuple[bool, str]:
        """Two numbers in [0, 1) -> (is the pair reversed, instruction)."""
        reverse = bool(self.reversed_instructions) and direction < self.reverse_chance
        choices = self.reversed_instructions if reverse else self.instructions
        return reverse, choices[int(wording * len(choices))]


@dataclass(frozen=True)
class Pair:
    """A row of a data set. `source` None stands for the Canny edges of the target by `operator`, which depend on
    the training resolution (`resize_pair`). `more` are further pictures that the instruction speaks of."""

    id: str
    task: str
    source: Image.Image | None
    target: Image.Image
    texts: Texts
    operator: str = "kornia"
    more: tuple[Image.Image, ...] = ()


@dataclass(frozen=True)
class EditSample:
    """An edit with its ground truth (the nano world). source, target: (H, W, 3) uint8; mask: (H, W)
    bool, True where the edit may change pixels."""

    id: str
    task: str
    source: np.ndarray
    target: np.ndarray
    instruction: str
    mask: np.ndarray
    source_caption: str = ""
    target_caption: str = ""
    more: tuple[np.ndarray, ...] = ()  # pictures beside the source


def resize_pair(pair: Pair, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Source pictures (k, size, size, 3) and target (size, size, 3) uint8 as the tokenizer reads them: short side to
    `size`, centre crop, then edges where they are the condition (EditAR's order)."""
    target = np.array(resize_and_crop(pair.target, size))
    if pair.source is None:
        return to_uint8(canny_condition(batch_to_tensor(target[None]), pair.operator)), target
    return np.stack([np.array(resize_and_crop(image, size)) for image in (pair.source, *pair.more)]), target
