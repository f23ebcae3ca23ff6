"""Frozen teachers of the distillation loss: pictures -> patch features (paper eq. 3).

`dinov2` and `clip` follow EditAR's feature encoders (TokenAR feature_encoders/build.py): the
network's own processor (resize, centre crop, normalise), last hidden state without the class token.
The teacher therefore sees a crop while the student's map covers the whole picture; kept as it is.
`hog` is a hand-made teacher that needs no download, for the nano world.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
import torch

from editar.config import TeacherConfig
from editar.errors import ConfigError
from editar.images import quantise, to_uint8
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
    return HubTeacher(cfg, device)


class HubTeacher:
    """DINOv2 or CLIP vision tower through transformers, with its own image processor; one of torchvision's backend
    works where the pictures are, on a GPU without bringing them to the host."""

    def __init__(self, cfg: TeacherConfig, device: torch.device) -> None:
        from transformers import AutoImageProcessor, AutoModel, CLIPVisionModel

        self.device, self.dtype = device, pick_dtype(cfg.dtype, device)
        self.processor = from_pretrained(AutoImageProcessor, cfg.weights)
        of_transformers_5 = getattr(self.processor, "backend", None) == "torchvision"
        self.takes_tensors = of_transformers_5 or getattr(self.processor, "is_fast", False)
        model = from_pretrained(CLIPVisionModel if cfg.name == "clip" else AutoModel, cfg.weights)
        self.model = model.to(device, self.dtype).eval().requires_grad_(False)

    @torch.no_grad()
    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        pictures = quantise(images) if self.takes_tensors else to_uint8(images)
        batch = self.processor(images=list(pictures), return_tensors="pt")
        pixels = batch["pixel_values"].to(self.device, self.dtype)
        return self.model(pixel_values=pixels).last_hidden_state[:, 1:].float()


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
        if pictures.shape[1] % self.grid:
            raise ConfigError(f"teacher.grid={self.grid} does not divide the picture's {pictures.shape[1]} pixels")
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
