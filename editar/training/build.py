"""Everything a training step needs, put together from the config."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import nn

from editar.config import TrainConfig
from editar.data.encode import build_cache, open_cache
from editar.data.folder import FolderTable
from editar.data.loader import BadRows, HeldoutRows, Reader, TrainStream
from editar.data.sources import mixture_of, open_sources
from editar.errors import CheckpointError, ConfigError
from editar.models.gpt import GPT
from editar.models.vq import VQModel
from editar.runtime.distributed import Ranks
from editar.runtime.files import some, weights_step
from editar.runtime.log import say
from editar.training.checkpoint import Checkpointer, NewestWeights, resume
from editar.training.ema import Ema
from editar.training.encoders import Encoders
from editar.training.losses import Objective
from editar.training.optim import make_optimizers
from editar.training.parallel import micro_batch, parallelise
from editar.training.planning.dry_run import check_disk
from editar.weights.adapter import ADAPTER_FILES, FILES, adapt, adapter_weights, base_of, check_base
from editar.weights.load import SETTINGS, TOKENIZER, load_gpt, load_vq, model_settings, vq_checksum
from editar.weights.run_checkpoint import latest_checkpoint


@dataclass
class Run:
    """What the loop works with; `wrapped` is the objective as DDP or FSDP wraps it."""

    cfg: TrainConfig
    folder: Path
    ranks: Ranks
    micro_batch: int
    gpt: GPT
    wrapped: nn.Module
    encoders: Encoders
    optimizers: list[torch.optim.Optimizer]
    ema: Ema | None
    train_rows: TrainStream
    heldout_rows: HeldoutRows
    bad_rows: BadRows
    checkpointer: Checkpointer
    skipped: list[int] = field(default_factory=list)  # steps left out as not finite
    start: int = 0  # steps done when this process began
    waited_s: float = 0.0  # for data, since this process began

    def autocast(self) -> AbstractContextManager[object]:
        return torch.autocast(self.ranks.device.type, torch.bfloat16, enabled=self.cfg.precision == "bf16")


def build_run(cfg: TrainConfig, ranks: Ranks, folder: Path) -> Run:
    """Frozen encoders, model, optimisers, where the folder's newest checkpoint left them, and data; what takes long
    (encoding the data) comes last. Raises ConfigError, DataError, CheckpointError."""
    at_once, newest = micro_batch(cfg, ranks.size), latest_checkpoint(folder)
    if newest is not None and cfg.resume == "never":
        raise ConfigError(f"{folder} already holds {newest.name} and resume=never; choose another output_dir")
    if newest is None:
        check_no_weights(folder, cfg.save_every)
    encoders = Encoders.build(cfg, ranks.device)
    if ranks.is_main:
        check_disk(cfg)
    torch.manual_seed(cfg.seed)  # here, so that ranks agree, also on the null tables, which DDP does not send
    tokenizer = vq_checksum(encoders.tokenizer.state_dict())
    gpt, file = GPT(cfg.gpt), NewestWeights(header={TOKENIZER: tokenizer, SETTINGS: model_settings(cfg)})
    if cfg.lora.rank:
        file = start_adapter(cfg, gpt, encoders.tokenizer, folder, ranks)
    elif cfg.init_from is not None and newest is None:
        report = load_gpt(gpt, cfg.init_from)
        if ranks.is_main:
            say(str(report))
    gpt.to(ranks.device)
    if ranks.is_main:
        counts = [sum(p.numel() for p in gpt.parameters() if p.requires_grad or whole) / 1e6 for whole in (True, False)]
        trained = f", {counts[1]:.2f} M of them trained," if cfg.lora.rank else ""
        parts = f"{ranks.size} x {at_once} samples at once, {cfg.global_batch // ranks.size // at_once} times"
        place = f"{ranks.size} x {ranks.device}"
        say(f"GPT: {counts[0]:.2f} M parameters{trained} on {place}; {cfg.steps} steps of {parts}")
    wrapped = parallelise(Objective(gpt, cfg.loss), cfg, ranks)
    optimizers = make_optimizers(gpt, cfg.optim)
    ema = Ema(gpt, cfg.optim.ema_decay) if cfg.optim.ema_decay else None
    start = resume(folder, gpt, optimizers, ema, ranks, file)
    train_rows, heldout_rows = open_data(cfg, ranks, encoders, tokenizer)
    return Run(
        cfg=cfg,
        folder=folder,
        ranks=ranks,
        micro_batch=at_once,
        gpt=gpt,
        wrapped=wrapped,
        encoders=encoders,
        optimizers=optimizers,
        ema=ema,
        train_rows=train_rows,
        heldout_rows=heldout_rows,
        bad_rows=BadRows(cfg.data.max_bad_share),
        checkpointer=Checkpointer(folder, ranks, cfg.keep_checkpoints, cfg.keep_every, cfg.async_checkpoints, file),
        start=start,
    )


def check_no_weights(folder: Path, save_every: int) -> None:
    """Raises ConfigError for a folder with weights of a training that it does not hold, which a new one would
    replace. One that was killed within its first checkpoint has weights too, and a folder for checkpoints."""
    begun = (folder / "checkpoints").is_dir()
    for name in (FILES[1], ADAPTER_FILES[1]):
        if not (folder / name).exists() or (begun and (weights_step(folder / name) or 0) <= save_every):
            continue
        raise ConfigError(
            f"{folder} holds {name}, but no checkpoint to go on from, and a new training would replace it; choose "
            f"another output_dir, with init_from={folder} to begin with these weights"
        )


def start_adapter(cfg: TrainConfig, gpt: GPT, tokenizer: VQModel, folder: Path, ranks: Ranks) -> NewestWeights:
    """The frozen base into `gpt`, and an adapter into its layers -> where that is written. Raises CheckpointError
    for a base that is not complete, or not the one that the run in `folder` began with."""
    report = load_gpt(gpt, str(cfg.init_from))
    if report.kept:
        raise CheckpointError(
            f"init_from={cfg.init_from}: lacks {some(report.kept, 3)}, which no adapter replaces; train the GPT "
            "itself first" + (", or set teacher=none" if "alignment.weight" in report.kept else "")
        )
    if report.added_images:
        raise ConfigError(
            f"init_from={cfg.init_from}: trained with {cfg.gpt.images - report.added_images} source image(s), found "
            f"data.images={cfg.gpt.images}, and no adapter replaces a position; train the GPT itself first"
        )
    base = base_of(gpt, tokenizer)
    beside = Path(str(cfg.init_from)) / "tokenizer.safetensors"
    if beside.is_file():
        load_vq(own := VQModel(cfg.tokenizer), beside)
        if vq_checksum(own.state_dict()) != base["tokenizer"]:
            raise ConfigError(
                f"tokenizer.weights={cfg.tokenizer.weights} is not the tokenizer of init_from={cfg.init_from}, with "
                f"which the adapter will be used; give tokenizer.weights={cfg.init_from}"
            )
    if (folder / ADAPTER_FILES[1]).is_file():
        check_base(folder, base)
    adapt(gpt, cfg.lora)
    if ranks.is_main:
        say(str(report))
    return NewestWeights(ADAPTER_FILES[1], adapter_weights, base)


def open_data(cfg: TrainConfig, ranks: Ranks, encoders: Encoders, checksum: str) -> tuple[TrainStream, HeldoutRows]:
    """Sources, their codes when the config names a cache, and the mixture of them; `checksum`: the tokenizer's."""
    sources = open_sources(cfg.data)
    prepare = encoders.teacher.prepare if encoders.teacher else None
    readers = []
    for source in sources.values():
        if cfg.data.build_cache:
            build_cache(cfg, source, encoders.tokenizer, checksum, encoders.teacher, ranks)
        cache = open_cache(cfg, source, checksum) if cfg.data.cache is not None else None
        readers.append(Reader(source, cache, cfg.image_size, prepare, cfg.data.images))
        if isinstance(source.table, FolderTable) and ranks.is_main:
            encoders.text.name_unknown(source.table.instructions(), f"data.sources.{source.name}: ")
    mixture = mixture_of(sources, cfg.seed)
    if ranks.is_main:
        parts = [(name, share, sources[name]) for name, share in mixture.shares.items()]
        shares = (f"{name} {100 * share:.1f} % ({len(s)} rows, {s.heldout} more held out)" for name, share, s in parts)
        say(f"data: {', '.join(shares)}")
    return TrainStream(readers, mixture, cfg.seed), HeldoutRows(readers)
