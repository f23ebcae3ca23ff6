"""Frozen teachers of the distillation loss: pictures -> patch features (paper eq. 3).

`dinov2` and `clip` follow EditAR's feature encoders (TokenAR feature_encoders/build.py): the network's
own processor (resize, centre crop, normalise), bfloat16 weights under autocast, last hidden state
without the class token. The teacher therefore sees a crop while the student's map covers the whole
picture; kept as it is. `hog` is a hand-made teacher that needs no download, for the nano world.

`prepare` makes of a full-size picture the bytes that the network is about to see; data workers do it, and a
codes cache may keep the result.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image

from editar.config import TeacherConfig
from editar.images import to_tensor, to_uint8
from editar.runtime.device import pick_dtype
from editar.runtime.hub import from_pretrained


class Teacher(Protocol):
    prepare: Callable[[np.ndarray], np.ndarray]  # (H, W, 3) uint8 -> (h, w, 3) uint8; picklable, without the network

    def __call__(self, pictures: torch.Tensor) -> torch.Tensor:
        """Prepared pictures (B, h, w, 3) uint8 -> (B, T, C) float32 on the teacher's device, no gradient."""
        ...


def build_teacher(cfg: TeacherConfig, device: torch.device, grid: int) -> Teacher | None:
    """The configured teacher, or None. `grid` is the side of the student's feature map."""
    if cfg.name == "none":
        return None
    if cfg.name == "hog":
        return HogTeacher(grid, device)
    return HubTeacher(cfg, device)


class HubTeacher:
    """DINOv2 or CLIP vision tower through transformers, with its own image processor."""

    def __init__(self, cfg: TeacherConfig, device: torch.device) -> None:
        from transformers import AutoImageProcessor, AutoModel, CLIPVisionModel

        self.device, self.dtype = device, pick_dtype(cfg.dtype, device)
        processor = from_pretrained(AutoImageProcessor, cfg.weights)
        self.prepare: Callable[[np.ndarray], np.ndarray] = partial(resized_as_read, sizes_of(processor))
        self.mean, self.std = (torch.tensor(v, device=device) for v in (processor.image_mean, processor.image_std))
        model = from_pretrained(CLIPVisionModel if cfg.name == "clip" else AutoModel, cfg.weights)
        self.model = model.to(device, self.dtype).eval().requires_grad_(False)

    @torch.no_grad()
    def __call__(self, pictures: torch.Tensor) -> torch.Tensor:
        pixels = (pictures.to(self.device).float() / 255 - self.mean) / self.std
        half = self.dtype != torch.float32  # under autocast, as officially: layer norms stay float32
        with torch.autocast(self.device.type, self.dtype if half else None, enabled=half):
            features = self.model(pixel_values=pixels.permute(0, 3, 1, 2).to(self.dtype)).last_hidden_state
        return features[:, 1:].float()


Sizes = tuple[int | tuple[int, int], tuple[int, int] | None, int]  # resize: short side or (w, h); crop (w, h); filter


def sizes_of(processor: Any) -> Sizes:
    """What a transformers image processor resizes and crops to."""
    size, crop = processor.size, processor.crop_size if getattr(processor, "do_center_crop", False) else None
    resize = size["shortest_edge"] if "shortest_edge" in dict(size) else (size["width"], size["height"])
    return resize, crop and (crop["width"], crop["height"]), int(processor.resample)


def resized_as_read(sizes: Sizes, picture: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8 resized and cropped by Pillow in 8 bits, as transformers' processors did it in 2024.

    Quirk of the official code: pictures go through [-1, 1] in float32 and back to bytes by truncation, which makes
    95 of the 256 grey levels one darker.
    """
    resize, crop, resample = sizes
    image = Image.fromarray(to_uint8(to_tensor(picture)[None])[0])
    if isinstance(resize, int):
        short = min(image.size)
        resize = (image.width * resize // short, image.height * resize // short)
    image = image.resize(resize, Image.Resampling(resample))
    if crop is not None:
        left, top = (image.width - crop[0]) // 2, (image.height - crop[1]) // 2
        image = image.crop((left, top, left + crop[0], top + crop[1]))
    return np.array(image)


class HogTeacher:
    """Histogram of oriented gradients and mean colour of each patch, from scikit-image.

    Eight orientations and three colours, (B, grid * grid, 11), each channel about unit scale.
    """

    ORIENTATIONS = 8
    DIM = ORIENTATIONS + 3

    def __init__(self, grid: int, device: torch.device) -> None:
        self.grid, self.device = grid, device
        self.prepare: Callable[[np.ndarray], np.ndarray] = np.asarray  # the whole picture

    def __call__(self, pictures: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(np.stack([self._one(one) for one in pictures.cpu().numpy()])).to(self.device)

    def _one(self, picture: np.ndarray) -> np.ndarray:
        from skimage.feature import hog

        side = picture.shape[0] // self.grid
        gradients = hog(
            picture, orientations=self.ORIENTATIONS, pixels_per_cell=(side, side), cells_per_block=(1, 1),
            feature_vector=False, channel_axis=-1,
        )[:, :, 0, 0]  # fmt: skip
        colours = picture.reshape(self.grid, side, self.grid, side, 3).mean((1, 3)) / 127.5 - 1
        return np.concatenate([gradients * 2, colours], -1).reshape(-1, self.DIM).astype(np.float32)
