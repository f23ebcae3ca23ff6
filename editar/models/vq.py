"""VQ tokenizer: pixels <-> codes. LlamaGen's architecture and parameter names.

Rules that look odd and are kept because released weights were trained with them (LlamaGen
tokenizer/tokenizer_image/vq_model.py): downsampling pads right and bottom by one zero; the decoder
has one more residual block per level than the encoder and walks its multipliers from last to first;
attention only at the lowest resolution; with l2 norm both latents and codebook rows are normalised
at every use, so stored rows need not be unit length; `quantize.codebook_used` is a 65,536-long
history that starts as zeros, so index 0 counts as used from the start.

`local_encoder` is ours (nano's tokenizer): no attention, channels normalised at each pixel instead of over the
picture, and 1 x 1 convolutions at the lowest resolution. A code then depends on its patch and the pixels near
it alone, so an edit leaves the codes elsewhere alone. The decoder still sees the whole picture.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from editar.config import TokenizerConfig

USAGE_HISTORY = 65536
ENTROPY_TEMPERATURE = 0.01


class QuantizerLosses(NamedTuple):
    """Scalars of a training step; `usage` is the share of the codebook seen in the history."""

    codebook: torch.Tensor
    commit: torch.Tensor
    entropy: torch.Tensor
    usage: float


class VQModel(nn.Module):
    def __init__(self, cfg: TokenizerConfig) -> None:
        super().__init__()
        self.cfg = cfg
        self.encoder = Encoder(cfg)
        self.decoder = Decoder(cfg)
        self.quantize = VectorQuantizer(cfg)
        self.quant_conv = nn.Conv2d(cfg.z_channels, cfg.codebook_dim, 1)
        self.post_quant_conv = nn.Conv2d(cfg.codebook_dim, cfg.z_channels, 1)

    def latents(self, images: torch.Tensor) -> torch.Tensor:
        """(B, 3, H, W) in [-1, 1] -> (B, codebook_dim, h, w) before quantisation."""
        return self.quant_conv(self.encoder(images))

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        """(B, 3, H, W) in [-1, 1] -> codes (B, h*w) int64, row by row."""
        codes = self.quantize.nearest(self.latents(images))  # (B, h, w)
        return codes.flatten(1)

    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        """Codes (B, h*w) of a square image -> (B, 3, H, W), not clamped."""
        side = int(codes.shape[1] ** 0.5)
        quantised = self.quantize.lookup(codes.view(-1, side, side))  # (B, C, h, w)
        return self.decode_latents(quantised)

    def decode_latents(self, quantised: torch.Tensor) -> torch.Tensor:
        return self.decoder(self.post_quant_conv(quantised))

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, QuantizerLosses, torch.Tensor]:
        """Training: images -> (reconstruction, losses, codes (B, h, w)); straight-through gradient."""
        quantised, losses, codes = self.quantize(self.latents(images))
        return self.decode_latents(quantised), losses, codes


class VectorQuantizer(nn.Module):
    codebook_used: torch.Tensor

    def __init__(self, cfg: TokenizerConfig) -> None:
        super().__init__()
        self.l2_norm = cfg.codebook_l2_norm
        self.beta = cfg.commit_loss_beta
        self.entropy_ratio = cfg.entropy_loss_ratio
        self.embedding = nn.Embedding(cfg.codebook_size, cfg.codebook_dim)
        nn.init.uniform_(self.embedding.weight, -1 / cfg.codebook_size, 1 / cfg.codebook_size)
        if self.l2_norm:
            self.embedding.weight.data = F.normalize(self.embedding.weight.data, dim=-1)
        self.register_buffer("codebook_used", torch.zeros(USAGE_HISTORY))

    def normalise(self, vectors: torch.Tensor) -> torch.Tensor:
        """Unit length along the last axis where the codebook is l2-normalised."""
        return F.normalize(vectors, dim=-1) if self.l2_norm else vectors

    def distances(self, latents: torch.Tensor) -> torch.Tensor:
        """Normalised latents (M, C) -> squared distances to every code (M, K)."""
        codebook = self.normalise(self.embedding.weight)
        return (
            latents.square().sum(1, keepdim=True)
            + codebook.square().sum(1)
            - 2 * torch.einsum("mc,kc->mk", latents, codebook)
        )

    def nearest(self, latents: torch.Tensor) -> torch.Tensor:
        """(B, C, h, w) -> codes (B, h, w) int64."""
        b, _, h, w = latents.shape
        flat = self.normalise(latents.permute(0, 2, 3, 1).reshape(b * h * w, -1))
        return self.distances(flat).argmin(1).view(b, h, w)

    def lookup(self, codes: torch.Tensor) -> torch.Tensor:
        """Codes (B, h, w) -> code vectors (B, C, h, w)."""
        codebook = self.normalise(self.embedding.weight)
        return codebook[codes].permute(0, 3, 1, 2).contiguous()

    def forward(self, latents: torch.Tensor) -> tuple[torch.Tensor, QuantizerLosses, torch.Tensor]:
        """(B, C, h, w) -> (quantised with straight-through gradient, losses, codes (B, h, w))."""
        b, c, h, w = latents.shape
        flat = self.normalise(latents.permute(0, 2, 3, 1).reshape(-1, c))  # (B*h*w, C)
        distances = self.distances(flat)
        codes = distances.argmin(1)
        chosen = self.normalise(self.embedding.weight)[codes]
        losses = QuantizerLosses(
            codebook=(chosen - flat.detach()).square().mean(),
            commit=self.beta * (chosen.detach() - flat).square().mean(),
            entropy=self.entropy_ratio * entropy_loss(-distances) if self.entropy_ratio else flat.new_zeros(()),
            usage=self._track_usage(codes),
        )
        quantised = flat + (chosen - flat).detach()
        return quantised.view(b, h, w, c).permute(0, 3, 1, 2), losses, codes.view(b, h, w)

    @torch.no_grad()
    def _track_usage(self, codes: torch.Tensor) -> float:
        recent = codes.flatten()[-USAGE_HISTORY:].to(self.codebook_used.dtype)
        self.codebook_used.copy_(torch.cat([self.codebook_used[recent.numel() :], recent]))
        return self.codebook_used.unique().numel() / self.embedding.num_embeddings


def entropy_loss(affinity: torch.Tensor) -> torch.Tensor:
    """Mean entropy of each row's softmax minus the entropy of the mean row (LlamaGen).

    affinity (M, K) = negative squared distances. The two 1e-5 stand where LlamaGen has them.
    """
    logits = affinity / ENTROPY_TEMPERATURE
    probs = logits.softmax(-1)
    mean_probs = probs.mean(0)
    mean_entropy = -(mean_probs * (mean_probs + 1e-5).log()).sum()
    sample_entropy = -(probs * (logits + 1e-5).log_softmax(-1)).sum(-1).mean()
    return sample_entropy - mean_entropy


class Encoder(nn.Module):
    def __init__(self, cfg: TokenizerConfig) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(3, cfg.ch, 3, padding=1)
        self.conv_blocks = nn.ModuleList()
        channels, last = cfg.ch, len(cfg.encoder_ch_mult) - 1
        for level, mult in enumerate(cfg.encoder_ch_mult):
            block = Level(channels, cfg.ch * mult, cfg.num_res_blocks, cfg, level == last, cfg.local_encoder)
            channels = cfg.ch * mult
            if level != last:
                block.downsample = Downsample(channels)
            self.conv_blocks.append(block)
        self.mid = _middle(channels, cfg, cfg.local_encoder)
        self.norm_out = _norm(channels, cfg, cfg.local_encoder)
        self.conv_out = _conv(channels, cfg.z_channels, 1 if cfg.local_encoder else 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv_in(x)  # (B, ch, H, W)
        for block in self.conv_blocks:
            x = block(x)
        for part in self.mid:
            x = part(x)  # (B, ch * mult, h, w)
        return self.conv_out(F.silu(self.norm_out(x)))  # (B, z, h, w)


class Decoder(nn.Module):
    def __init__(self, cfg: TokenizerConfig) -> None:
        super().__init__()
        mults = cfg.decoder_ch_mult
        channels = cfg.ch * mults[-1]
        self.conv_in = nn.Conv2d(cfg.z_channels, channels, 3, padding=1)
        self.mid = _middle(channels, cfg, False)
        self.conv_blocks = nn.ModuleList()
        for level in reversed(range(len(mults))):
            lowest = level == len(mults) - 1
            block = Level(channels, cfg.ch * mults[level], cfg.num_res_blocks + 1, cfg, lowest, False)
            channels = cfg.ch * mults[level]
            if level != 0:
                block.upsample = Upsample(channels)
            self.conv_blocks.append(block)
        self.norm_out = _norm(channels, cfg, False)
        self.conv_out = nn.Conv2d(channels, 3, 3, padding=1)

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        x = self.conv_in(z)  # (B, ch * mult, h, w)
        for part in self.mid:
            x = part(x)
        for block in self.conv_blocks:
            x = block(x)
        return self.conv_out(F.silu(self.norm_out(x)))  # (B, 3, H, W)


class Level(nn.Module):
    """The residual (and attention) blocks of one resolution and the step to the next."""

    downsample: Downsample | None
    upsample: Upsample | None

    def __init__(
        self, channels_in: int, channels: int, blocks: int, cfg: TokenizerConfig, lowest: bool, local: bool
    ) -> None:
        super().__init__()
        widths = [channels_in] + [channels] * (blocks - 1)
        kernel = 1 if local and lowest else 3
        self.res = nn.ModuleList(ResnetBlock(width, channels, cfg, local, kernel) for width in widths)
        self.attn = nn.ModuleList(AttnBlock(channels, cfg) for _ in range(blocks if lowest and not local else 0))
        self.downsample = self.upsample = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for i, block in enumerate(self.res):
            x = block(x)
            if len(self.attn) > 0:
                x = self.attn[i](x)
        for step in (self.downsample, self.upsample):
            x = x if step is None else step(x)
        return x


def _middle(channels: int, cfg: TokenizerConfig, local: bool) -> nn.ModuleList:
    kernel = 1 if local else 3
    first, second = (ResnetBlock(channels, channels, cfg, local, kernel) for _ in range(2))
    return nn.ModuleList([first, second] if local else [first, AttnBlock(channels, cfg), second])


def _conv(channels_in: int, channels: int, kernel: int) -> nn.Conv2d:
    return nn.Conv2d(channels_in, channels, kernel, padding=kernel // 2)


def _norm(channels: int, cfg: TokenizerConfig, local: bool) -> nn.Module:
    return PixelNorm(channels, eps=1e-6) if local else nn.GroupNorm(cfg.norm_groups, channels, eps=1e-6)


class PixelNorm(nn.LayerNorm):
    """Normalises the channels of each pixel on its own: (B, C, H, W) -> the same shape."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class ResnetBlock(nn.Module):
    def __init__(
        self, channels_in: int, channels: int, cfg: TokenizerConfig, local: bool = False, kernel: int = 3
    ) -> None:
        super().__init__()
        self.norm1 = _norm(channels_in, cfg, local)
        self.conv1 = _conv(channels_in, channels, kernel)
        self.norm2 = _norm(channels, cfg, local)
        self.dropout = nn.Dropout(cfg.dropout)
        self.conv2 = _conv(channels, channels, kernel)
        self.nin_shortcut = nn.Conv2d(channels_in, channels, 1) if channels_in != channels else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(self.dropout(F.silu(self.norm2(h))))
        return h + (x if self.nin_shortcut is None else self.nin_shortcut(x))


class AttnBlock(nn.Module):
    """Single-head self-attention over all pixels."""

    def __init__(self, channels: int, cfg: TokenizerConfig) -> None:
        super().__init__()
        self.norm = _norm(channels, cfg, False)
        self.q = nn.Conv2d(channels, channels, 1)
        self.k = nn.Conv2d(channels, channels, 1)
        self.v = nn.Conv2d(channels, channels, 1)
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        b, c, h, w = x.shape
        normed = self.norm(x)
        q, k, v = (conv(normed).flatten(2).transpose(1, 2) for conv in (self.q, self.k, self.v))  # (B, h*w, C)
        attended = F.scaled_dot_product_attention(q[:, None], k[:, None], v[:, None])[:, 0]
        return x + self.proj_out(attended.transpose(1, 2).reshape(b, c, h, w))


class Downsample(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))
