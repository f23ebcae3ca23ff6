"""Frozen teachers of the distillation loss: pictures -> patch features (paper eq. 3).

`dinov2`, `clip` and `clipseg` follow EditAR's feature encoders (TokenAR feature_encoders/build.py): the
network's own processor (resize, centre crop, normalise), bfloat16 weights under autocast, last hidden state
without the class token. With dinov2 the teacher therefore sees a crop while the student's map covers the whole
picture; kept as it is. `timm` is any network of timm that gives feature maps, convolutional ones included; it
sees the whole picture. `hog` is a hand-made teacher that needs no download, for the nano world.

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
from editar.errors import ConfigError, one_line
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
    return TimmTeacher(cfg, device, grid) if cfg.name == "timm" else HubTeacher(cfg, device)


class HubTeacher:
    """DINOv2, CLIP's or CLIPSeg's vision tower through transformers, with the sizes of its own image processor."""

    def __init__(self, cfg: TeacherConfig, device: torch.device) -> None:
        """Raises ConfigError for what cannot be loaded or is of another kind."""
        from transformers import AutoImageProcessor, AutoModel, CLIPSegForImageSegmentation, CLIPVisionModel

        self.device, self.dtype = device, pick_dtype(cfg.dtype, device)
        processor = from_pretrained(AutoImageProcessor, cfg.weights)
        self.prepare: Callable[[np.ndarray], np.ndarray] = partial(teacher_picture, sizes_of(processor))
        self.mean, self.std = (torch.tensor(v, device=device) for v in (processor.image_mean, processor.image_std))
        kind = {"clip": CLIPVisionModel, "clipseg": CLIPSegForImageSegmentation}.get(cfg.name, AutoModel)
        model, report = from_pretrained(kind, cfg.weights, output_loading_info=True)
        if missing := sorted(report["missing_keys"]):  # transformers would go on with random ones
            raise ConfigError(f"teacher.weights={cfg.weights}: no {missing[0]} in it, so it is no {cfg.name}")
        if cfg.name == "clipseg":  # asked for alone, its tower finds none of its weights in the file (transformers 5)
            model = model.clip.vision_model
        self.model = model.to(device, self.dtype).eval().requires_grad_(False)

    @torch.no_grad()
    def __call__(self, pictures: torch.Tensor) -> torch.Tensor:
        half = self.dtype != torch.float32  # under autocast, as officially: layer norms stay float32
        with torch.autocast(self.device.type, self.dtype if half else None, enabled=half):
            features = self.model(pixel_values=normalised(self, pictures)).last_hidden_state
        return features[:, 1:].float()


Sizes = tuple[int | tuple[int, int], tuple[int, int] | None, int]  # resize: short side or (w, h); crop (w, h); filter


def sizes_of(processor: Any) -> Sizes:
    """What a transformers image processor resizes and crops to."""
    size, crop = processor.size, processor.crop_size if getattr(processor, "do_center_crop", False) else None
    resize = size["shortest_edge"] if "shortest_edge" in dict(size) else (size["width"], size["height"])
    return resize, crop and (crop["width"], crop["height"]), int(processor.resample)


def teacher_picture(sizes: Sizes, picture: np.ndarray) -> np.ndarray:
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


class TimmTeacher:
    """The feature map with `grid` places a side of any timm network, normalised as that network wants it."""

    def __init__(self, cfg: TeacherConfig, device: torch.device, grid: int) -> None:
        """Raises ConfigError for an unknown model, or weights that are not its own."""
        from timm.data import resolve_data_config

        self.cfg, self.device, self.dtype, self.grid = cfg, device, pick_dtype(cfg.dtype, device), grid
        self.prepare: Callable[[np.ndarray], np.ndarray] = np.asarray  # the whole picture
        file = {} if cfg.weights == "timm" else {"pretrained_cfg_overlay": {"file": cfg.weights}}
        model = timm_model(cfg, pretrained=True, **file)
        self.model = model.to(device, self.dtype).eval().requires_grad_(False)
        wanted = resolve_data_config(model=model)
        self.mean, self.std = (torch.tensor(wanted[key], device=device) for key in ("mean", "std"))

    @torch.no_grad()
    def __call__(self, pictures: torch.Tensor) -> torch.Tensor:
        """Raises ConfigError where no map has `grid` places a side and `teacher.dim` channels."""
        try:
            maps = self.model(normalised(self, pictures))
        except Exception as error:  # networks of a fixed size say so in many types
            raise ConfigError(f"{self.cfg.model}, pictures of {pictures.shape[1]} px: {one_line(error)}") from None
        channels = self.model.feature_info.channels()
        maps = [m if m.shape[1] == c else m.permute(0, 3, 1, 2) for m, c in zip(maps, channels, strict=True)]
        for found in reversed(maps):  # the deepest first
            if found.shape[1:] == (self.cfg.dim, self.grid, self.grid):
                return found.flatten(2).transpose(1, 2).float()
        known = ", ".join(f"teacher.grid={found.shape[-1]} teacher.dim={found.shape[1]}" for found in maps)
        wanted = f"teacher.grid={self.grid} teacher.dim={self.cfg.dim}"
        raise ConfigError(
            f"{self.cfg.model} has no map of {wanted} for pictures of {pictures.shape[1]} px; it has {known}"
        )


def normalised(teacher: HubTeacher | TimmTeacher, pictures: torch.Tensor) -> torch.Tensor:
    """(B, h, w, 3) uint8 -> (B, 3, h, w) in the teacher's dtype, with its mean and deviation."""
    pixels = (pictures.to(teacher.device).float() / 255 - teacher.mean) / teacher.std
    return pixels.permute(0, 3, 1, 2).to(teacher.dtype)


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

    def __init__(self, grid: int, device: torch.device) -> None:
        self.grid, self.device = grid, device
        self.prepare: Callable[[np.ndarray], np.ndarray] = np.asarray  # the whole picture

    def __call__(self, pictures: torch.Tensor) -> torch.Tensor:
        if pictures.shape[1] % self.grid:
            raise ConfigError(f"teacher.grid={self.grid} does not divide the picture's {pictures.shape[1]} pixels")
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
