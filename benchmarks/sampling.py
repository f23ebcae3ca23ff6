#!/usr/bin/env python
"""The sampling engine beside a plain eager loop written the standard way, in one process.

    python benchmarks/sampling.py --json benchmarks/results/sampling_cpu.json   # CPU: GPT-B, 256 px, float32
    python benchmarks/sampling.py --dtype bf16 --batches 1 8
    python benchmarks/sampling.py --device cuda --gpt xl --size 512 --dtype bf16 --plain-tokens 64 \
        --engines eager compiled captured --windows 1 4 16 32                # benchmarks/gpu.py runs this
    python benchmarks/sampling.py --checkpoint reference/nano --batches 1 8 32 --images 32   # trained weights

Without --checkpoint weights and prefixes are random (guidance 3, greedy): a guess is right by chance alone there, so
the automatic window can gain little and should lose nothing. With it, held-out nano edits are sampled with the
checkpoint's settings. In float32 all must write the same codes; in bfloat16 the share that agrees is reported. The
plain loop is LlamaGen's: both branches in full, a cache of full length under a full mask, keys copied by
`repeat_interleave`, logits of the whole prefix, Python per token. Its cost per token does not depend on the position,
so `--plain-tokens` may cut it short; the engine always writes whole images. The last of `--engines` runs every window,
the others the first alone. Times are wall times (or see `--cpu-time`), sums over the images; on a CPU the plain loop
and the engines take turns, on a GPU each has the memory for itself.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from editar.config import SamplingConfig, TrainConfig, from_plain, plain_training, read_yaml
from editar.data.nano.world import NanoWorld
from editar.models.gpt import GPT, Attention
from editar.models.rope import apply_rope, rope_table
from editar.models.text import TextEncoder
from editar.models.vq import VQModel
from editar.runtime.device import pick_device
from editar.runtime.files import provenance, write_json
from editar.sampling.decode import SampleSeeds, choose, guide, uniform_numbers
from editar.sampling.engine import Engine
from editar.sampling.pipeline import EditPipeline
from editar.sampling.stats import Clock, GenerationStats, copy_bandwidth
from editar.weights.load import load_gpt, load_vq

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
ENGINES: dict[str, dict[str, Any]] = {
    "default": {"compile": None},
    "eager": {"compile": False},
    "compiled": {"compile": True, "capture": False},
    "captured": {"compile": True},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", help="a run folder of the nano world; else random weights")
    parser.add_argument("--gpt", default="b", help="random weights: a size in configs/gpt")
    parser.add_argument("--size", type=int, default=256, help="random weights: pixels")
    parser.add_argument("--dtype", choices=DTYPES, default="fp32")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 4, 8, 16])
    parser.add_argument("--images", type=int, default=1, help="how many, at least; whole batches are taken")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--plain-tokens", type=int, default=10**9)
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=["default"], help="how passes are run")
    parser.add_argument("--windows", nargs="+", default=["1", "auto"], help="codes read in a pass")
    parser.add_argument("--int8", action="store_true", help="the engine's 8-bit weights (CPU)")
    parser.add_argument("--cpu-time", action="store_true", help="CPU instead of wall seconds: one thread, busy machine")
    parser.add_argument("--json", help="where to write the figures")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    device, dtype = pick_device(options.device), DTYPES[options.dtype]
    bandwidth = copy_bandwidth(device)
    name = options.checkpoint or f"GPT-{options.gpt.upper()} with random weights, {options.size} px"
    print(f"{name}, {options.dtype}, {device}, {options.threads} threads, copy bandwidth {bandwidth:.1f} GB/s")
    rows = []
    for batch in options.batches:
        count = -(-options.images // batch) * batch
        if options.checkpoint:
            edits = heldout_edits(options.checkpoint, count, device, options.dtype)
        else:
            edits = random_edits(options.gpt, options.size, count, device, dtype)
        rows.append(measure(edits, batch, options, bandwidth))
        print(*lines(rows[-1]), sep="\n", flush=True)
        if options.json:
            settings = {key: value for key, value in vars(options).items() if key != "json"}
            write_json(
                options.json, {"made_by": provenance(), "settings": settings, "copy_gb_per_s": bandwidth, "rows": rows}
            )
    agreements = [engine["agreement"] for row in rows for engine in row["engine"].values()]
    if options.dtype == "fp32" and not options.int8 and min(agreements) < 1:
        raise SystemExit("the loops wrote different codes")


@dataclass
class Edits:
    """Source codes (I, N), text (I, L, C), how to sample and whether a guess can be right."""

    model: GPT
    source: torch.Tensor
    text: torch.Tensor
    settings: SamplingConfig
    trained: bool

    def batch(self, start: int, size: int) -> tuple[torch.Tensor, torch.Tensor, SampleSeeds]:
        part = slice(start, start + size)
        return self.source[part], self.text[part], SampleSeeds(0, [str(i) for i in range(start, start + size)])


def random_edits(size: str, pixels: int, count: int, device: torch.device, dtype: torch.dtype) -> Edits:
    """The official architecture and layout, evaluation mode."""
    sections = {"gpt": size, "rope": "editar", "tokenizer": "vq16", "text": "flan_t5_xl", "teacher": "none"}
    torch.manual_seed(0)
    model = GPT(plain_training(sections, image_size=pixels).gpt)
    torch.nn.init.normal_(model.output.weight, std=0.02)
    model.eval().requires_grad_(False).to(device, dtype)
    source = torch.randint(model.cfg.vocab_size, (count, model.cfg.image_tokens)).to(device)
    text = torch.randn(count, model.cfg.text_tokens, model.cfg.text_dim).to(device, dtype)
    return Edits(model, source, text, SamplingConfig(cfg_scale=3.0, top_k=1000, greedy=True), False)


def heldout_edits(checkpoint: str, count: int, device: torch.device, dtype: str) -> Edits:
    """Without `EditPipeline.from_pretrained`, which needs OmegaConf."""
    cfg = from_plain(TrainConfig, read_yaml(Path(checkpoint) / "config.yaml"))
    gpt, tokenizer = GPT(cfg.gpt), VQModel(cfg.tokenizer)
    load_gpt(gpt, checkpoint, strict=True)
    load_vq(tokenizer, checkpoint)
    for module in (gpt, tokenizer):
        module.to(device).eval().requires_grad_(False)
    pipeline = EditPipeline(cfg, gpt.to(dtype=DTYPES[dtype]), tokenizer, TextEncoder(cfg.text, device))
    world = NanoWorld("heldout", count)
    samples = [world[i] for i in range(count)]
    source = pipeline.encode(np.stack([sample.source for sample in samples]))
    text = pipeline.text([sample.instruction for sample in samples]).to(pipeline.gpt.output.weight.dtype)
    return Edits(pipeline.gpt, source, text, pipeline.cfg.sampling, True)


def measure(edits: Edits, batch: int, options: argparse.Namespace, bandwidth: float) -> dict[str, Any]:
    """The plain loop and every engine on all edits, `batch` at once; `bandwidth` of the machine in GB/s."""
    timer = time.process_time if options.cpu_time else time.perf_counter
    length, count, cuda = edits.model.cfg.image_tokens, len(edits.source), edits.source.is_cuda
    tokens = min(options.plain_tokens, length)
    systems = [(name, options.windows[0]) for name in options.engines[:-1]]
    systems += [(options.engines[-1], window) for window in options.windows]
    stats, agreement = dict.fromkeys(systems, GenerationStats()), dict.fromkeys(systems, 0.0)
    prefill, steps, plain = 0.0, 0.0, {}
    for turn in [[system] for system in systems] if cuda else [systems]:
        engines = {}
        for system in turn:
            window = int(system[1]) if system[1].isdigit() else system[1]
            engine = Engine(edits.model, int8=options.int8, **ENGINES[system[0]])
            engine.timer, engines[system] = timer, (engine, replace(edits.settings, window=window))
            engine.generate(*edits.batch(0, batch)[:2], engines[system][1], edits.batch(0, batch)[2])  # prepares
        for start in range(0, count, batch):
            source, text, seeds = edits.batch(start, batch)
            if start not in plain:
                uniform = uniform_numbers(edits.settings, seeds, source)
                plain[start], took = plain_generate(edits.model, source, text, edits.settings, uniform, tokens, timer)
                prefill, steps = prefill + took[0], steps + took[1] * (length - 1) / (tokens - 1)
            for system, (engine, settings) in engines.items():
                codes = engine.generate(source, text, settings, edits.batch(start, batch)[2])
                stats[system] = stats[system] + engine.stats
                agreement[system] += float((plain[start] == codes[:, :tokens]).float().mean()) * batch / count
        for engine, _ in engines.values():
            engine.release()
        if cuda:
            torch.cuda.empty_cache()
    return {
        "batch": batch,
        "images": count,
        "trained": edits.trained,
        "plain": {
            "images_per_s": count / (prefill + steps),
            "prefill_s": prefill,
            "decode_s": steps,
            "tokens": tokens,
            "ms_per_token": 1000 * steps / (length - 1) * batch / count,
        },
        "engine": {
            window if name == "default" else f"{name} {window}": {
                "images_per_s": total.images_per_s,
                "prefill_s": total.prefill_s,
                "decode_s": total.decode_s,
                "ms_per_pass": total.ms_per_pass,
                "passes_per_image": total.passes_per_image,
                "codes_per_pass": total.codes_per_pass,
                "gb_per_s": total.gb_per_s,
                "of_copy": total.gb_per_s / bandwidth,
                "over_plain": total.images_per_s * (prefill + steps) / count,
                "over_first_window": total.images_per_s / stats[name, options.windows[0]].images_per_s,
                "agreement": round(agreement[name, window], 6),
            }
            for (name, window), total in stats.items()
        },
    }


def lines(row: dict[str, Any]) -> list[str]:
    told = [f"batch {row['batch']:3d}  plain loop    {row['plain']['images_per_s']:8.3f} images/s"]
    for window, engine in row["engine"].items():
        told.append(
            f"           window {window:>5}  "
            "{images_per_s:8.3f} images/s  {over_plain:5.2f}x plain  "
            "{over_first_window:5.2f}x first window  {passes_per_image:6.1f} passes of {ms_per_pass:.2f} ms  "
            "{codes_per_pass:.2f} codes a pass  {gb_per_s:.0f} GB/s  same codes {agreement:.4f}".format(**engine)
        )
    if not row["trained"]:
        told.append(
            "           random weights: guesses are right by chance alone; a trained checkpoint shows what windows gain"
        )
    return told


# --- the plain loop -------------------------------------------------------------------------------


@torch.no_grad()
def plain_generate(
    model: GPT,
    source: torch.Tensor,
    text: torch.Tensor,
    settings: SamplingConfig,
    uniform: torch.Tensor | None,
    tokens: int,
    timer: Callable[[], float],
) -> tuple[torch.Tensor, tuple[float, float]]:
    """Codes (B, tokens) and the seconds of prefill and of the other tokens; uniform (N, B), None for greedy."""
    loop = PlainLoop(model, 2 * len(source))
    clock = Clock(source.device, timer)
    drop = torch.arange(2 * len(source), device=source.device) >= len(source)
    image = model.tok_embeddings(torch.cat([source, source]))
    caption = model.cls_embedding(torch.cat([text, text]), drop)
    position = torch.arange(model.cfg.prefix_tokens, device=source.device)
    codes = [loop.choose(loop.logits(torch.cat([image, caption], dim=1), position), settings, uniform, 0)]
    prefill = clock.lap()
    position = position[-1:] + 1
    for index in range(1, tokens):
        newest = torch.cat([codes[-1], codes[-1]])
        codes.append(loop.choose(loop.logits(model.tok_embeddings(newest), position), settings, uniform, index))
        position += 1
    return torch.cat(codes, dim=1), (prefill, clock.lap())


class PlainLoop:
    """Transformer and sampler as LlamaGen's generate.py and gpt.py run them."""

    def __init__(self, model: GPT, rows: int) -> None:
        cfg, weight = model.cfg, model.output.weight
        self.model, self.rows = model, rows
        shape = (cfg.n_layer, 2, rows, cfg.n_kv_head or cfg.n_head, cfg.sequence_tokens, cfg.head_dim)
        self.cache = torch.zeros(shape, device=weight.device, dtype=weight.dtype)
        causal = torch.ones(cfg.sequence_tokens, cfg.sequence_tokens, dtype=torch.bool, device=weight.device).tril()
        self.mask = causal.expand(rows, -1, -1).clone()
        self.rope = rope_table(cfg).to(weight.device)
        self.learned = model.pos_embeddings(0, cfg.sequence_tokens) if cfg.rope.learned else None

    def logits(self, x: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
        """x (rows, s, D) at position (s,) -> (rows, s, V) float32."""
        mask, rope = self.mask[: self.rows, None, position], self.rope[position]
        x = x if self.learned is None else x + self.learned[position]
        layers: Any = self.model.layers
        for index, layer in enumerate(layers):
            x = x + self.attention(layer.attention, layer.attention_norm(x), mask, rope, position, index)
            x = x + layer.feed_forward(layer.ffn_norm(x))
        return self.model.output(self.model.norm(x)).float()

    def attention(
        self,
        part: Attention,
        x: torch.Tensor,
        mask: torch.Tensor,
        rope: torch.Tensor,
        position: torch.Tensor,
        index: int,
    ) -> torch.Tensor:
        b, s, d = x.shape
        width = part.kv_heads * part.head_dim
        q, k, v = part.wqkv(x).split([d, width, width], dim=-1)
        q = apply_rope(q.view(b, s, part.heads, -1), rope).transpose(1, 2)
        k = apply_rope(k.view(b, s, part.kv_heads, -1), rope).transpose(1, 2)
        keys, values = self.cache[index]
        keys[:, :, position] = k
        values[:, :, position] = v.view(b, s, part.kv_heads, -1).transpose(1, 2)
        keys, values = (t.repeat_interleave(part.heads // part.kv_heads, dim=1) for t in (keys, values))
        out = F.scaled_dot_product_attention(q, keys, values, attn_mask=mask)
        return part.wo(out.transpose(1, 2).reshape(b, s, d))

    def choose(
        self, logits: torch.Tensor, settings: SamplingConfig, uniform: torch.Tensor | None, index: int
    ) -> torch.Tensor:
        """Guidance, temperature, filters and draw of code `index`: (rows, s, V) -> (rows / 2, 1)."""
        cond, uncond = logits[:, -1].chunk(2)
        numbers = None if uniform is None else uniform[index]
        return choose(guide(cond, uncond, settings.cfg_scale), settings, numbers)[:, None]


if __name__ == "__main__":
    main()
