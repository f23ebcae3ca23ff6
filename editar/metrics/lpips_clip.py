"""LPIPS (SqueezeNet) and CLIP similarity as PIE-Bench measures them, for batches."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from editar.errors import CheckpointError
from editar.metrics.networks import frozen, pretrained, read_state
from editar.runtime.files import load_state
from editar.runtime.hub import from_pretrained

CLIP_SIDE = 224
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


class Lpips:
    """LPIPS 0.1 with SqueezeNet 1.1; the seven heads come with the lpips package."""

    def __init__(self, trunk: dict[str, torch.Tensor], device: torch.device, batch: int = 16) -> None:
        """`trunk`: torchvision's squeezenet1_1 state dict; its classifier is not used.

        Raises CheckpointError for other weights.
        """
        import lpips

        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # lpips passes torchvision a deprecated argument
            network = lpips.LPIPS(net="squeeze", pnet_rand=True, verbose=False)
        own = network.net.state_dict()  # slice1.0.weight = features.0.weight
        renamed = {key: trunk.get(f"features.{key.split('.', 1)[1]}") for key in own}
        if absent := [key for key, value in renamed.items() if value is None]:
            raise CheckpointError(f"not the weights of torchvision's squeezenet1_1: nothing for {absent[0]}")
        load_state(network.net, {key: value for key, value in renamed.items() if value is not None}, "squeezenet1_1")
        self.network, self.device, self.batch = frozen(network, device), device, batch

    @classmethod
    def load(cls, source: str, device: torch.device) -> Lpips:
        return cls(read_state(source), device)

    @torch.no_grad()
    def __call__(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        """(B, 3, H, W) in [0, 1] each, masked already -> (B,) float32 on the CPU, raw (not times 1e3)."""
        pairs = zip(a.split(self.batch), b.split(self.batch), strict=True)
        values = [self.network(x.to(self.device) * 2 - 1, y.to(self.device) * 2 - 1).flatten() for x, y in pairs]
        return torch.cat(values).float().cpu()


class ClipSimilarity:
    """100 x cosine of a picture and a caption, not below 0 (torchmetrics CLIPScore, one picture at a time)."""

    def __init__(self, model: nn.Module, tokenizer: Any, device: torch.device, batch: int = 32) -> None:
        """`model`: a transformers CLIPModel; `tokenizer`: its tokenizer."""
        self.model, self.tokenizer = frozen(model, device), tokenizer
        self.device, self.batch = device, batch

    @classmethod
    def load(cls, source: str, device: torch.device) -> ClipSimilarity:
        """From a hub id or its folder; PIE-Bench uses openai/clip-vit-large-patch14. Raises ConfigError."""
        from transformers import AutoTokenizer, CLIPModel

        return cls(pretrained(CLIPModel, source, "clip"), from_pretrained(AutoTokenizer, source), device)

    @torch.no_grad()
    def __call__(self, images: np.ndarray, captions: list[str]) -> torch.Tensor:
        """(B, H, W, 3) uint8 and B captions -> (B,) float32 on the CPU.

        Captions beyond 77 tokens are cut so that the end token stays (torchmetrics either fails on
        them or cuts it off, #2000, #2883); no PIE-Bench caption is that long.
        """
        values = []
        for start in range(0, len(captions), self.batch):
            part = slice(start, start + self.batch)
            picture, text = self._pictures(images[part]), self._captions(captions[part])
            values.append((100 * (picture * text).sum(-1)).clamp(min=0))
        return torch.cat(values).float().cpu()

    @torch.no_grad()
    def between(self, a: np.ndarray, b: np.ndarray) -> torch.Tensor:
        """100 x cosine of pictures with pictures, (B, H, W, 3) uint8 each -> (B,) float32 on the CPU."""
        return (100 * (self._pictures(a) * self._pictures(b)).sum(-1)).float().cpu()

    def _pictures(self, images: np.ndarray) -> torch.Tensor:
        pixels = clip_pixels(images, self.model.config.vision_config.image_size).to(self.device)
        return _unit(self.model.get_image_features(pixel_values=pixels))

    def _captions(self, captions: list[str]) -> torch.Tensor:
        length = self.model.config.text_config.max_position_embeddings
        tokens = self.tokenizer(captions, padding=True, truncation=True, max_length=length, return_tensors="pt")
        tokens = {key: tokens[key].to(self.device) for key in ("input_ids", "attention_mask")}
        return _unit(self.model.get_text_features(**tokens))


def clip_pixels(images: np.ndarray, side: int = CLIP_SIDE) -> torch.Tensor:
    """(B, S, S, 3) uint8 -> (B, 3, side, side) float32, normalised.

    With Pillow's bicubic on bytes, as the processor of the official evaluator's time; newer
    transformers resize with torchvision, a grey level apart here and there.
    """
    small = [np.asarray(Image.fromarray(image).resize((side, side), Image.Resampling.BICUBIC)) for image in images]
    pixels = torch.from_numpy(np.stack(small)).permute(0, 3, 1, 2).float() / 255
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (CLIP_MEAN, CLIP_STD))
    return (pixels - mean) / std


def _unit(features: Any) -> torch.Tensor:
    """Length 1. transformers 5 wraps the projected features in an output object, 4 does not."""
    vectors = features if isinstance(features, torch.Tensor) else features.pooler_output
    return vectors / vectors.norm(dim=-1, keepdim=True)
