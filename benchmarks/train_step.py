#!/usr/bin/env python
"""One training step of ours beside a plain transcription of the standard recipe, in one process.

    python benchmarks/train_step.py --json benchmarks/results/train_step_cpu_nano.json               # CPU: nano
    python benchmarks/train_step.py --gpt b --size 256 --micro-batches 1 2 --repeats 3 \\
        --json benchmarks/results/train_step_cpu_b256.json                                           # CPU: GPT-B
    python benchmarks/train_step.py --device cuda --gpt xl --size 512 --precision bf16 --micro-batches 1 2 4 8 16 \\
        --variants cached compiled recomputed teacher --json benchmarks/results/train_step_h200.json

Random weights, pictures and texts of the real shapes; the data loader is not in it (benchmarks/data_loading.py).
`plain` encodes source and target with the VQ tokenizer inside the step, makes logits of the whole sequence,
keeps them in float32 and steps torch's default AdamW, as LlamaGen and EditAR train. Ours: `cached` reads codes,
`online` encodes as plain does, `compiled` adds `compile=true`, `recomputed` activation checkpointing, `fsdp` FSDP2 with
one process, `teacher` the distillation loss against a DINOv2-base of random weights (HOG for nano). The text encoder
(nano's small T5) runs inside the step on every side. Both sides must give the same first loss.

Memory is beside the arithmetic of `dry_run=true`, without the activations of tokenizer and teacher.
MFU is GPT FLOPs (editar/training/planning/cost.py) over the device's peak; on a CPU over a large matrix product
measured in the same process. Times are medians over repeats that alternate between the systems.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F

from editar.config import CONFIG_DIR, TrainConfig, plain_training, read_yaml
from editar.images import batch_to_tensor
from editar.models.gpt import GPT
from editar.models.teacher import Teacher, build_teacher
from editar.models.text import TextEncoder
from editar.models.vq import VQModel
from editar.runtime.device import pick_device
from editar.runtime.distributed import Ranks
from editar.runtime.files import provenance, write_json
from editar.training.losses import Objective
from editar.training.optim import make_optimizers
from editar.training.parallel import clip_gradients, parallelise
from editar.training.planning.cost import memory, peak_flops, training_flops

VARIANTS: dict[str, dict[str, Any]] = {
    "cached": {},
    "online": {},
    "compiled": {"compile": True},
    "recomputed": {"activation_checkpointing": True},
    "teacher": {},
    "fsdp": {"parallel": "fsdp", "optim": {"name": "adamw"}},
}
Step = Callable[[], float]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gpt", default="nano", help="a size in configs/gpt")
    parser.add_argument("--size", type=int, default=64, help="pixels; nano's tokenizer at 64, VQ-16 otherwise")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--micro-batches", type=int, nargs="+", default=[32])
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=["cached", "online"])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", help="where to write the figures")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    device = pick_device(options.device)
    peak = peak_flops(device) or matmul_flops(device)
    print(f"GPT-{options.gpt}, {options.size} px, {options.precision}, {device}, peak {peak / 1e12:.2f} TFLOP/s")
    rows: list[dict[str, Any]] = []
    for batch in options.micro_batches:
        for row in measure(options, device, batch, peak):
            rows.append(row)
            print(
                "batch {batch:3d}  {system:10s}  {step_s:.3f} s a step  {samples_per_s:7.2f} samples/s  "
                "MFU {mfu:.3f}  peak {memory_gb:.1f} GB, "
                "by arithmetic {arithmetic_gb:.1f}  {ratio:.2f}x plain  loss {loss:.4f}".format(**row),
                flush=True,
            )
        if options.json:
            settings = {key: value for key, value in vars(options).items() if key != "json"}
            write_json(options.json, {"made_by": provenance(), "settings": settings, "peak_flops": peak, "rows": rows})
    if dist.is_initialized():
        dist.destroy_process_group()


def config(options: argparse.Namespace, teacher: str = "none", **more: Any) -> TrainConfig:
    """The paper's training (nano's when that is the size) with a text encoder that needs no download."""
    sections = {"gpt": options.gpt, "rope": "editar", "tokenizer": "vq16", "teacher": teacher}
    text = {"name": "nano", "dim": 2048, "max_tokens": 120, "nano_heads": 32, "dtype": "float32"}
    values: dict[str, Any] = {"image_size": options.size, "text": text}
    if options.gpt == "nano":
        sections |= {"rope": "shared", "tokenizer": "nano", "text": "nano"}
        values = read_yaml(CONFIG_DIR / "experiment" / "nano.yaml")
    return plain_training(sections, **values | {"precision": options.precision} | more)


def measure(options: argparse.Namespace, device: torch.device, batch: int, peak: float) -> list[dict[str, Any]]:
    """Every system on the same pictures and texts: in turns on a CPU, each with the memory for itself on a GPU."""
    cfg = config(options)
    torch.manual_seed(0)
    tokenizer = VQModel(cfg.tokenizer).to(device).eval().requires_grad_(False)
    encoder = TextEncoder(cfg.text, device)
    pictures = torch.randint(256, (2 * batch, cfg.image_size, cfg.image_size, 3), dtype=torch.uint8, device=device)
    words = ["make the red circle blue"] * batch
    flops = training_flops(cfg.gpt) * batch
    given = (tokenizer, encoder, pictures, words)
    makers: dict[str, Callable[[], Step]] = {"plain": partial(plain, config(options), *given)}
    makers |= {name: partial(ours, options, name, *given) for name in options.variants}
    losses, times, peaks = {}, {name: list[float]() for name in makers}, {}
    frozen = torch.cuda.memory_allocated() if device.type == "cuda" else 0
    for turn in [[name] for name in makers] if device.type == "cuda" else [list(makers)]:
        steps: dict[str, Step] = {}
        for name in turn:
            steps[name] = makers[name]()
            losses[name] = steps[name]()  # also warms up and compiles
            peaks[name] = peak_memory_of(steps[name], device)
        for _ in range(options.repeats):
            for name, step in steps.items():
                times[name].append(seconds(step, device))
        del step, steps
        gc.collect()  # compiled modules refer to themselves
    if any(abs(loss - losses["plain"]) > 0.02 for name, loss in losses.items() if name != "teacher"):
        raise SystemExit(f"the first losses differ: {losses}")
    rows = []
    for name in makers:
        step_s = statistics.median(times[name])
        rows.append(
            {
                "batch": batch,
                "system": name,
                "step_s": step_s,
                "samples_per_s": batch / step_s,
                "mfu": flops / step_s / peak,
                "memory_gb": peaks[name],
                "arithmetic_gb": memory(config(options, **VARIANTS.get(name, {})), 1, batch, frozen).total / 1e9,
                "ratio": statistics.median(p / q for p, q in zip(times["plain"], times[name], strict=True)),
                "loss": losses[name],
            }
        )
    return rows


def ours(
    options: argparse.Namespace,
    name: str,
    tokenizer: VQModel,
    encoder: TextEncoder,
    pictures: torch.Tensor,
    words: list[str],
) -> Step:
    """The step of editar/training/loop.py without its data loader."""
    batch, device = len(words), pictures.device
    teacher = random_teacher(options, device) if name == "teacher" else None
    cfg = config(options, teacher[0] if teacher else "none", **VARIANTS[name])
    if teacher and teacher[0] == "dinov2":
        cfg.gpt.teacher_grid = 16  # its map, whatever the student's
    torch.manual_seed(1)
    gpt = random_output(GPT(cfg.gpt).to(device).train())
    if name == "fsdp" and not dist.is_initialized():  # the cost of FSDP2 itself, with nobody to share with
        backend = "nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    engine = parallelise(Objective(gpt, cfg.loss), cfg, Ranks(0, 1, device))
    optimizers = make_optimizers(gpt, cfg.optim)
    images = batch_to_tensor(pictures)
    seen = None if teacher is None else np.stack([teacher[1].prepare(one) for one in pictures[batch:].cpu().numpy()])
    with torch.no_grad():
        codes = tokenizer.encode(images)

    def step() -> float:
        with torch.no_grad():
            now = tokenizer.encode(images) if name == "online" else codes
            features = teacher[1](torch.from_numpy(seen)) if teacher else None
        text = encoder.embed(encoder.tokenize(words))
        gpt.zero_grad(set_to_none=True)
        with torch.autocast(device.type, torch.bfloat16, enabled=cfg.precision == "bf16"):
            terms = engine(now[:batch], text, now[batch:], teacher=features).terms
        torch.stack(list(terms.values())).sum().backward()
        clip_gradients(gpt, cfg.optim.clip)
        for optimizer in optimizers:
            optimizer.step()
        return terms["token"].item()

    return step


def plain(cfg: TrainConfig, tokenizer: VQModel, encoder: TextEncoder, pictures: torch.Tensor, words: list[str]) -> Step:
    """The standard recipe: VQ in the step, logits of every position, torch's default AdamW; nano's Muon is
    kept, so that the sides differ in the step alone."""
    batch, device = len(words), pictures.device
    cfg.gpt.teacher_dim = None
    torch.manual_seed(1)
    gpt = random_output(GPT(cfg.gpt).to(device).train())
    optimizers = make_optimizers(gpt, cfg.optim)
    if cfg.optim.name == "adamw":
        optimizers = [torch.optim.AdamW(gpt.parameters(), lr=cfg.optim.lr, betas=(0.9, 0.95), weight_decay=0.05)]
    images, prefix = batch_to_tensor(pictures), cfg.gpt.prefix_tokens

    def step() -> float:
        with torch.no_grad():
            source, target = (tokenizer.encode(part) for part in images.split(batch))
        text = encoder.embed(encoder.tokenize(words))
        gpt.zero_grad(set_to_none=True)
        with torch.autocast(device.type, torch.bfloat16, enabled=cfg.precision == "bf16"):
            image = gpt.tok_embeddings(source)
            caption = gpt.cls_embedding(text, None).type_as(image)
            x = torch.cat([image, gpt.tok_dropout(caption), gpt.tok_embeddings(target[:, :-1])], dim=1)
            x = gpt._add_positions(x, 0)
            rope = gpt.rope(x.device)[: x.shape[1]]
            for layer in gpt.layers:
                x = layer(x, rope)
            logits = gpt.output(gpt.norm(x)).float()  # (B, 2N + L - 1, V)
        loss = F.cross_entropy(logits[:, prefix - 1 :].flatten(0, 1), target.flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(gpt.parameters(), cfg.optim.clip)
        for optimizer in optimizers:
            optimizer.step()
        return loss.item()

    return step


def random_output(gpt: GPT) -> GPT:
    """A fresh GPT's output layer is zero and its loss log V whatever happens before it."""
    torch.nn.init.normal_(gpt.output.weight, std=0.02)
    return gpt


def random_teacher(options: argparse.Namespace, device: torch.device) -> tuple[str, Teacher]:
    if options.gpt == "nano":
        cfg = config(options, "hog")
        teacher = build_teacher(cfg.teacher, device, cfg.gpt.grid // 2)
        assert teacher is not None
        return "hog", teacher
    from transformers import BitImageProcessor, Dinov2Config, Dinov2Model

    with tempfile.TemporaryDirectory() as folder:
        Dinov2Model(Dinov2Config()).save_pretrained(folder)
        BitImageProcessor(size={"shortest_edge": 256}, crop_size={"height": 224, "width": 224}).save_pretrained(folder)
        cfg = config(options, "dinov2")
        cfg.teacher.weights = folder
        teacher = build_teacher(cfg.teacher, device, cfg.gpt.grid // 2)
    assert teacher is not None
    return "dinov2", teacher


def seconds(step: Step, device: torch.device) -> float:
    """Wall time of a step; its loss is read at the end, which waits for a GPU."""
    before = time.perf_counter()
    step()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - before


def peak_memory_of(step: Step, device: torch.device) -> float:
    """GB that a step needs at most, frozen networks included; 0 on a CPU, which does not tell."""
    if device.type != "cuda":
        return 0.0
    torch.cuda.reset_peak_memory_stats()
    step()
    return torch.cuda.max_memory_allocated() / 1e9


def matmul_flops(device: torch.device, size: int = 1536) -> float:
    """FLOP/s of a large float32 product, best of ten."""
    a, b = torch.randn(2, size, size, device=device)
    return max(2 * size**3 / seconds(lambda: (a @ b)[0, 0].item(), device) for _ in range(10))


if __name__ == "__main__":
    main()
