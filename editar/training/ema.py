"""A running average of the weights, `ema = decay * ema + (1 - decay) * weights` after each step.

Not part of the paper's recipe (`optim.ema_decay=0`). Where it is on, evaluation, previews and
`model.safetensors` use the average; checkpoints hold both.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


class Ema:
    def __init__(self, model: nn.Module, decay: float) -> None:
        self.parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.decay = decay
        self.average = {name: p.detach().clone() for name, p in self.parameters.items()}

    @torch.no_grad()
    def update(self) -> None:
        average = list(self.average.values())  # in the order of the parameters
        torch._foreach_mul_(average, self.decay)
        torch._foreach_add_(average, list(self.parameters.values()), alpha=1 - self.decay)

    @contextmanager
    def swapped(self) -> Iterator[None]:
        """The model holds the average inside, its own weights again afterwards."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for name, parameter in self.parameters.items():
            own = parameter.detach().clone()
            parameter.detach().copy_(self.average[name])
            self.average[name].copy_(own)
