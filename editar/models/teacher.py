"""Frozen teachers of the distillation loss: pictures -> patch features (paper eq. 3).

`dinov2`, `clip` and `clipseg` follow EditAR's feature encoders (TokenAR feature_encoders/build.py): the
network's own processor (resize, centre crop, normalise), last hidden state without the class token.
With dinov2 the teacher therefore sees a crop while the student's map covers the whole picture; kept as it is.
`timm` is any network of timm that gives feature maps, convolutional ones included; it sees the whole picture.
`hog` is a hand-made teacher that needs no download, for the nano world.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import torch

from editar.config import TeacherConfig
from editar.errors import ConfigError, one_line
from editar.images import to_uint8
from editar.runtime.device import pick_dtype
from editar.runtime.hub import from_pretrained


class Teacher(Protocol):
    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """(B, 3, H, W) in [-1, 1] -> (B, T, C) float32, no gradient."""
        ...


def build_teacher(cfg: TeacherConfig, device: torch.device, grid: int) -> Teacher | None:
    """The configured teacher, or None. `grid` is the side of the student's feature map."""
    if cfg.name == "none":
        return None
    if cfg.name == "hog":
        return HogTeacher(grid)
    return TimmTeacher(cfg, device, grid) if cfg.name == "timm" else HubTeacher(cfg, device)


class HubTeacher:
    """DINOv2, CLIP's or CLIPSeg's vision tower through transformers, with its own image processor."""

    def __init__(self, cfg: TeacherConfig, device: torch.device) -> None:
        """Raises ConfigError for what cannot be loaded or is of another kind."""
        from transformers import AutoImageProcessor, AutoModel, CLIPSegForImageSegmentation, CLIPVisionModel

        self.device, self.dtype = device, pick_dtype(cfg.dtype, device)
        self.processor = from_pretrained(AutoImageProcessor, cfg.weights)
        kind = {"clip": CLIPVisionModel, "clipseg": CLIPSegForImageSegmentation}.get(cfg.name, AutoModel)
        model, report = from_pretrained(kind, cfg.weights, output_loading_info=True)
        if missing := sorted(report["missing_keys"]):  # transformers would go on with random ones
            raise ConfigError(f"teacher.weights={cfg.weights}: no {missing[0]} in it, so it is no {cfg.name}")
        if cfg.name == "clipseg":  # asked for alone, its tower finds none of its weights in the file (transformers 5)
            model = model.clip.vision_model
        self.model = model.to(device, self.dtype).eval().requires_grad_(False)

    @torch.no_grad()
    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        batch = self.processor(images=list(to_uint8(images)), return_tensors="pt")
        pixels = batch["pixel_values"].to(self.device, self.dtype)
        return self.model(pixel_values=pixels).last_hidden_state[:, 1:].float()


class TimmTeacher:
    """The feature map with `grid` places a side of any timm network, normalised as that network wants it."""

    def __init__(self, cfg: TeacherConfig, device: torch.device, grid: int) -> None:
        """Raises ConfigError for an unknown model, or weights that are not its own."""
        from timm.data import resolve_data_config

        self.cfg, self.device, self.dtype, self.grid = cfg, device, pick_dtype(cfg.dtype, device), grid
        file = {} if cfg.weights == "timm" else {"pretrained_cfg_overlay": {"file": cfg.weights}}
        model = timm_model(cfg, pretrained=True, **file)
        self.model = model.to(device, self.dtype).eval().requires_grad_(False)
        wanted = resolve_data_config(model=model)
        self.mean, self.std = (torch.tensor(wanted[key]).view(3, 1, 1) for key in ("mean", "std"))

    @torch.no_grad()
    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """Raises ConfigError where no map has `grid` places a side and `teacher.dim` channels."""
        pixels = ((images.cpu() + 1) / 2 - self.mean) / self.std
        maps = self.model(pixels.to(self.device, self.dtype))
        for found in reversed(maps):  # the deepest first
            if found.shape[1:] == (self.cfg.dim, self.grid, self.grid):
                return found.flatten(2).transpose(1, 2).float()
        known = ", ".join(f"teacher.grid={found.shape[-1]} teacher.dim={found.shape[1]}" for found in maps)
        wanted = f"teacher.grid={self.grid} teacher.dim={self.cfg.dim}"
        raise ConfigError(
            f"{self.cfg.model} has no map of {wanted} for pictures of {images.shape[-1]} px; it has {known}"
        )


def timm_model(cfg: TeacherConfig, **options: Any) -> Any:
    """Raises ConfigError."""
    import timm

    try:
        return timm.create_model(cfg.model, features_only=True, **options)
    except Exception as error:  # unknown, offline, other weights: many types, one meaning
        raise ConfigError(f"teacher.model={cfg.model} from {cfg.weights}: {one_line(error)}") from None


def timm_parameters(cfg: TeacherConfig) -> int:
    """How many a timm teacher has; loads nothing. Raises ConfigError for an unknown model."""
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in timm_model(cfg).parameters())


class HogTeacher:
    """Histogram of oriented gradients and mean colour of each patch, from scikit-image.

    Eight orientations and three colours, (B, grid * grid, 11), each channel about unit scale.
    """

    ORIENTATIONS = 8
    DIM = ORIENTATIONS + 3

    def __init__(self, grid: int) -> None:
        self.grid = grid

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        pictures = to_uint8(images)
        return torch.from_numpy(np.stack([self._one(picture) for picture in pictures])).to(images.device)

    def _one(self, picture: np.ndarray) -> np.ndarray:
        from skimage.feature import hog

        side = picture.shape[0] // self.grid
        gradients = hog(
            picture, orientations=self.ORIENTATIONS, pixels_per_cell=(side, side), cells_per_block=(1, 1),
            feature_vector=False, channel_axis=-1,
        )[:, :, 0, 0]  # fmt: skip
        colours = picture.reshape(self.grid, side, self.grid, side, 3).mean((1, 3)) / 127.5 - 1
        return np.concatenate([gradients * 2, colours], -1).reshape(-1, self.DIM).astype(np.float32)
