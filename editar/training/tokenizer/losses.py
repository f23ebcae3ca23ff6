"""What a VQ tokenizer is trained on: pixels, edges, LPIPS and an optional PatchGAN (as LlamaGen)."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from editar.config import TokenizerTrainConfig
from editar.errors import ConfigError
from editar.runtime.files import load_state
from editar.weights.read import read_file


def edge_weights(images: torch.Tensor, strength: float) -> torch.Tensor:
    """(B, 3, H, W) -> weights (B, 1, H, W) with mean 1 per image, `1 + strength` times as large
    beside an edge as on flat ground. Small shapes are a few per cent of the pixels; this makes
    their outline count."""
    down = (images[..., 1:, :] - images[..., :-1, :]).abs().amax(1, keepdim=True)
    right = (images[..., :, 1:] - images[..., :, :-1]).abs().amax(1, keepdim=True)
    change = F.pad(down, (0, 0, 0, 1)) + F.pad(right, (0, 1, 0, 0))
    near = F.max_pool2d(change.clamp(max=1), 5, stride=1, padding=2)
    weights = 1 + strength * near
    return weights / weights.mean((2, 3), keepdim=True)


def reconstruction_loss(recon: torch.Tensor, images: torch.Tensor, cfg: TokenizerTrainConfig) -> torch.Tensor:
    """Weighted L1 + L2 over (B, 3, H, W) in [-1, 1]."""
    error = recon - images
    per_pixel = cfg.l1_weight * error.abs() + cfg.l2_weight * error.square()
    if cfg.edge_weight > 0:
        per_pixel = per_pixel * edge_weights(images, cfg.edge_weight)
    return per_pixel.mean()


def consistency_loss(
    latents: torch.Tensor,
    chosen: torch.Tensor,
    codes: torch.Tensor,
    unchanged: torch.Tensor,
    cfg: TokenizerTrainConfig,
) -> tuple[torch.Tensor, float]:
    """Pull source and target of an edit onto the same codes: what the edit leaves alone by
    `consistency_weight`, what it changes by `edit_consistency_weight`.

    latents, chosen (2P, h, w, C): normalised latents and their codebook rows of interleaved
    source, target, source, ...; codes (2P, h, w); unchanged (P, h, w) bool. Each side is drawn to
    the other's code. Returns the loss and the share of unchanged patches whose code is the same.
    Without the first pull, rounding gives equal patches different codes and there is nothing for the GPT to
    copy; the second, much weaker, makes an edit change few codes (docs/log.md).
    """
    goal = chosen.detach()
    error = (latents[0::2] - goal[1::2]).square().sum(-1) + (latents[1::2] - goal[0::2]).square().sum(-1)  # (P, h, w)
    loss = latents.new_zeros(())
    for weight, where in ((cfg.consistency_weight, unchanged), (cfg.edit_consistency_weight, ~unchanged)):
        if weight > 0 and where.any():
            loss = loss + weight * error[where].mean()
    same = (codes[0::2] == codes[1::2])[unchanged]
    return loss, same.float().mean().item() if same.numel() else 1.0


def build_lpips(weights: str) -> nn.Module:
    """LPIPS-VGG with the backbone from a local torchvision `vgg16-*.pth`; the heads come with lpips.
    Raises ConfigError without that file, CheckpointError for another one."""
    import lpips

    if not Path(weights).is_file():
        raise ConfigError(f"lpips_weights={weights}: no such file; give torchvision's vgg16-397923af.pth")
    state = read_file(Path(weights))
    network = lpips.LPIPS(net="vgg", pnet_rand=True, verbose=False)
    names = {key: f"features.{key.split('.', 1)[1]}" for key in network.net.state_dict()}  # ours: slice1.0.weight
    load_state(network.net, {key: state[name] for key, name in names.items() if name in state}, weights)
    return network.eval().requires_grad_(False)


class PatchDiscriminator(nn.Module):
    """PatchGAN with three strided levels (pix2pix, as in LlamaGen): (B, 3, H, W) -> patch logits."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(3, width, 4, 2, 1), nn.LeakyReLU(0.2)]
        for level in (1, 2, 3):
            before, after, stride = width * min(2 ** (level - 1), 8), width * min(2**level, 8), 2 if level < 3 else 1
            layers += [nn.Conv2d(before, after, 4, stride, 1, bias=False), nn.BatchNorm2d(after), nn.LeakyReLU(0.2)]
        layers.append(nn.Conv2d(width * 8, 1, 4, 1, 1))
        self.main = nn.Sequential(*layers)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.main(images)


def adaptive_weight(pixels: torch.Tensor, adversarial: torch.Tensor, last_layer: torch.Tensor) -> torch.Tensor:
    """How many times the adversarial loss counts so that both losses pull equally at `last_layer` (VQGAN, LlamaGen):
    the ratio of its gradients' norms, at most 1e4."""
    norms = [torch.autograd.grad(loss, last_layer, retain_graph=True)[0].norm() for loss in (pixels, adversarial)]
    return (norms[0] / (norms[1] + 1e-4)).clamp(0, 1e4).detach()


def hinge_discriminator_loss(real: torch.Tensor, fake: torch.Tensor) -> torch.Tensor:
    return 0.5 * (F.relu(1 - real).mean() + F.relu(1 + fake).mean())
