"""Networks that score, of toy size with random weights, saved in the files the real ones come in."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import nn


def write_depth_network(folder: Path) -> Path:
    """A DPT with its processor, as Intel/dpt-large is stored."""
    from transformers import DPTConfig, DPTForDepthEstimation, DPTImageProcessor

    config = DPTConfig(
        hidden_size=16, num_hidden_layers=4, num_attention_heads=2, intermediate_size=16, image_size=64, patch_size=16,
        backbone_out_indices=[0, 1, 2, 3], neck_hidden_sizes=[8, 8, 8, 8], fusion_hidden_size=8,
    )  # fmt: skip
    DPTForDepthEstimation(config).save_pretrained(folder)
    DPTImageProcessor(size={"height": 64, "width": 64}).save_pretrained(folder)
    return folder


def write_hub_segmenter(folder: Path) -> Path:
    """A MaskFormer of 171 classes with its processor, as facebook/maskformer-resnet101-coco-stuff is stored."""
    from transformers import (
        DetrConfig,
        MaskFormerConfig,
        MaskFormerForInstanceSegmentation,
        MaskFormerImageProcessor,
        ResNetConfig,
    )

    backbone = ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16, 16, 32], depths=[1, 1, 1, 1],
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )  # fmt: skip
    decoder = DetrConfig(
        d_model=32, encoder_layers=1, decoder_layers=1, encoder_ffn_dim=32, decoder_ffn_dim=32,
        encoder_attention_heads=2, decoder_attention_heads=2, num_queries=6, use_timm_backbone=False,
        use_pretrained_backbone=False, backbone_config=backbone,
    )  # fmt: skip
    config = MaskFormerConfig(
        backbone_config=backbone, decoder_config=decoder, num_labels=171, fpn_feature_size=32, mask_feature_size=32
    )
    MaskFormerForInstanceSegmentation(config).save_pretrained(folder)
    MaskFormerImageProcessor(size={"height": 64, "width": 64}).save_pretrained(folder)
    return folder


def write_clip(folder: Path) -> Path:
    """A CLIP of a few thousand random weights and a tokenizer of single letters, as saved on disk."""
    from transformers import CLIPConfig, CLIPModel, CLIPTokenizerFast

    folder.mkdir(exist_ok=True)
    letters = [*"abcdefghijklmnopqrstuvwxyz0123456789"]
    words = ["<unk>", *letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = CLIPTokenizerFast.from_pretrained(folder)
    tokenizer.save_pretrained(folder)
    small = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = small | {"vocab_size": len(words), "max_position_embeddings": 24, "eos_token_id": len(words) - 1}
    vision = small | {"image_size": 32, "patch_size": 8}
    torch.manual_seed(0)
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=12)).save_pretrained(folder)
    return folder


class _Layers(nn.Module):
    """(B, 3, 299, 299) in [-1, 1] -> 2048 features."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Conv2d(3, 1, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.adaptive_avg_pool2d(self.mix(x), (32, 64)).flatten(1)


class _Inception(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = _Layers()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)


def write_inception(folder: Path) -> Path:
    """A TorchScript file under the name and with the parts that clean-fid asks for."""
    file = folder / "inception-2015-12-05.pt"
    folder.mkdir(parents=True, exist_ok=True)
    torch.jit.script(_Inception()).save(str(file))
    return file
