"""Encode a mixture's pictures once, so that training reads codes instead of pixels.

    python scripts/cache_codes.py experiment=editar_xl data.cache=caches/editar \\
        tokenizer.weights=checkpoints/vq_ds16_t2i.pt
    torchrun --nproc-per-node=8 scripts/cache_codes.py ...   (the same, the shards dealt to eight processes)

Takes every setting of `python -m editar.train`; train afterwards with the same data.cache. A killed run
goes on where it stopped.
"""

from __future__ import annotations

from editar.config import TrainConfig
from editar.data.encode import build_cache
from editar.data.sources import open_sources
from editar.errors import ConfigError
from editar.runtime.distributed import distributed
from editar.runtime.entry import run
from editar.runtime.log import say
from editar.training.encoders import build_teacher_of, build_tokenizer
from editar.weights.load import vq_checksum


def cache_codes(cfg: TrainConfig) -> None:
    if cfg.data.cache is None:
        raise ConfigError("data.cache is null; give the folder that the codes go to")
    with distributed(cfg.device) as ranks:
        tokenizer = build_tokenizer(cfg, ranks.device)
        needed = cfg.data.cache_features or cfg.data.cache_pictures == "exact"
        teacher = build_teacher_of(cfg, ranks.device) if needed else None
        checksum = vq_checksum(tokenizer.state_dict())
        for source in open_sources(cfg.data).values():
            build_cache(cfg, source, tokenizer, checksum, teacher, ranks)
        if ranks.is_main:
            say(f"codes of {', '.join(cfg.data.sources)} are in {cfg.data.cache}")


if __name__ == "__main__":
    run(TrainConfig, "train", cache_codes, program="scripts/cache_codes.py", defaults=("output_dir=runs/cache_codes",))
