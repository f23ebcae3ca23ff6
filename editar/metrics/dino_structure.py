"""Structure distance of PIE-Bench: how far two pictures' DINO key self-similarities are apart.

Keys of the last block of DINO ViT-B/8, all heads side by side, all 785 tokens with the class token;
cosine similarity of every token with every other; mean squared difference of the two 785x785 maps
(PnPInversion evaluation/matrics_calculator.py, after Splice). The EditAR paper calls it a cosine
similarity; the code is this mean of squares.

Quirks of the official evaluator, kept:
  grey levels   pixels enter as 0..255 without division by 255, yet ImageNet's mean and standard
                deviation are those of [0, 1] (`preprocess`)
  antialias     torchvision's resize of tensors is antialiased since 0.17; the authors' 0.13.1 was not.
                True is what their code gives today, False what it gave then (`evaluator=2023`)
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from editar.metrics.networks import frozen, read_state
from editar.runtime.files import load_state

SIDE = 224
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class StructureDistance:
    """distance(a, b) for batches of pictures; `network` is a timm ViT with square input SIDE."""

    def __init__(self, network: nn.Module, device: torch.device, antialias: bool = True, batch: int = 32) -> None:
        self.network = frozen(network, device)
        self.device, self.antialias, self.batch = device, antialias, batch

    @classmethod
    def load(cls, source: str, device: torch.device, antialias: bool = True) -> StructureDistance:
        """From the official dino_vitbase8_pretrain.pth or timm/vit_base_patch8_224.dino: same keys.

        Raises CheckpointError for anything that is not this network.
        """
        network = dino_vitb8()
        load_state(network, read_state(source), source)
        return cls(network, device, antialias)

    @torch.no_grad()
    def __call__(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        """(B, 3, H, W) float pixels in 0..255 each -> (B,) float32 on the CPU, raw (not times 1e3)."""
        results = []
        for x, y in zip(a.split(self.batch), b.split(self.batch), strict=True):
            # A picture at a time: the two maps of a batch would be 5 MB each.
            pairs = zip(self.keys(x), self.keys(y), strict=True)
            results += [F.mse_loss(self_similarity(k), self_similarity(q)) for k, q in pairs]
        return torch.stack(results).float().cpu()

    def preprocess(self, images: torch.Tensor) -> torch.Tensor:
        """Pixels 0..255 -> what the network reads, (B, 3, 224, 224); not in [0, 1], see the module."""
        from torchvision.transforms.functional import resize  # imports torch's compiler: seconds, at every start

        images = resize(images.to(self.device).float(), [SIDE], antialias=self.antialias)
        mean, std = (torch.tensor(values, device=self.device).view(3, 1, 1) for values in (MEAN, STD))
        return (images - mean) / std

    def keys(self, images: torch.Tensor) -> torch.Tensor:
        """(B, 3, H, W) pixels 0..255 -> keys of the last block, (B, tokens, width), class token first."""
        blocks = self.network.blocks
        [(patches, prefix)] = self.network.forward_intermediates(
            self.preprocess(images),
            indices=[len(blocks) - 2],
            return_prefix_tokens=True,
            stop_early=True,
            output_fmt="NLC",
            intermediates_only=True,
        )
        last = blocks[-1]
        weight, bias = last.attn.qkv.weight.chunk(3)[1], last.attn.qkv.bias.chunk(3)[1]
        return F.linear(last.norm1(torch.cat([prefix, patches], 1)), weight, bias)


def self_similarity(keys: torch.Tensor) -> torch.Tensor:
    """(T, C) -> cosine similarity of all pairs, (T, T)."""
    length = keys.norm(dim=-1, keepdim=True)
    return keys @ keys.T / (length @ length.T).clamp(min=1e-8)


def dino_vitb8() -> nn.Module:
    """DINO ViT-B/8, weights not yet filled; its keys are those of the official checkpoint."""
    import timm

    with torch.device("meta"):  # drawing 86 million random numbers only to replace them takes seconds
        network = timm.create_model("vit_base_patch8_224.dino", pretrained=False, num_classes=0)
    return network.to_empty(device="cpu")
