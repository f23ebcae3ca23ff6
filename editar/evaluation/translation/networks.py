"""Who reads the generated picture: segmentation and depth networks of Table 2.

`DeepLab` is OpenMMLab's DeepLabV3 with a ResNet-101-V1c (dilation 8, 171 classes, COCO-Stuff 164k), the
network behind the published mIoU, in plain torch; its modules are named so that the checkpoint's keys
need one change of prefix (`from_mmseg`). mmseg's ResNetV1c differs from torchvision's ResNet by a stem
of three 3x3 convolutions; `backbone.layer1..4` are the same blocks with the same names.
`HubSegmenter` runs any transformers MaskFormer; its mIoU is not comparable with published numbers.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from editar.errors import BenchmarkError, CheckpointError
from editar.evaluation.translation.protocol import CLASSES, SIZE
from editar.metrics.networks import State, frozen, pretrained, read_state
from editar.runtime.files import load_state
from editar.runtime.hub import from_pretrained

MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)  # of RGB bytes
RESNET101 = (3, 4, 23, 3)
DILATIONS = (1, 12, 24, 36)


class ConvModule(nn.Sequential):
    """Convolution, batch norm, ReLU with mmcv's names."""

    def __init__(self, inputs: int, outputs: int, kernel: int, dilation: int = 1) -> None:
        padding = dilation * (kernel // 2)
        conv = nn.Conv2d(inputs, outputs, kernel, padding=padding, dilation=dilation, bias=False)
        super().__init__(OrderedDict(conv=conv, bn=nn.BatchNorm2d(outputs), relu=nn.ReLU(inplace=True)))


class AsppHead(nn.Module):
    """mmseg's ASPPHead: global pooling and four dilated branches, a 3x3 bottleneck, 1x1 classes."""

    def __init__(self, inputs: int = 2048, width: int = 512, classes: int = CLASSES) -> None:
        super().__init__()
        self.image_pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), ConvModule(inputs, width, 1))
        self.aspp_modules = nn.ModuleList(
            ConvModule(inputs, width, 1 if dilation == 1 else 3, dilation) for dilation in DILATIONS
        )
        self.bottleneck = ConvModule((len(DILATIONS) + 1) * width, width, 3)
        self.conv_seg = nn.Conv2d(width, classes, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        pooled = self.image_pool(x).expand(-1, -1, *x.shape[2:])  # bilinear from 1x1 is the same
        branches = [pooled, *(module(x) for module in self.aspp_modules)]
        return self.conv_seg(self.bottleneck(torch.cat(branches, 1)))


class DeepLabV3(nn.Module):
    """RGB bytes, normalised by MEAN and STD, (B, 3, H, W) -> logits (B, classes, H, W)."""

    def __init__(self, layers: tuple[int, ...] = RESNET101, width: int = 512, classes: int = CLASSES) -> None:
        from torchvision.models.resnet import Bottleneck, ResNet

        super().__init__()
        # The first block of a dilated stage keeps the dilation of the stage before, in torchvision
        # (replace_stride_with_dilation) as in mmseg (contract_dilation).
        trunk = ResNet(Bottleneck, list(layers), replace_stride_with_dilation=[False, True, True])
        stem = [_stem_step(*step) for step in ((3, 32, 2), (32, 32, 1), (32, 64, 1))]
        self.backbone = nn.Module()
        self.backbone.stem = nn.Sequential(*(part for step in stem for part in step))  # type: ignore[assignment]
        for stage in (1, 2, 3, 4):
            setattr(self.backbone, f"layer{stage}", getattr(trunk, f"layer{stage}"))
        self.decode_head = AsppHead(2048, width, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        size, backbone = x.shape[2:], self.backbone
        x = F.max_pool2d(backbone.stem(x), 3, stride=2, padding=1)  # type: ignore[operator]
        for stage in (1, 2, 3, 4):
            x = getattr(backbone, f"layer{stage}")(x)
        return F.interpolate(self.decode_head(x), size=size, mode="bilinear", align_corners=False)


def _stem_step(inputs: int, outputs: int, stride: int) -> list[nn.Module]:
    conv = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
    return [conv, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)]


def from_mmseg(state: State) -> State:
    """An OpenMMLab state dict -> DeepLabV3's keys: the auxiliary head, used in training only, is left out.

    Raises CheckpointError for another architecture.
    """
    if not any(key.startswith("backbone.stem.") for key in state):
        raise CheckpointError("not a ResNet-V1c: the checkpoint has no backbone.stem")
    return {key: value for key, value in state.items() if not key.startswith("auxiliary_head.")}


class DeepLab:
    """Class ids of pictures, by the network behind the published mIoU."""

    def __init__(self, network: DeepLabV3, device: torch.device, batch: int = 8) -> None:
        self.network, self.device, self.batch = frozen(network, device), device, batch

    @classmethod
    def load(cls, source: str, device: torch.device) -> DeepLab:
        """From OpenMMLab's deeplabv3_r101-d8_..._coco-stuff164k checkpoint. Raises CheckpointError."""
        with torch.device("meta"):
            network = DeepLabV3()
        network = network.to_empty(device="cpu")
        load_state(network, from_mmseg(read_state(source)), source)
        return cls(network, device)

    @torch.no_grad()
    def __call__(self, pictures: np.ndarray) -> np.ndarray:
        """(B, 512, 512, 3) uint8 -> class ids (B, 512, 512) uint8.

        mmseg's test pipeline resizes the short side to 512 and keeps the ratio: at 512x512 nothing
        happens, and other sizes are refused with BenchmarkError.
        """
        if pictures.shape[1:] != (SIZE, SIZE, 3):
            raise BenchmarkError(f"the segmenter reads {SIZE}x{SIZE} pictures, not {pictures.shape[1:3]}")
        mean, std = (torch.tensor(values, device=self.device).view(3, 1, 1) for values in (MEAN, STD))
        labels = []
        for part in torch.from_numpy(pictures).split(self.batch):
            pixels = part.to(self.device).permute(0, 3, 1, 2).float()
            labels.append(self.network((pixels - mean) / std).argmax(1).to(torch.uint8).cpu())
        return torch.cat(labels).numpy()


class HubSegmenter:
    """A transformers MaskFormer (facebook/maskformer-resnet101-coco-stuff). Another network than the
    published tables', probably trained on another subset; the table says so, because its checksum is another."""

    def __init__(self, model: nn.Module, processor: Any, device: torch.device) -> None:
        self.model, self.processor, self.device = frozen(model, device), processor, device

    @classmethod
    def load(cls, source: str, device: torch.device) -> HubSegmenter:
        """From a hub id or its folder. Raises ConfigError."""
        from transformers import AutoImageProcessor, MaskFormerForInstanceSegmentation

        model = pretrained(MaskFormerForInstanceSegmentation, source, "maskformer")
        return cls(model, from_pretrained(AutoImageProcessor, source), device)

    @torch.no_grad()
    def __call__(self, pictures: np.ndarray) -> np.ndarray:
        """(B, H, W, 3) uint8 -> class ids (B, H, W) uint8."""
        inputs = self.processor(images=list(pictures), return_tensors="pt").to(self.device)
        sizes = [picture.shape[:2] for picture in pictures]
        maps = self.processor.post_process_semantic_segmentation(self.model(**inputs), target_sizes=sizes)
        return torch.stack(maps).to(torch.uint8).cpu().numpy()


class DepthNetwork:
    """Intel/dpt-large: relative inverse depth, near is large."""

    def __init__(self, model: nn.Module, processor: Any, device: torch.device) -> None:
        self.model, self.processor, self.device = frozen(model, device), processor, device

    @classmethod
    def load(cls, source: str, device: torch.device) -> DepthNetwork:
        """From a hub id or its folder. Raises ConfigError."""
        from transformers import DPTForDepthEstimation, DPTImageProcessor

        return cls(pretrained(DPTForDepthEstimation, source, "dpt"), from_pretrained(DPTImageProcessor, source), device)

    @torch.no_grad()
    def __call__(self, pictures: np.ndarray) -> np.ndarray:
        """(B, H, W, 3) uint8 -> depth (B, h, w) float32 at the network's own size (384 for dpt-large)."""
        inputs = self.processor(images=list(pictures), return_tensors="pt").to(self.device)
        return self.model(**inputs).predicted_depth.float().cpu().numpy()


def load_segmenter(source: str, device: torch.device) -> DeepLab | HubSegmenter:
    """OpenMMLab's file, or a hub id / folder of a MaskFormer."""
    return DeepLab.load(source, device) if source.endswith(".pth") else HubSegmenter.load(source, device)
