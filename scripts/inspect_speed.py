"""How much parallel decoding will gain with a checkpoint, on a data set and on this machine.

    python scripts/inspect_speed.py checkpoint=reference/nano
    python scripts/inspect_speed.py checkpoint=checkpoints/editar-xl --samples 8 experiment=editar_xl \\
        data.sources.pipe.path=data/pipe ...

Nothing is edited. Held-out pairs of the data set are read once with their target codes given (teacher forcing), and
every position gets a uniform number with which the model would draw just that target code. The engine then
runs with these numbers at each window: it writes the targets, and its passes and seconds are counted.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from omegaconf import OmegaConf

from editar.config import SamplingConfig, TrainConfig
from editar.data.loader import HeldoutRows, Item, Reader
from editar.data.sources import open_sources
from editar.errors import ConfigError
from editar.models.gpt import GPT
from editar.runtime.entry import at_least, load_config, script
from editar.runtime.log import echo
from editar.sampling.decode import SampleSeeds, guidance_scales, guide, probabilities
from editar.sampling.pipeline import EditPipeline
from editar.sampling.stats import GenerationStats


@script("inspect_speed")
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("settings", nargs="+", metavar="KEY=VALUE", help="checkpoint=FOLDER, sampling.*, data of train")
    parser.add_argument("--samples", type=at_least(1), default=16, help="held-out pairs")
    parser.add_argument("--batch", type=at_least(1), default=1, help="pairs decoded at once")
    parser.add_argument("--windows", nargs="+", type=window, default=[1, 8, 16, 32, 64, "auto"])
    options = parser.parse_args()
    checkpoint = [setting for setting in options.settings if setting.startswith("checkpoint=")]
    sampling = [setting for setting in options.settings if setting.startswith("sampling.")]
    others = [setting for setting in options.settings if setting not in (*checkpoint, *sampling)]
    if len(checkpoint) != 1:
        raise ConfigError("give one checkpoint=FOLDER")
    given: Any = OmegaConf.to_container(OmegaConf.from_dotlist(sampling))
    changes = given.get("sampling", {})
    pipeline = EditPipeline.from_pretrained(checkpoint[0].removeprefix("checkpoint="), sampling=changes)
    if pipeline.cfg.sampling.greedy:
        raise ConfigError(
            "sampling.greedy=true draws nothing; give sampling.greedy=false and a low sampling.temperature"
        )
    data = load_config(TrainConfig, "train", ["output_dir=outputs/inspect_speed", *others]).data
    readers = [Reader(source, None, pipeline.cfg.image_size) for source in open_sources(data).values()]
    rows = HeldoutRows(readers)
    items = [item for _, item in rows.__getitems__(list(range(min(options.samples, len(rows)))))]
    pairs = [conditioned(pipeline, part) for part in parts(items, options.batch)]
    same = torch.cat([(pair.source == pair.target).flatten() for pair in pairs]).float().mean()
    out_of_reach = torch.cat([(pair.known >= 0).flatten() for pair in pairs]).float().mean()
    echo(f"{len(items)} held-out pairs; {100 * same:.1f} % of the target codes equal the source's")
    echo(f"{100 * out_of_reach:.1f} % of the target codes cannot be drawn with these settings and count as known")
    echo(f"{'window':>8} {'passes an image':>16} {'codes a pass':>13} {'images/s':>9} {'speed-up':>9}")
    first: GenerationStats | None = None
    for codes in options.windows:
        stats = run(pipeline, pairs, codes)
        first = first or stats
        echo(
            f"{codes:>8} {stats.passes_per_image:16.1f} {stats.codes_per_pass:13.2f} {stats.images_per_s:9.3f} "
            f"{stats.images_per_s / first.images_per_s:9.2f}"
        )


def window(text: str) -> int | str:
    return text if text == "auto" else at_least(1)(text)


def parts(items: list[Item], size: int) -> Iterator[list[Item]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]


class Pair(SampleSeeds):
    """A batch of pairs as codes (B, N), with the uniform numbers (N, B) that make the model draw the target codes;
    `known` (B, N) holds target codes that the filters exclude, -1 elsewhere."""

    def __init__(self, source: torch.Tensor, text: torch.Tensor, target: torch.Tensor) -> None:
        super().__init__(0, [])
        self.source, self.text, self.target = source, text, target
        self.numbers, self.known = torch.empty(0), torch.empty(0)

    def uniform(self, length: int) -> torch.Tensor:
        return self.numbers


@torch.no_grad()
def conditioned(pipeline: EditPipeline, items: list[Item]) -> Pair:
    source = pipeline.encode(np.concatenate([item.source for item in items])).view(len(items), -1)
    target = pipeline.encode(np.stack([item.target for item in items]))
    text = pipeline.text([item.instruction for item in items]).to(pipeline.gpt.output.weight.dtype)
    pair = Pair(source, text, target)
    probs = teacher_forced(pipeline.gpt, pair, pipeline.cfg.sampling).double()
    cumulative = probs.cumsum(-1)
    chance, high = (x.gather(-1, target[..., None])[..., 0] for x in (probs, cumulative))  # (B, N)
    place = torch.rand(target.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).to(high)
    pair.numbers = ((high - chance * place) / cumulative[..., -1]).T
    pair.known = torch.where(chance > 0, -1, target)
    return pair


def teacher_forced(gpt: GPT, pair: Pair, cfg: SamplingConfig) -> torch.Tensor:
    """What each target code is drawn from when all before it are the pair's, (B, N, V) float32."""
    logits = gpt.output(gpt.hidden(pair.source, pair.text, pair.target)).float()
    if cfg.cfg_scale > 1:
        drop = torch.ones(len(logits), dtype=torch.bool, device=logits.device)
        without = gpt.output(gpt.hidden(pair.source, pair.text, pair.target, drop_text=drop)).float()
        logits = guide(logits, without, guidance_scales(cfg, logits.shape[1]).to(logits.device)[:, None])
    return probabilities(logits.flatten(0, 1), cfg).view(logits.shape)


def run(pipeline: EditPipeline, pairs: list[Pair], window: int | str) -> GenerationStats:
    """Decode every pair; the first one more, before, to prepare what the engine keeps."""
    cfg, total, left = replace(pipeline.cfg.sampling, window=window), GenerationStats(), 0
    decode(pipeline, pairs[0], cfg)
    for pair in pairs:
        left += int((decode(pipeline, pair, cfg) != pair.target).any(1).sum())
        total = total + pipeline.engine.stats
    if left:
        echo(f"window {window}: {left} images left their targets, where rounding moved a draw over a boundary")
    return total


def decode(pipeline: EditPipeline, pair: Pair, cfg: SamplingConfig) -> torch.Tensor:
    return pipeline.engine.generate(pair.source, pair.text, cfg, pair, known_codes=pair.known)


if __name__ == "__main__":
    main()
