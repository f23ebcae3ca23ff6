"""Table 2: does the picture keep the condition it was made from? Depth RMSE, edge scores, mIoU.

Two published ways of measuring, as named PROTOCOLS:

              editar                               controlnet++
  source      TokenAR sample_edit_folder.py        ControlNet_Plus_Plus eval/
  pictures    1 per prompt                         4 per prompt, all of them scored
  depth       prediction min-max normalised        prediction divided by its maximum
  edges       one map at a time                    the 4 maps of a prompt together, PSNR at most 100
  geometry    short side to 512, centre crop       stretched to 512x512
  labels      class ids stretched to 512x512        stretched
  canny set   the pictures of the depth set        canny_eval
  scored are  the output: edges of its floats,     the pictures as saved, rounded to 8 bits
              depth of it truncated to 8 bits,
              FID and mIoU of it rounded

`editar-aligned` is `editar` with class ids cropped as their picture is. Of pictures that are not square
`editar` compares other places of label and picture, so that even the true picture loses mIoU.
In all of them the depth label is min-max normalised and both maps are truncated to 8 bits, "SSIM" is the
*multi-scale* SSIM of the edge maps, and edges are by default kornia's Canny at 0.1 / 0.2, as in both
repositories' scripts; `canny.operator=cv2` is the one that the thresholds (100, 200) of EditAR's text fit.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image

from editar.conditions import canny
from editar.errors import BenchmarkError
from editar.images import round_to_uint8, to_tensor, to_uint8
from editar.metrics.pictures import SIZE
from editar.metrics.ssim import ms_ssim, mse, psnr, ssim

CLASSES, IGNORE = 171, 255  # COCO-Stuff 164k in mmseg's numbering, no shift of labels


@dataclass(frozen=True)
class TranslationProtocol:
    """Every choice that moves a number of Table 2."""

    name: str
    images_per_prompt: int
    depth: str  # min-max | max: how a predicted depth map is scaled to 0..1
    geometry: str  # crop | stretch: how pictures get to 512x512
    labels: str  # the same for class ids
    psnr_cap: float | None  # what an infinite PSNR of equal edge maps counts as
    unrounded: bool  # edges and depth belong to the output itself, not to the picture as it was saved
    canny_set: str  # depth_eval | canny_eval: whose pictures the edges are of
    operator: str = "kornia"  # of Canny


PROTOCOLS = {
    "editar": TranslationProtocol("editar", 1, "min-max", "crop", "stretch", None, True, "depth_eval"),
    "editar-aligned": TranslationProtocol("editar-aligned", 1, "min-max", "crop", "crop", None, True, "depth_eval"),
    "controlnet++": TranslationProtocol("controlnet++", 4, "max", "stretch", "stretch", 100.0, False, "canny_eval"),
}


def protocol(name: str) -> TranslationProtocol:
    """Raises BenchmarkError for an unknown name."""
    if name not in PROTOCOLS:
        raise BenchmarkError(f"protocol={name} is not one of {', '.join(PROTOCOLS)}")
    return PROTOCOLS[name]


# --- what is kept of an output ---------------------------------------------------------------------

UNROUNDED = {"canny": "edges", "depth": "truncated"}  # task -> folder of what its number is measured on


def renderings(task: str, rules: TranslationProtocol) -> dict[str, Callable[[torch.Tensor], np.ndarray]]:
    """Folder -> what it holds of an output (3, S, S) in [-1, 1], (S, S, 3) or (S, S) uint8. `images` are rounded, as
    torchvision and diffusers save them."""
    found: dict[str, Callable[[torch.Tensor], np.ndarray]] = {}
    if task == "canny" and rules.unrounded:
        found["edges"] = lambda output: (canny((output[None] + 1) / 2, rules.operator)[0, 0] * 255).byte().numpy()
    if task == "depth" and rules.unrounded:
        found["truncated"] = lambda output: to_uint8(output[None])[0]
    return found | {"images": lambda output: round_to_uint8(output[None])[0]}


# --- depth ----------------------------------------------------------------------------------------


def depth_map(predicted: np.ndarray, scaling: str) -> np.ndarray:
    """A predicted depth map (h, w) of any scale -> (512, 512) uint8 grey levels.

    Truncated to 8 bits first and resized (Pillow, bilinear) after, in the order of both scripts.
    """
    return np.asarray(Image.fromarray(_to_grey(predicted, scaling)).resize((SIZE, SIZE), Image.Resampling.BILINEAR))


def depth_label(grey: np.ndarray) -> np.ndarray:
    """A stored depth condition (H, W) uint8, already at its final size -> min-max normalised uint8."""
    return _to_grey(grey, "min-max")


def _to_grey(values: np.ndarray, scaling: str) -> np.ndarray:
    """Scaled to 0..1, times 255, truncated. A constant map, for which both scripts divide by 0, is 0."""
    values = values.astype(np.float64 if values.dtype == np.uint8 else np.float32)
    low = values.min() if scaling == "min-max" else 0
    span = values.max() - low
    return ((values - low) / (span if span > 0 else 1) * 255).clip(0, 255).astype(np.uint8)


def depth_rmse(predicted: np.ndarray, label: np.ndarray) -> np.ndarray:
    """Grey maps (B, H, W) uint8 each -> root mean squared difference per map in grey levels, (B,) float64.

    The table's number is the mean of these, not the root of a pooled mean. Raises BenchmarkError
    where the shapes differ.
    """
    _same_shape(predicted, label)
    gaps = predicted.astype(np.float32) - label.astype(np.float32)
    return np.sqrt(np.square(gaps).reshape(len(gaps), -1).mean(1, dtype=np.float64))


# --- edges ----------------------------------------------------------------------------------------


def edge_maps(pictures: np.ndarray, rules: TranslationProtocol, device: torch.device) -> torch.Tensor:
    """(B, H, W, 3) uint8 -> Canny edges (B, 1, H, W), exactly 0 or 1, on the device.

    Labels and results go the same way, so that a perfect result scores 1: as `editar` through [-1, 1] and back,
    whose rounding moves ties of the gradient.
    """
    if rules.unrounded:
        return canny((torch.stack([to_tensor(picture) for picture in pictures]).to(device) + 1) / 2, rules.operator)
    return canny(torch.from_numpy(pictures).to(device).permute(0, 3, 1, 2).float() / 255, rules.operator)


def edge_scores(predicted: torch.Tensor, label: torch.Tensor, psnr_cap: float | None = None) -> dict[str, torch.Tensor]:
    """Edge maps of P prompts with G pictures each, (P, G, H, W), against (P, H, W), values exactly 0 or 1.

    -> per prompt (P,) on the CPU: ms_ssim (the table's "SSIM") and ssim, means over the G maps; psnr in
    dB and f1 over the pixels of the G maps together. f1 is 0 where neither side has an edge
    (torchmetrics). Raises BenchmarkError for other values and shapes.
    """
    prompts, group, height, width = predicted.shape
    if label.shape != (prompts, height, width):
        raise BenchmarkError(f"edge maps are {tuple(predicted.shape)}, their labels {tuple(label.shape)}")
    for maps in (predicted, label):
        if not ((maps == 0) | (maps == 1)).all():
            raise BenchmarkError("edge maps must hold nothing but 0 and 1 (0 and 255 in files)")
    found, true = predicted.flatten(0, 1)[:, None].float(), label.repeat_interleave(group, 0)[:, None].float()
    error = mse(found, true).view(prompts, group).mean(1)
    hits = (found * true).view(prompts, -1).sum(1)
    marked = (found + true).view(prompts, -1).sum(1)
    decibel = psnr(error)
    scores = {
        "ms_ssim": ms_ssim(found, true).view(prompts, group).mean(1),
        "ssim": ssim(found, true).view(prompts, group).mean(1),
        "psnr": decibel if psnr_cap is None else decibel.nan_to_num(posinf=psnr_cap),
        "f1": 2 * hits / marked.clamp(min=1),
    }
    return {name: value.cpu() for name, value in scores.items()}


# --- segmentation ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class SegmentationScores:
    """Shares in 0..1. Undefined classes (absent from labels and predictions) are NaN and left out of
    the means; a class that is only predicted has IoU 0 and counts."""

    iou: np.ndarray  # (classes,)
    accuracy: np.ndarray  # (classes,) recall of each class
    miou: float
    macc: float
    aacc: float


class Confusion:
    """One confusion matrix over all pictures, rows = labels, columns = predictions (mmseg's IoUMetric).

    `reduce_zero_label` is the ADE20K convention: label 0 is ignored and the others move down by one,
    predictions stay. COCO-Stuff does not use it.
    """

    def __init__(self, classes: int = CLASSES, ignore: int = IGNORE, reduce_zero_label: bool = False) -> None:
        self.classes, self.ignore, self.reduce_zero_label = classes, ignore, reduce_zero_label
        self.matrix = np.zeros((classes, classes), np.int64)

    def update(self, predicted: np.ndarray, label: np.ndarray) -> None:
        """Class ids of any equal shape. Raises BenchmarkError for ids that are no class."""
        _same_shape(predicted, label)
        label, predicted = label.astype(np.int64), predicted.astype(np.int64)
        if self.reduce_zero_label:
            label = np.where((label == 0) | (label == self.ignore), self.ignore, label - 1)
        keep = label != self.ignore
        label, predicted = label[keep], predicted[keep]
        for what, ids in (("label", label), ("prediction", predicted)):
            if ids.size and not 0 <= ids.min() <= ids.max() < self.classes:
                raise BenchmarkError(
                    f"a {what} holds class {ids.max()}; there are {self.classes}, from 0, and {self.ignore} is ignored"
                )
        counts = np.bincount(label * self.classes + predicted, minlength=self.classes**2)
        self.matrix += counts.reshape(self.classes, self.classes)

    def scores(self) -> SegmentationScores:
        """Raises BenchmarkError when nothing was counted."""
        if not self.matrix.sum():
            raise BenchmarkError("no labelled pixel was scored")
        hits, true, found = np.diag(self.matrix), self.matrix.sum(1), self.matrix.sum(0)
        with np.errstate(invalid="ignore"):
            iou, accuracy = hits / (true + found - hits), hits / true
        return SegmentationScores(
            iou, accuracy, float(np.nanmean(iou)), float(np.nanmean(accuracy)), float(hits.sum() / true.sum())
        )


def _same_shape(predicted: np.ndarray, label: np.ndarray) -> None:
    if predicted.shape != label.shape:
        raise BenchmarkError(f"a prediction is {predicted.shape}, its label {label.shape}")
