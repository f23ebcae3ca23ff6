"""Matrix products for few rows: what follows a product is fused into it where the library can."""

from __future__ import annotations

import torch
import torch.nn.functional as F

# Above this many rows the packed product gains nothing (docs/log.md).
FEW_ROWS = 64


class Product:
    """x (..., in) -> x @ weight.T, (..., out), alone or with what follows it."""

    def __init__(self, weight: torch.Tensor) -> None:
        self.weight = weight.detach()

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, self.weight)

    def silu(self, x: torch.Tensor) -> torch.Tensor:
        return F.silu(F.linear(x, self.weight))

    def times(self, x: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
        return factor * F.linear(x, self.weight)

    def plus(self, x: torch.Tensor, term: torch.Tensor) -> torch.Tensor:
        return term + F.linear(x, self.weight)


class PackedProduct(Product):
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

    def times(self, x: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
        return self.binary(x, factor, self.blocked, None, "mul") if few(x) else super().times(x, factor)

    def plus(self, x: torch.Tensor, term: torch.Tensor) -> torch.Tensor:
        return self.binary(x, term, self.blocked, None, "add") if few(x) else super().plus(x, term)


def few(x: torch.Tensor) -> bool:
    return x.numel() <= FEW_ROWS * x.shape[-1]


def can_pack(weight: torch.Tensor) -> bool:
    """Whether this torch and place have oneDNN's blocked float32 products."""
    return (
        weight.device.type == "cpu"
        and weight.dtype == torch.float32
        and torch.backends.mkldnn.is_available()
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    )
