#!/usr/bin/env python
"""What scoring costs per picture: batched metrics beside the official evaluator's way, one at a time.

    python benchmarks/scoring.py --json benchmarks/results/scoring_cpu.json     # CPU, one thread, batch 16
    python benchmarks/scoring.py --device cuda --threads 8

Network-free metrics only (PIE-Bench background PSNR, MSE, SSIM; edge SSIM, multi-scale SSIM, PSNR, F1),
random pictures, best of several passes. Both sides start from decoded uint8 pictures and run-length
masks and must agree to 1e-4. CPU time is process time, so that other jobs on the machine count little;
on a GPU it is wall time around a synchronisation.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import numpy as np
import torch
from torchmetrics.classification import BinaryF1Score
from torchmetrics.image import (
    MultiScaleStructuralSimilarityIndexMeasure,
    PeakSignalNoiseRatio,
    StructuralSimilarityIndexMeasure,
)
from torchmetrics.regression import MeanSquaredError

from editar.evaluation.pie_bench.dataset import SIZE, decode_mask
from editar.evaluation.pie_bench.metrics import PieBatch, PieMetrics
from editar.evaluation.translation.protocol import edge_scores
from editar.runtime.device import pick_device
from editar.runtime.files import provenance, write_json

Values = dict[str, list[float]]


def main() -> None:
    parser = argparse.ArgumentParser(description="Time the network-free metrics against a one-at-a-time loop.")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", help="where to write the figures")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    device = pick_device(options.device)
    print(f"torch {torch.__version__}, {device}, {options.threads} threads, batch {options.batch}")
    print(f"{'metrics':<24}{'one by one':>14}{'batched':>14}{'faster':>9}{'largest relative difference':>30}")
    rows = []
    for name, (slow, fast) in {
        "pie-bench background": pie_bench(options.batch, device),
        "edges": edges(options.batch, device),
    }.items():
        (before, expected), (after, found) = (best(run, options.repeats, device) for run in (slow, fast))
        gap = difference(expected, found)
        per = [1000 * seconds / options.batch for seconds in (before, after)]
        print(f"{name:<24}{per[0]:>11.1f} ms{per[1]:>11.1f} ms{per[0] / per[1]:>8.1f}x{gap:>30.1e}")
        rows.append(
            {"metrics": name, "one_by_one_ms": per[0], "batched_ms": per[1], "ratio": per[0] / per[1], "gap": gap}
        )
        if gap > 1e-4:
            raise SystemExit(f"{name}: the two ways disagree")
    if options.json:
        settings = {key: value for key, value in vars(options).items() if key != "json"}
        made_by = {key: value for key, value in provenance().items() if key != "host"}
        write_json(options.json, {"made_by": made_by, "settings": settings, "rows": rows})


def best(run: Callable[[], Values], repeats: int, device: torch.device) -> tuple[float, Values]:
    """Shortest of `repeats` passes in seconds, and the values."""
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    times, values = [], run()
    for _ in range(repeats):
        start = clock()
        values = run()
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(clock() - start)
    return min(times), values


def difference(a: Values, b: Values) -> float:
    gaps = [np.abs(np.divide(b[name], a[name]) - 1).max() for name in a]
    return float(max(gaps))


def pie_bench(count: int, device: torch.device) -> tuple[Callable[[], Values], Callable[[], Values]]:
    random = np.random.default_rng(0)
    sources = random.integers(0, 256, (count, SIZE, SIZE, 3), np.uint8)
    results = np.clip(sources.astype(int) + random.integers(-30, 30, sources.shape), 0, 255).astype(np.uint8)
    runs = [[value for row in range(150, 350) for value in (row * SIZE + 100 + i, 250)] for i in range(count)]

    def one_by_one() -> Values:
        """As the official evaluator: a mask loop, then each metric object on each picture's own tensors."""
        metrics = {
            "psnr": PeakSignalNoiseRatio(data_range=1.0).to(device),
            "mse": MeanSquaredError().to(device),
            "ssim": StructuralSimilarityIndexMeasure(data_range=1.0).to(device),
        }
        values: Values = {name: [] for name in metrics}
        for source, result, run in zip(sources, results, runs, strict=True):
            keep = 1 - official_mask(run)[:, :, None].repeat(3, axis=2).astype(np.float32)
            for name, metric in metrics.items():
                a, b = (
                    torch.tensor(picture.astype(np.float32) / 255 * keep).permute(2, 0, 1)[None].to(device)
                    for picture in (result, source)
                )
                values[name].append(metric(a.contiguous(), b.contiguous()).cpu().item())
        return values

    def batched() -> Values:
        masks = np.stack([decode_mask(run) for run in runs])
        rows = PieMetrics(device)(PieBatch(sources, results, masks, [""] * count))
        return {name: [row[name] for row in rows] for name in rows[0]}

    return one_by_one, batched


def official_mask(runs: list[int]) -> np.ndarray:
    """The plain loop that `decode_mask` replaces."""
    flat = np.zeros(SIZE * SIZE)
    for i in range(0, len(runs), 2):
        for j in range(min(runs[i + 1], SIZE * SIZE - runs[i])):
            flat[runs[i] + j] = 1
    mask = flat.reshape(SIZE, SIZE)
    mask[0, :] = mask[-1, :] = 1
    mask[:, 0] = mask[:, -1] = 1
    return mask


def edges(count: int, device: torch.device) -> tuple[Callable[[], Values], Callable[[], Values]]:
    random = np.random.default_rng(0)
    labels = torch.from_numpy((random.random((count, SIZE, SIZE)) < 0.1).astype(np.float32)).to(device)
    flips = torch.from_numpy(random.random((count, SIZE, SIZE)) < 0.02).to(device)
    found = torch.where(flips, 1 - labels, labels)

    def one_by_one() -> Values:
        metrics = {
            "ms_ssim": MultiScaleStructuralSimilarityIndexMeasure(data_range=1.0).to(device),
            "ssim": StructuralSimilarityIndexMeasure(data_range=1.0).to(device),
            "psnr": PeakSignalNoiseRatio(data_range=1.0).to(device),
        }
        f1 = BinaryF1Score().to(device)
        values: Values = {name: [] for name in [*metrics, "f1"]}
        for a, b in zip(found, labels, strict=True):
            for name, metric in metrics.items():
                values[name].append(metric(a[None, None], b[None, None]).cpu().item())
            values["f1"].append(f1(a.flatten().int(), b.flatten().int()).cpu().item())
        return values

    def batched() -> Values:
        return {name: value.tolist() for name, value in edge_scores(found[:, None], labels).items()}

    return one_by_one, batched


if __name__ == "__main__":
    main()
