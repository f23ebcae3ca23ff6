"""What a tokenizer's training works with: networks, optimisers, pictures, where a checkpoint left them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader

from editar.config import TokenizerTrainConfig
from editar.data.loader import BadRows, DrawBatchSampler, ignore_stop_signals
from editar.data.nano.world import NanoWorld
from editar.data.pictures import PictureBatch, PictureStream, collate_pairs, collate_pictures
from editar.errors import ConfigError
from editar.models.vq import VQModel
from editar.runtime.distributed import Ranks
from editar.runtime.files import load_state
from editar.training.checkpoint import Checkpointer, NewestWeights, resume
from editar.training.ema import Ema
from editar.training.optim import make_optimizers
from editar.training.tokenizer.losses import PatchDiscriminator, build_lpips
from editar.weights.read import read_checkpoint
from editar.weights.run_checkpoint import latest_checkpoint, step_of

PREFIX = "tokenizer."
MEASURED = 64  # held-out pictures, of the nano world pairs


class Trainee(nn.Module):
    """All that a checkpoint holds: the tokenizer, its discriminator, and how often each code was used of late."""

    counts: torch.Tensor

    def __init__(self, cfg: TokenizerTrainConfig) -> None:
        super().__init__()
        self.tokenizer = VQModel(cfg.tokenizer)
        self.discriminator = PatchDiscriminator() if cfg.gan_weight > 0 else None
        self.register_buffer("counts", torch.zeros(cfg.tokenizer.codebook_size, dtype=torch.long))


def tokenizer_weights(state: Mapping[str, Any]) -> dict[str, Any]:
    return {name.removeprefix(PREFIX): value for name, value in state.items() if name.startswith(PREFIX)}


FILE = NewestWeights(select=tokenizer_weights)


@dataclass
class TokenizerRun:
    """What the loop works with."""

    cfg: TokenizerTrainConfig
    folder: Path
    ranks: Ranks
    trainee: Trainee
    optimizers: list[torch.optim.Optimizer]  # the tokenizer's
    adversary: torch.optim.Optimizer | None  # the discriminator's
    ema: Ema | None
    lpips: nn.Module | None
    pictures: PictureStream | None  # None: the nano world
    bad_pictures: BadRows
    checkpointer: Checkpointer
    start: int = 0  # steps done when this process began

    def begun(self, step: int) -> list[torch.optim.Optimizer]:
        """Those that have made a step by then: the others hold nothing to keep."""
        late = self.adversary is not None and step > self.cfg.gan_start
        return [*self.optimizers, *([self.adversary] if self.adversary is not None and late else [])]

    def feed(self) -> Iterator[PictureBatch]:
        """This process's share of the pictures of each step, from `start` on; the same for any number of workers."""
        cfg, ranks = self.cfg, self.ranks
        per_step = pairs_of(cfg) if self.pictures is None else cfg.batch_size
        share = per_step // ranks.size
        loader: DataLoader[Any] = DataLoader(
            self.pictures or NanoWorld("train", cfg.steps * per_step, cfg.data.seed),
            batch_sampler=DrawBatchSampler(self.start, cfg.steps, ranks.rank, ranks.size, per_step, share),
            collate_fn=collate_pairs if self.pictures is None else collate_pictures,
            num_workers=cfg.num_workers,
            worker_init_fn=ignore_stop_signals,
            generator=torch.Generator(),  # else every start of a loader would draw from the training's own RNG
        )
        return iter(loader)

    def heldout(self) -> torch.Tensor:
        """Pictures that are never trained on, (B, 3, S, S), on the device."""
        if self.pictures is not None:
            return self.pictures.heldout_batch(2 * MEASURED).to(self.ranks.device)
        return nano_pictures("heldout", MEASURED, self.cfg).to(self.ranks.device)

    def many_pictures(self, count: int) -> Iterator[torch.Tensor]:
        """Training pictures, at least `count`, in batches: the same on every process."""
        if self.pictures is None:
            yield nano_pictures("train", -(-count // 2), self.cfg)
            return
        for first in range(0, count, 32):
            yield collate_pictures([self.pictures[draw] for draw in range(first, min(first + 32, count))]).images


def pairs_of(cfg: TokenizerTrainConfig) -> int:
    return max(1, cfg.batch_size // 2)


def nano_pictures(split: str, pairs: int, cfg: TokenizerTrainConfig) -> torch.Tensor:
    world = NanoWorld(split, pairs, cfg.data.seed)
    return collate_pairs([world[i] for i in range(pairs)]).images


def build_tokenizer_run(cfg: TokenizerTrainConfig, ranks: Ranks, folder: Path) -> TokenizerRun:
    """Raises ConfigError, DataError, CheckpointError."""
    pictures = None if cfg.data.path is None else PictureStream(cfg.data, cfg.image_size, cfg.seed)
    if (per_step := pairs_of(cfg) if pictures is None else cfg.batch_size) % ranks.size:
        what = "pairs of pictures" if pictures is None else "pictures"
        raise ConfigError(
            f"batch_size={cfg.batch_size} makes {per_step} {what} a step, not divisible by {ranks.size} processes"
        )
    torch.manual_seed(cfg.seed)
    trainee, device = Trainee(cfg), ranks.device
    if (cfg.tokenizer.weights is not None and latest_checkpoint(folder) is None) or cfg.freeze_codes:
        _start_from(trainee.tokenizer, cfg)
    if cfg.freeze_codes:
        for part in (trainee.tokenizer.encoder, trainee.tokenizer.quant_conv, trainee.tokenizer.quantize):
            part.requires_grad_(False)
    trainee.to(device)
    trainee.tokenizer.to(memory_format=torch.channels_last)
    adversary = None
    if trainee.discriminator is not None:
        betas = (cfg.optim.beta1, cfg.optim.beta2)
        adversary = torch.optim.AdamW(trainee.discriminator.parameters(), lr=cfg.optim.lr, betas=betas)
    run = TokenizerRun(
        cfg=cfg,
        folder=folder,
        ranks=ranks,
        trainee=trainee,
        optimizers=make_optimizers(trainee.tokenizer, cfg.optim),
        adversary=adversary,
        ema=Ema(trainee, cfg.optim.ema_decay) if cfg.optim.ema_decay else None,
        lpips=build_lpips(str(cfg.lpips_weights)).to(device) if cfg.lpips_weight > 0 else None,
        pictures=pictures,
        bad_pictures=BadRows(cfg.data.max_bad_share),
        checkpointer=Checkpointer(folder, ranks, cfg.keep_checkpoints, 0, False, FILE),
    )
    newest = latest_checkpoint(folder)
    run.start = resume(folder, trainee, run.begun(step_of(newest) if newest else 0), run.ema, ranks, FILE)
    return run


def _start_from(model: VQModel, cfg: TokenizerTrainConfig) -> None:
    """Weights of an earlier tokenizer; the codebook too, unless k-means is going to replace it."""
    state, _ = read_checkpoint(str(cfg.tokenizer.weights))
    state["quantize.codebook_used"] = model.quantize.codebook_used  # a statistic of one training; files may lack it
    if cfg.kmeans_at >= 0:
        state["quantize.embedding.weight"] = model.quantize.embedding.weight.detach()
    load_state(model, state, str(cfg.tokenizer.weights))
