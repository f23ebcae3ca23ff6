"""Linear layers for few rows: the addition, product or SiLU that follows is fused in where the library can."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F

from editar.errors import ConfigError

# Above this many rows the packed product gains nothing (docs/log.md).
FEW_ROWS = 64
# Smaller output layers belong to models whose weights stay in the processor's cache; a packed product
# only costs more to call there (reference/nano: 4.3 instead of 3.0 ms a pass).
PACK_FROM = 1 << 20


class Linear:
    """x (..., in) -> x @ weight.T, (..., out), alone or with what follows it."""

    def __init__(self, weight: torch.Tensor) -> None:
        self.weight = weight.detach()

    @property
    def bytes(self) -> int:
        """What one product with few rows reads."""
        return self.weight.nbytes

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, self.weight)

    def silu(self, x: torch.Tensor) -> torch.Tensor:
        return F.silu(self(x))

    def mul(self, x: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
        return factor * self(x)

    def add(self, x: torch.Tensor, term: torch.Tensor) -> torch.Tensor:
        return term + self(x)


class PackedLinear(Linear):
    """A copy of the weight in oneDNN's blocked layout: on AVX2 cores two float32 rows then cost what
    one does, where the plain product costs nearly double."""

    def __init__(self, weight: torch.Tensor) -> None:
        super().__init__(weight)
        self.blocked = torch.ops.mkldnn._reorder_linear_weight(self.weight, 2)
        self.unary = torch.ops.mkldnn._linear_pointwise.default
        self.binary = torch.ops.mkldnn._linear_pointwise.binary

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return self.unary(x, self.blocked, None, "none", [], "") if few(x) else super().__call__(x)

    def silu(self, x: torch.Tensor) -> torch.Tensor:
        return self.unary(x, self.blocked, None, "swish", [], "") if few(x) else super().silu(x)

    def mul(self, x: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
        return self.binary(x, factor, self.blocked, None, "mul") if few(x) else super().mul(x, factor)

    def add(self, x: torch.Tensor, term: torch.Tensor) -> torch.Tensor:
        return self.binary(x, term, self.blocked, None, "add") if few(x) else super().add(x, term)


def few(x: torch.Tensor) -> bool:
    return x.numel() <= FEW_ROWS * x.shape[-1]


def can_pack(weight: torch.Tensor) -> bool:
    """Whether this torch and place have oneDNN's blocked float32 products, and the weights gain from them."""
    return (
        weight.numel() >= PACK_FROM
        and weight.device.type == "cpu"
        and weight.dtype == torch.float32
        and torch.backends.mkldnn.is_available()
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    )


class Int8Linear(Linear):
    """Weights rounded to 8 bits per output channel, inputs per call; for any number of rows."""

    def __init__(self, weight: torch.Tensor) -> None:
        super().__init__(weight)
        scale = self.weight.abs().amax(1).clamp(min=1e-8).double() / 127
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch announces a move of its quantised tensors
            rounded = torch.quantize_per_channel(
                self.weight, scale, torch.zeros(len(scale), dtype=torch.long), 0, torch.qint8
            )
        self.packed = torch.ops.quantized.linear_prepack(rounded, None)

    @property
    def bytes(self) -> int:
        return self.weight.numel()

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return torch.ops.quantized.linear_dynamic(x, self.packed, reduce_range=True)


@contextmanager
def flushed_denormals(device: torch.device) -> Iterator[None]:
    """Inside, numbers too small for a normal float (below 1e-38) count as zero on a CPU.

    A trained model's attention weights are full of them, and each costs a CPU over a hundred cycles.
    """
    before = bool(torch.full((1,), 1e-40).mul(1) == 0)
    torch.set_flush_denormal(before or device.type == "cpu")
    try:
        yield
    finally:
        torch.set_flush_denormal(before)


def pick_linear(weight: torch.Tensor, compiles: bool, int8: bool) -> type[Linear]:
    """How to multiply with weights like this one. Raises ConfigError where int8 cannot be had."""
    place = weight.device.type
    if int8:
        if place != "cpu" or weight.dtype != torch.float32 or compiles:
            raise ConfigError(
                f"int8=true needs a float32 model on a CPU, not compiled; this one is {weight.dtype} on {place}"
            )
        if not hasattr(torch.ops.quantized, "linear_dynamic"):
            raise ConfigError(f"int8=true needs a torch with quantized.linear_dynamic; {torch.__version__} has none")
        return Int8Linear
    return PackedLinear if not compiles and can_pack(weight) else Linear
