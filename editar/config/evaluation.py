"""Settings of the networks that score results (`editar.metrics`)."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class ConditionNetworks:
    """Local path or hub id of the networks that read depth and classes from a photograph.

    depth also takes Intel/dpt-large, segmenter facebook/maskformer-resnet101-coco-stuff (not comparable).
    """

    depth: str | None = "checkpoints/dpt-large"
    segmenter: str | None = "checkpoints/deeplabv3_r101-d8_512x512_4x4_320k_coco-stuff164k_20210709_155402-3cbca14d.pth"


@dataclass
class NetworkSources(ConditionNetworks):
    """Local path or hub id of each network; null leaves its columns out.

    structure also takes timm/vit_base_patch8_224.dino, clip openai/clip-vit-large-patch14.
    """

    structure: str | None = "checkpoints/dino_vitbase8_pretrain.pth"
    lpips: str | None = "checkpoints/squeezenet1_1-b8a52dc0.pth"
    clip: str | None = "checkpoints/clip-vit-large-patch14"
    inception: str | None = "checkpoints/inception-2015-12-05.pt"
