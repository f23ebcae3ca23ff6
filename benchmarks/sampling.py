#!/usr/bin/env python
"""The sampling engine beside a plain eager loop written the standard way, in one process.

    python benchmarks/sampling.py --json benchmarks/results/sampling_cpu.json   # CPU: GPT-B, 256 px, float32
    python benchmarks/sampling.py --dtype bf16 --batches 1 8
    python benchmarks/sampling.py --device cuda --gpt xl --size 512 --dtype bf16 --batches 1 4 16 32 64

Random weights, random prefixes, guidance 3, greedy; in float32 both sides must write the same codes, in
bfloat16 the share that agrees is reported. The plain loop is LlamaGen's: both branches in full, a cache
of full length under a full mask, keys copied by `repeat_interleave`, logits of the whole prefix, Python
per token. Its cost per token does not depend on the position, so `--plain-tokens` may cut it short;
the engine always writes whole images. Times are wall times (or see
`--cpu-time`), medians over alternating repeats.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from editar.config import SamplingConfig, TrainConfig
from editar.models.gpt import GPT, Attention
from editar.models.rope import apply_rope, rope_table
from editar.runtime.device import pick_device
from editar.runtime.entry import load_config
from editar.runtime.files import provenance, write_json
from editar.sampling.engine import Engine
from editar.sampling.stats import Clock, copy_bandwidth

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gpt", default="b", help="a size in configs/gpt")
    parser.add_argument("--size", type=int, default=256, help="pixels")
    parser.add_argument("--dtype", choices=DTYPES, default="fp32")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 4, 8, 16])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--plain-tokens", type=int, default=10**9)
    parser.add_argument("--eager", action="store_true", help="no compiled or captured step")
    parser.add_argument("--int8", action="store_true", help="the engine's 8-bit weights (CPU)")
    parser.add_argument("--cpu-time", action="store_true", help="CPU instead of wall seconds: one thread, busy machine")
    parser.add_argument("--json", help="where to write the figures")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    device = pick_device(options.device)
    model = random_gpt(options.gpt, options.size).to(device, DTYPES[options.dtype])
    bandwidth = copy_bandwidth(device)
    print(f"GPT-{options.gpt.upper()}, {options.size} px, {options.dtype}, {device}, {options.threads} threads")
    print(f"copy bandwidth {bandwidth:.1f} GB/s")
    engine = Engine(model, compile=False if options.eager else None, int8=options.int8)
    engine.timer = time.process_time if options.cpu_time else time.perf_counter
    rows = []
    for batch in options.batches:
        rows.append(measure(model, engine, batch, options.repeats, options.plain_tokens))
        print(
            "batch {batch:3d}  prefill {plain_prefill_s:.2f} -> {prefill_s:.2f} s   "
            "token {plain_ms:.1f} -> {ms:.2f} ms ({ratio:.2f}x)   image {image_ratio:.2f}x   {gb_per_s:.1f} GB/s   "
            "{images_per_s:.3f} images/s   same codes {agreement:.4f}".format(**rows[-1]),
            flush=True,
        )
    if options.json:
        settings = {key: value for key, value in vars(options).items() if key != "json"}
        write_json(
            options.json, {"made_by": provenance(), "settings": settings, "copy_gb_per_s": bandwidth, "rows": rows}
        )
    if options.dtype == "fp32" and not options.int8 and any(row["agreement"] < 1 for row in rows):
        raise SystemExit("the two loops wrote different codes")


def random_gpt(size: str, pixels: int) -> GPT:
    """The official architecture and layout with random weights, evaluation mode."""
    overrides = ["output_dir=x", "experiment=editar_xl", f"gpt={size}", f"image_size={pixels}", "teacher=none"]
    torch.manual_seed(0)
    model = GPT(load_config(TrainConfig, "train", overrides).gpt)
    torch.nn.init.normal_(model.output.weight, std=0.02)
    return model.eval().requires_grad_(False)


def measure(model: GPT, engine: Engine, batch: int, repeats: int, plain_tokens: int) -> dict[str, Any]:
    """Both loops on one batch: seconds of the prefill, milliseconds per token, the ratios, the agreement."""
    cfg, device = model.cfg, model.output.weight.device
    generator = torch.Generator().manual_seed(batch)
    source = torch.randint(cfg.vocab_size, (batch, cfg.image_tokens), generator=generator).to(device)
    text = torch.randn(batch, cfg.text_tokens, cfg.text_dim, generator=generator).to(model.output.weight)
    settings = SamplingConfig(cfg_scale=3.0, top_k=1000, greedy=True)
    tokens = min(plain_tokens, cfg.image_tokens)
    if device.type == "cuda":
        engine.generate(source, text, settings)  # compiles and captures
    laps: dict[str, list[float]] = {"plain_prefill": [], "plain_step": [], "prefill": [], "step": []}
    for _ in range(repeats):
        plain, seconds = plain_generate(model, source, text, settings, tokens, engine.timer)
        fast = engine.generate(source, text, settings)
        laps["plain_prefill"].append(seconds[0])
        laps["plain_step"].append(seconds[1] / (tokens - 1))
        laps["prefill"].append(engine.stats.prefill_s)
        laps["step"].append(engine.stats.decode_s / (cfg.image_tokens - 1))
    time_of = {name: statistics.median(values) for name, values in laps.items()}
    steps = cfg.image_tokens - 1
    image = time_of["prefill"] + steps * time_of["step"]
    return {
        "batch": batch,
        "plain_prefill_s": time_of["plain_prefill"],
        "prefill_s": time_of["prefill"],
        "plain_ms": 1000 * time_of["plain_step"],
        "ms": 1000 * time_of["step"],
        "ratio": time_of["plain_step"] / time_of["step"],
        "image_ratio": (time_of["plain_prefill"] + steps * time_of["plain_step"]) / image,
        "gb_per_s": engine.stats.gb_per_s,
        "tokens_per_s": batch * cfg.image_tokens / image,
        "images_per_s": batch / image,
        "agreement": (plain == fast[:, :tokens]).float().mean().item(),
        "plain_tokens": tokens,
    }


# --- the plain loop -------------------------------------------------------------------------------


@torch.no_grad()
def plain_generate(
    model: GPT,
    source: torch.Tensor,
    text: torch.Tensor,
    settings: SamplingConfig,
    tokens: int,
    timer: Callable[[], float],
) -> tuple[torch.Tensor, tuple[float, float]]:
    """Codes (B, tokens) and the seconds of prefill and of the other tokens."""
    loop = PlainLoop(model, 2 * len(source))
    clock = Clock(source.device, timer)
    drop = torch.arange(2 * len(source), device=source.device) >= len(source)
    image = model.tok_embeddings(torch.cat([source, source]))
    caption = model.cls_embedding(torch.cat([text, text]), drop)
    position = torch.arange(model.cfg.prefix_tokens, device=source.device)
    codes = [loop.choose(loop.logits(torch.cat([image, caption], dim=1), position), settings)]
    prefill = clock.lap()
    position = position[-1:] + 1
    for _ in range(tokens - 1):
        newest = torch.cat([codes[-1], codes[-1]])
        codes.append(loop.choose(loop.logits(model.tok_embeddings(newest), position), settings))
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

    def logits(self, x: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
        """x (rows, s, D) at position (s,) -> (rows, s, V) float32."""
        mask, rope = self.mask[: self.rows, None, position], self.rope[position]
        for index, layer in enumerate(self.model.layers):
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

    def choose(self, logits: torch.Tensor, settings: SamplingConfig) -> torch.Tensor:
        """Guidance, temperature, top-k, the most probable code: (rows, s, V) -> (rows / 2, 1)."""
        cond, uncond = logits[:, -1].chunk(2)
        mixed = (uncond + (cond - uncond) * settings.cfg_scale) / max(settings.temperature, 1e-5)
        kth = mixed.topk(min(settings.top_k, mixed.shape[-1])).values[:, -1:]
        probs = mixed.masked_fill(mixed < kth, -torch.inf).softmax(-1)
        return probs.topk(1, dim=-1).indices


if __name__ == "__main__":
    main()
