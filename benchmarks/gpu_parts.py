#!/usr/bin/env python
"""What no other benchmark measures, one part a call, for benchmarks/gpu.py.

    python benchmarks/gpu_parts.py environment --json FILE      # versions, device, bandwidth, products
    python benchmarks/gpu_parts.py tokenizer --json FILE        # VQ-16: images/s, and what faster formats change
    python benchmarks/gpu_parts.py text --json FILE             # an encoder of T5-XL's shape: images/s, host waits
    python benchmarks/gpu_parts.py checkpoint --json FILE       # how long saving GPT-XL holds a training up

Random weights. `--small` takes shapes that a CPU manages in seconds.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from editar.config import LossConfig, TokenizerConfig, plain_training
from editar.models.gpt import GPT
from editar.models.vq import VQModel
from editar.runtime.device import pick_device
from editar.runtime.distributed import Ranks
from editar.runtime.files import provenance, write_json
from editar.sampling.stats import Clock, copy_bandwidth
from editar.training.checkpoint import Checkpointer, training_state, whole_weights
from editar.training.losses import Objective
from editar.training.optim import make_optimizers
from editar.training.planning.cost import peak_flops

# What tests, parity and entries need beyond torch, transformers, timm, scikit-image, safetensors and pyarrow.
SMALL_WHEELS = ("hydra", "omegaconf", "antlr4", "pytest", "kornia", "lpips")
BF16 = torch.bfloat16
SECONDS = {"cuda": 1.0, "cpu": 0.1}  # of a measurement


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--json", required=True)
    options = parser.parse_args()
    found = PARTS[options.part](pick_device(options.device), options.small)
    print(*(f"{key}: {value}" for key, value in found.items()), sep="\n")
    write_json(options.json, {"made_by": provenance(), **found})


def environment(device: torch.device, small: bool) -> dict[str, Any]:
    size = 512 if small else 8192
    found: dict[str, Any] = {"device": str(device), "missing_wheels": [n for n in SMALL_WHEELS if not find_spec(n)]}
    if device.type == "cuda":
        about = torch.cuda.get_device_properties(device)
        found |= {"gpu": about.name, "memory_gb": about.total_memory / 1e9, "processors": about.multi_processor_count}
        found |= {"cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version(), "peak_flops": peak_flops(device)}
    found["copy_gb_per_s"] = copy_bandwidth(device, 64 if small else 1024)
    for name, dtype in (("bf16", BF16), ("fp32", torch.float32)):
        a, b = torch.randn(2, size, size, device=device).to(dtype)
        found[f"{name}_product_tflops"] = 2 * size**3 * rate(partial(torch.matmul, a, b), device, 1) / 1e12
    return found


@torch.no_grad()
def tokenizer(device: torch.device, small: bool) -> dict[str, Any]:
    """Encoding and decoding as the package does it (contiguous fp32), and in formats that it could take: images/s, and
    the share of codes that are others. Distances to the codebook stay float32: in bfloat16 every sixth code changes."""
    pixels, batch = (32, 1) if small else (512, 16)
    torch.manual_seed(0)
    model = VQModel(TokenizerConfig()).to(device).eval().requires_grad_(False)
    coarse = torch.rand(batch, 3, 16, 16, device=device) * 2 - 1
    images = torch.nn.functional.interpolate(coarse, pixels, mode="bicubic")
    codes = model.encode(images)

    def encode(half: bool) -> torch.Tensor:
        with torch.autocast(device.type, BF16, enabled=half):
            latents = model.latents(images)
        return model.quantize.nearest(latents.float()).flatten(1)

    def decode(half: bool) -> torch.Tensor:
        with torch.autocast(device.type, BF16, enabled=half):
            return model.decode(codes)

    found: dict[str, Any] = {"pixels": pixels, "batch": batch}
    for name, layout in (("contiguous", torch.contiguous_format), ("channels_last", torch.channels_last)):
        model.to(memory_format=layout)  # type: ignore[call-overload]
        for half in (False, True):
            found[f"{name} {'bf16' if half else 'fp32'}"] = {
                "encode_images_per_s": rate(partial(encode, half), device, batch),
                "decode_images_per_s": rate(partial(decode, half), device, batch),
                "other_codes": float((encode(half) != codes).float().mean()),
            }
    return found


def text(device: torch.device, small: bool) -> dict[str, Any]:
    from transformers import T5Config, T5EncoderModel

    layers, batch = (1, 1) if small else (24, 32)
    shape = T5Config(
        vocab_size=32128, d_model=2048, d_kv=64, d_ff=5120, num_layers=layers, num_heads=32,
        dropout_rate=0.0, feed_forward_proj="gated-gelu",
    )  # fmt: skip
    with torch.device("meta"):
        model = T5EncoderModel(shape).to(BF16)
    model = model.to_empty(device=device).eval().requires_grad_(False)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.02)
    ids = torch.ones(batch, 120, dtype=torch.long, device=device)
    run = partial(model, input_ids=ids, attention_mask=ids)
    found: dict[str, Any] = {"layers": layers, "batch": batch, "images_per_s": rate(run, device, batch)}
    if device.type == "cuda":  # whether transformers makes the host wait for the GPU
        torch.cuda.set_sync_debug_mode("error")
        try:
            run()
            found["host_waits"] = "no"
        except RuntimeError as error:
            found["host_waits"] = str(error).splitlines()[0]
        torch.cuda.set_sync_debug_mode("default")
    return found


def checkpoint(device: torch.device, small: bool) -> dict[str, Any]:
    """Seconds that `save` takes away from the loop, at once and in the background, and until the files are there."""
    sections = {"gpt": "nano" if small else "xl", "tokenizer": "nano" if small else "vq16", "teacher": "none"}
    cfg = plain_training(sections, image_size=64 if small else 512)
    objective, ranks = Objective(GPT(cfg.gpt).to(device), LossConfig()), Ranks(0, 1, device)
    gpt, optimizers = objective.gpt, make_optimizers(objective.gpt, cfg.optim)
    for parameter in gpt.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizers[0].step()
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, background in (("at_once", False), ("background", True), ("background_again", True)):
            saver = Checkpointer(Path(folder), ranks, 1, 0, background)
            clock = Clock(device)
            weights = whole_weights(gpt, None, ranks)
            gathered = clock.lap()
            saver.save(len(found) + 1, training_state(gpt, optimizers, None), weights)
            found[name] = {"weights_s": gathered, "save_s": clock.lap()}
            saver.finish()
            found[name]["finished_after_s"] = clock.lap()
    return found


PARTS: dict[str, Callable[[torch.device, bool], dict[str, Any]]] = {
    part.__name__: part for part in (environment, tokenizer, text, checkpoint)
}


def rate(work: Callable[[], object], device: torch.device, items: int) -> float:
    """Items per second over about SECONDS, at least one call after the first."""
    work()
    clock, count, begun = Clock(device), 0, time.perf_counter()
    while count == 0 or time.perf_counter() - begun < SECONDS[device.type]:
        work()
        count += 1
        if count % 8 == 0 and device.type == "cuda":
            torch.cuda.synchronize()  # else the host hands in far more than a second's work
    return count * items / clock.lap()


if __name__ == "__main__":
    main()
