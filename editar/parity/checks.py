"""One comparison with stored numbers, and the folder they are read from.

What a line's error means is named beside it:
  scaled     max|a - b| / max(1, max|b|), b being the stored tensor
  relative   max|a - b| / max|b|
  elements   max of |a - b| / |b| element by element
  absolute   max|a - b|
  differing  share of entries that are not identical
Entries that are equal (also the same infinity) or both NaN count as zero error.
"""

from __future__ import annotations

import json
import math
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from editar.errors import UserError


class GoldenError(UserError):
    """Stored numbers that are missing, unreadable or incomplete; one line naming the file."""


@dataclass(frozen=True)
class Check:
    """The outcome of one comparison; `error` is in the unit that `kind` names."""

    name: str
    error: float
    tolerance: float
    kind: str
    note: str = ""

    @property
    def ok(self) -> bool:
        return self.error <= self.tolerance  # a NaN error is not ok

    def line(self) -> str:
        verdict = "ok" if self.ok else "FAIL"
        note = f"  ({self.note})" if self.note else ""
        return f"{self.name:<58} {self.kind:<9} {self.error:9.2e}  tolerance {self.tolerance:7.1e}  {verdict}{note}"


@dataclass(frozen=True)
class Skipped:
    """Something stored that is not compared, and why."""

    name: str
    reason: str

    def line(self) -> str:
        return f"{self.name:<58} skipped: {self.reason}"


@dataclass(frozen=True)
class Tolerances:
    """Largest accepted error per sort of number."""

    forward: float  # scaled, one pass through a network
    gradient: float  # relative
    steps: float  # absolute, parameters after optimiser steps
    pixels: float  # absolute, preprocessing
    tokens: float  # differing, greedy choices along the stored sequence
    codes: float  # differing, nearest codebook entries
    uint8: float  # differing by truncation at the edge between two grey levels


FLOAT32 = Tolerances(forward=1e-5, gradient=1e-3, steps=1e-4, pixels=1e-6, tokens=0.0, codes=0.0, uint8=1e-3)
# Weights and activations cast to bfloat16 (8 significant bits, 4e-3 per rounding).
BFLOAT16 = Tolerances(forward=1e-1, gradient=2e-1, steps=2e-2, pixels=1e-6, tokens=0.2, codes=0.2, uint8=1.0)


class Entries(dict[str, Any]):
    """A stored dictionary that names its file when an entry is absent."""

    def __init__(self, values: dict[str, Any], origin: str) -> None:
        super().__init__({key: wrap(value, origin) for key, value in values.items()})
        self.origin = origin

    def __missing__(self, key: str) -> Any:
        raise GoldenError(f"{self.origin}: has no entry {key}")


def wrap(value: Any, origin: str) -> Any:
    if isinstance(value, dict):
        return Entries(value, origin)
    return [wrap(item, origin) for item in value] if isinstance(value, list) else value


@dataclass(frozen=True)
class Golden:
    """One group's folder, where its tensors go, and how its checks are made and named."""

    folder: Path
    device: torch.device
    dtype: torch.dtype
    tolerance: Tolerances

    # --- reading ---

    def path(self, name: str) -> Path:
        path = self.folder / name
        if not path.is_file():
            raise GoldenError(f"{self.folder.name}/{name}: file is missing")
        return path

    def json(self, name: str) -> Any:
        try:
            return wrap(json.loads(self.path(name).read_text(encoding="utf-8")), f"{self.folder.name}/{name}")
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise GoldenError(f"{self.folder.name}/{name}: not readable JSON ({error})") from None

    def tensors(self, name: str) -> Entries:
        """A dictionary of tensors on the CPU; only plain data is unpickled."""
        path = self.path(name)
        try:
            return Entries(torch.load(path, map_location="cpu", weights_only=True), f"{self.folder.name}/{name}")
        except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
            reason = str(error).split("\n")[0]
            raise GoldenError(f"{self.folder.name}/{name}: not a readable tensor file ({reason})") from None

    def array(self, name: str) -> Any:
        """A .npy array, or the mapping in a .npz."""
        try:
            return np.load(self.path(name), allow_pickle=False)
        except (ValueError, EOFError) as error:
            raise GoldenError(f"{self.folder.name}/{name}: not a readable array ({error})") from None

    # --- placing ---

    def put(self, tensor: torch.Tensor) -> torch.Tensor:
        """To the device; floats also to the dtype under test."""
        return tensor.to(self.device, self.dtype) if tensor.is_floating_point() else tensor.to(self.device)

    # --- comparing ---

    def scaled(self, name: str, got: Any, stored: Any, tolerance: float | None = None) -> Check:
        limit = self.tolerance.forward if tolerance is None else tolerance
        return self.compare("scaled", name, got, stored, limit)

    def relative(self, name: str, got: Any, stored: Any) -> Check:
        return self.compare("relative", name, got, stored, self.tolerance.gradient)

    def elements(self, name: str, got: Any, stored: Any) -> Check:
        return self.compare("elements", name, got, stored, self.tolerance.gradient)

    def absolute(self, name: str, got: Any, stored: Any, tolerance: float) -> Check:
        return self.compare("absolute", name, got, stored, tolerance)

    def identical(self, name: str, got: Any, stored: Any, share: float = 0.0) -> Check:
        """Numbers of any kind, entry by entry; at most `share` of them may differ."""
        return self.compare("differing", name, got, stored, share)

    def same(self, name: str, got: object, stored: object) -> Check:
        """Two plain values (names, lists of names, shapes) that must be equal."""
        note = "" if got == stored else f"found {str(got)[:80]}, stored {str(stored)[:80]}"
        return Check(f"{self.folder.name}: {name}", float(got != stored), 0.0, "differing", note)

    def compare(self, kind: str, name: str, got: Any, stored: Any, tolerance: float) -> Check:
        name = f"{self.folder.name}: {name}"
        a, b = as_double(got), as_double(stored)
        if a.shape != b.shape:
            return Check(name, math.inf, tolerance, kind, f"shape {tuple(a.shape)}, stored {tuple(b.shape)}")
        return Check(name, error_of(kind, a, b), tolerance, kind)


def as_double(value: Any) -> torch.Tensor:
    """Anything numeric as a float64 tensor on the CPU."""
    tensor = value.detach() if isinstance(value, torch.Tensor) else torch.as_tensor(np.asarray(value))
    return tensor.cpu().double()


def error_of(kind: str, a: torch.Tensor, b: torch.Tensor) -> float:
    """The error of a against the stored b, equally shaped float64, as the module's head defines it."""
    if a.numel() == 0:
        return 0.0
    equal = (a == b) | (a.isnan() & b.isnan())
    if kind == "differing":
        return 1.0 - equal.double().mean().item()
    distance = torch.where(equal, 0.0, (a - b).abs()).nan_to_num(nan=math.inf, posinf=math.inf)
    if kind == "absolute":
        return distance.max().item()
    size = torch.where(b.isfinite(), b.abs(), 0.0)
    if kind == "elements":
        return (distance / size.clamp(min=1e-12)).max().item()
    floor = 1.0 if kind == "scaled" else 1e-12
    return distance.max().item() / max(floor, size.max().item())
