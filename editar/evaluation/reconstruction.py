"""What a tokenizer loses: pictures through it and back, compared with themselves."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from editar.config import PicturesConfig, TokenizerConfig, from_plain, read_yaml
from editar.data.pictures import Pictures
from editar.data.sample import BadRow
from editar.errors import CheckpointError, ConfigError, DataError
from editar.images import batch_to_tensor, resize_and_crop, save_image, to_uint8
from editar.metrics.fid import Inception, frechet_distance, statistics
from editar.metrics.pictures import Mapped
from editar.metrics.ssim import mse, psnr, ssim
from editar.models.vq import VQModel
from editar.runtime.log import say
from editar.weights.load import load_vq

BATCH = 16


def open_tokenizer(folder: Path) -> tuple[VQModel, int]:
    """The tokenizer of a run folder, a tokenizer's own or a GPT's, and its pictures' side. Raises CheckpointError."""
    if not (folder / "config.yaml").is_file():
        raise CheckpointError(f"{folder}: config.yaml not found; give the folder of a training")
    run = read_yaml(folder / "config.yaml")
    model = VQModel(from_plain(TokenizerConfig, run.get("tokenizer", {}), "tokenizer."))
    load_vq(model, folder)
    return model.eval().requires_grad_(False), int(run.get("image_size", 256))


@torch.no_grad()
def score_reconstructions(
    folder: Path,
    cfg: PicturesConfig,
    device: torch.device,
    rows: int | None = None,
    size: int | None = None,
    inception: str | None = None,
) -> dict[str, Any]:
    """Means over the first `rows` pictures, centre crops of `size` pixels (the training's): PSNR in dB, SSIM, the codes
    used and the entropy of their use in nats; with clean-fid's Inception file also rFID. Pictures that cannot be read
    are named and left out. Raises CheckpointError, DataError."""
    model, trained = open_tokenizer(folder)
    if size is not None and size % model.cfg.downsample:
        raise ConfigError(f"size={size} is not divisible by the tokenizer's downsampling {model.cfg.downsample}")
    network = None if inception is None else Inception(inception, device)  # before the work
    side, pictures, bad = size or trained, Pictures(cfg), 0
    model.to(device)
    count = min(len(pictures), rows or len(pictures))
    uses = torch.zeros(model.cfg.codebook_size, dtype=torch.long)
    scores: list[tuple[float, float]] = []
    with tempfile.TemporaryDirectory() as place:
        kept: list[int] = []
        for first in tqdm(range(0, count, BATCH), desc="pictures", unit="batch"):
            batch: dict[int, np.ndarray] = {}
            for index in range(first, min(first + BATCH, count)):
                try:
                    batch[index] = np.array(resize_and_crop(pictures[index], side))
                except BadRow as error:
                    bad += 1
                    say(f"warning: {pictures.name(index)} is left out: {error}")
            if not batch:
                continue
            codes = model.encode(batch_to_tensor(np.stack(list(batch.values()))).to(device))
            uses += torch.bincount(codes.flatten().cpu(), minlength=len(uses))
            made = to_uint8(model.decode(codes))
            a, b = (torch.from_numpy(np.stack(list(x))).permute(0, 3, 1, 2) / 255 for x in (batch.values(), made))
            scores += zip(psnr(mse(a, b)).tolist(), ssim(a, b).tolist(), strict=True)
            for index, image in zip(batch, made, strict=True):
                save_image(image, Path(place) / f"{index}.png")
            kept += batch
        if not kept:
            raise DataError(f"{cfg.path}: none of {count} pictures can be read")
        share = uses[uses > 0] / uses.sum()
        means = np.mean(scores, axis=0)
        found = {"pictures": len(kept), "unreadable": bad, "size": side, "psnr_db": means[0], "ssim": means[1]}
        found |= {"codes_used": len(share), "codes": len(uses), "code_entropy": float(-(share * share.log()).sum())}
        if network is not None:
            real = Mapped(lambda index: np.array(resize_and_crop(pictures[index], side)), kept)
            fake = Mapped(lambda index: np.asarray(Image.open(Path(place) / f"{index}.png").convert("RGB")), kept)
            both = [statistics(images, "", network, network.checksum, device) for images in (real, fake)]
            found["rfid"] = frechet_distance(*both)
    return found
