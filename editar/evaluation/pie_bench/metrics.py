"""The columns of Tables 1 and 3: batches of (source, result, mask, captions) -> rows of numbers.

Rules of the official evaluator (PnPInversion evaluation/matrics_calculator.py):
  background     both pictures are multiplied by 1 - mask and then scored over the whole frame, zeros
                 included; nothing is divided by the region's area. A small background thus looks good
  undefined      where the mask covers everything the background columns are NaN and the row is left
                 out of their means (`editar.tables.statistics` counts it)
  edited region  CLIP sees the result with everything outside the mask black
  structure      whole pictures, no mask (`editar.metrics.dino_structure`)
  libraries      `evaluator=current`: as under EditAR's torchvision 0.17 and torchmetrics 1.5.1, and today.
                 `evaluator=2023`: as under PnPInversion's torchvision 0.13.1 (no antialias before DINO)
                 and the torchmetrics of its time (SSIM without the five outermost rows and columns)
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch

from editar.config import NetworkSources
from editar.evaluation.pie_bench.dataset import plain_caption
from editar.metrics.dino_structure import StructureDistance
from editar.metrics.lpips_clip import ClipSimilarity, Lpips
from editar.metrics.networks import Missing, load_or_leave
from editar.metrics.ssim import mse, psnr, ssim
from editar.tables.scores import Column


class PieColumn(NamedTuple):
    """One column of the table. value in the paper's unit = `scale` x raw value; `official` is the
    name in the official evaluator's CSV."""

    name: str
    title: str
    official: str
    scale: float
    unit: str
    better: str  # lower | higher

    @property
    def shown(self) -> Column:
        return Column(self.name, self.title, self.unit, self.better)


CLIP_EDITED = "clip_similarity_target_image_edit_part"
COLUMNS = (
    PieColumn("structure", "Structure distance", "structure_distance", 1e3, "x1e3", "lower"),
    PieColumn("psnr", "Background PSNR", "psnr_unedit_part", 1.0, "dB", "higher"),
    PieColumn("lpips", "Background LPIPS", "lpips_unedit_part", 1e3, "x1e3", "lower"),
    PieColumn("mse", "Background MSE", "mse_unedit_part", 1e4, "x1e4", "lower"),
    PieColumn("ssim", "Background SSIM", "ssim_unedit_part", 1e2, "x1e2", "higher"),
    PieColumn("clip_whole", "CLIP, whole picture", "clip_similarity_target_image", 1.0, "100 x cosine", "higher"),
    PieColumn("clip_edited", "CLIP, edited region", CLIP_EDITED, 1.0, "100 x cosine", "higher"),
)
NETWORKS = {"structure": ("structure",), "lpips": ("lpips",), "clip": ("clip_whole", "clip_edited")}
SCALE = {column.name: column.scale for column in COLUMNS}


@dataclass(frozen=True)
class PieBatch:
    """sources, results: (B, 512, 512, 3) uint8. masks: (B, 512, 512) bool, True = region to edit.
    captions: of the targets, brackets allowed."""

    sources: np.ndarray
    results: np.ndarray
    masks: np.ndarray
    captions: list[str]


class PieMetrics:
    """Scores batches with whatever networks are there; the columns of the others are left out."""

    def __init__(
        self,
        device: torch.device,
        structure: StructureDistance | None = None,
        lpips: Lpips | None = None,
        clip: ClipSimilarity | None = None,
        evaluator: str = "current",
    ) -> None:
        self.device, self.structure, self.lpips, self.clip = device, structure, lpips, clip
        self.ssim_borders = evaluator != "2023"

    @classmethod
    def load(
        cls, sources: NetworkSources, device: torch.device, evaluator: str = "current"
    ) -> tuple[PieMetrics, list[Missing]]:
        """With the networks whose files are here, and what is missing for the rest.

        Raises CheckpointError or ConfigError for a file that is there and is not what it should be.
        """

        structure = partial(StructureDistance.load, antialias=evaluator != "2023")
        loaders: dict[str, Any] = {"structure": structure, "lpips": Lpips.load, "clip": ClipSimilarity.load}
        found = {
            name: load_or_leave(name, getattr(sources, name), NETWORKS[name], partial(load, device=device))
            for name, load in loaders.items()
        }
        missing = [reason for _, reason in found.values() if reason]
        return cls(device, **{name: network for name, (network, _) in found.items()}, evaluator=evaluator), missing

    def columns(self) -> list[PieColumn]:
        """Those that this object fills, in the table's order."""
        lacking = {name for network, names in NETWORKS.items() if getattr(self, network) is None for name in names}
        return [column for column in COLUMNS if column.name not in lacking]

    def __call__(self, batch: PieBatch) -> list[dict[str, float]]:
        """One row per picture: column name -> raw value (`paper_units` scales them), NaN if undefined."""
        sources, results = (to_unit(pictures, self.device) for pictures in (batch.sources, batch.results))
        masks = torch.from_numpy(batch.masks).to(self.device)
        values = background(sources, results, ~masks, self.lpips, self.ssim_borders)
        if self.structure is not None:
            # Quirk: grey levels 0..255, where every other column reads [0, 1].
            values["structure"] = self.structure(*(grey_levels(p) for p in (batch.sources, batch.results)))
        if self.clip is not None:
            captions = [plain_caption(caption) for caption in batch.captions]
            values["clip_whole"] = self.clip(batch.results, captions)
            values["clip_edited"] = self.clip(batch.results * batch.masks[..., None].astype(np.uint8), captions)
        lists = {column.name: values[column.name].tolist() for column in self.columns()}
        return [{name: value[i] for name, value in lists.items()} for i in range(len(batch.captions))]


def background(
    sources: torch.Tensor,
    results: torch.Tensor,
    keep: torch.Tensor,
    lpips: Lpips | None = None,
    ssim_borders: bool = True,
) -> dict[str, torch.Tensor]:
    """psnr, mse, ssim (and lpips) of both pictures times `keep`, each (B,) on the CPU; NaN where nothing is kept.

    sources, results: (B, 3, H, W) in [0, 1]. keep: (B, H, W) bool, 1 - mask for the paper's columns;
    all True gives the whole-picture variants, the mask itself those of the edited region.
    """
    a, b = (pictures * keep[:, None] for pictures in (sources, results))
    error = mse(a, b)
    values = {"psnr": psnr(error), "mse": error, "ssim": ssim(a, b, ssim_borders)}
    if lpips is not None:
        values["lpips"] = lpips(a, b)
    nothing = ~keep.flatten(1).any(1).cpu()
    return {name: value.cpu().masked_fill(nothing, math.nan) for name, value in values.items()}


def to_unit(pictures: np.ndarray, device: torch.device) -> torch.Tensor:
    """(B, H, W, 3) uint8 -> (B, 3, H, W) float32 in [0, 1]; bytes travel to the device, not floats."""
    return grey_levels(pictures).to(device).float().div_(255)


def grey_levels(pictures: np.ndarray) -> torch.Tensor:
    """(B, H, W, 3) uint8 -> (B, 3, H, W) uint8."""
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(pictures, 3, 1)))


def paper_units(row: dict[str, float]) -> dict[str, float]:
    """Raw values -> those of the paper's table (structure x1e3, LPIPS x1e3, MSE x1e4, SSIM x1e2)."""
    return {name: value * SCALE[name] for name, value in row.items()}
