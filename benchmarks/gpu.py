#!/usr/bin/env python
"""Everything that a GPU can tell about this project, in one command.

    python benchmarks/gpu.py                        # eight minutes on the GPU: benchmarks/results/gpu_NAME.json
    python benchmarks/gpu.py --minutes 20 --out h200.json
    python benchmarks/gpu.py --rehearse             # every part, tiny, on a CPU in two minutes

Parts run one after the other, each in a process of its own with a limit of its own, the most valuable first; the file
is written again after every part, so what is there when the machine goes is kept. Of a part that fails it holds the
last lines. Exit code 1 if a part failed, with the first one and its cause at the end.

torch, transformers, timm, scikit-image, safetensors and pyarrow are enough, except for the tests (pytest, hydra-core,
omegaconf) and the comparison with the official numbers (also kornia, lpips): small wheels, all of pure Python.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
MINUTES = 8.0  # that the limits of the parts are meant for; most parts need far less than their limit
LEAST_S = 10.0  # a part with less time left is not started
TAIL = 1500  # characters of a part's output that are kept


@dataclass(frozen=True)
class Part:
    """A command on the GPU, its limit when all have MINUTES, and what stands for it in a rehearsal. Arguments are split
    at spaces; FILE is where its figures go."""

    name: str
    limit_s: float
    full: str
    rehearsal: str


XL = "--device cuda --gpt xl --size 512 --json FILE"
TINY = "--gpt nano --size 64 --json FILE"
SAMPLE = f"benchmarks/sampling.py {XL} --dtype bf16 --plain-tokens 48"
SAMPLE_TINY = f"benchmarks/sampling.py {TINY} --plain-tokens 4 --engines eager"
NANO = "benchmarks/sampling.py --checkpoint reference/nano --json FILE"
STEP = f"benchmarks/train_step.py --repeats 5 {XL} --precision bf16 --micro-batches 8 --variants"
STEP_TINY = "benchmarks/train_step.py --micro-batches 2 --repeats 1 --json FILE --variants"
LOADER = "benchmarks/data_loading.py --json FILE"
OWN, OWN_TINY = "benchmarks/gpu_parts.py --json FILE", "benchmarks/gpu_parts.py --json FILE --device cpu --small"
TESTS = "-m pytest -q -p no:cacheprovider -m gpu tests/sampling tests/training"
PARITY = "scripts/check_parity.py tests/golden"

PARTS = (
    Part("environment", 60, f"{OWN} environment", f"{OWN_TINY} environment"),
    Part(
        "sampling, batch 1",
        120,
        f"{SAMPLE} --batches 1 --engines captured --windows 1 4 16 32",
        f"{SAMPLE_TINY} --batches 1 --windows 1 4",
    ),
    Part("training step", 100, f"{STEP} cached compiled online", f"{STEP_TINY} cached online"),
    Part("tests", 120, TESTS, TESTS),
    Part("parity, float32", 120, f"{PARITY} --device cuda", PARITY),
    Part(
        "sampling, batch 32",
        120,
        f"{SAMPLE} --batches 32 --engines captured --windows 1 4",
        f"{SAMPLE_TINY} --batches 2 --windows 1",
    ),
    Part(
        "sampling, reference/nano",
        60,
        f"{NANO} --device cuda --batches 1 32 128 --images 32",
        f"{NANO} --batches 4",
    ),
    Part("tokenizer", 40, f"{OWN} tokenizer", f"{OWN_TINY} tokenizer"),
    Part("text encoder", 40, f"{OWN} text", f"{OWN_TINY} text"),
    Part("training step, teacher", 60, f"{STEP} teacher", f"{STEP_TINY} teacher"),
    Part("checkpoint", 90, f"{OWN} checkpoint", f"{OWN_TINY} checkpoint"),
    Part("training step, FSDP2", 60, f"{STEP} fsdp", f"{STEP_TINY} fsdp"),
    Part(
        "sampling, batch 1, other engines",
        90,
        f"{SAMPLE} --batches 1 --engines eager compiled --windows 1",
        f"{SAMPLE_TINY} --batches 1 --windows 1",
    ),
    Part(
        "sampling, batch 8",
        120,
        f"{SAMPLE} --batches 8 --engines captured --windows 1 4 16",
        f"{SAMPLE_TINY} --batches 2 --windows 4",
    ),
    Part("data loader", 60, f"{LOADER} --workers 4 8 --seconds 3", f"{LOADER} --workers 1 --seconds 1 --pictures 8"),
    Part("parity, bfloat16", 120, f"{PARITY} --device cuda --dtype bf16", f"{PARITY} --dtype bf16"),
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=MINUTES, help="for all parts together; limits grow with it")
    parser.add_argument("--out", type=Path, help="default: benchmarks/results/gpu_NAME.json, outputs/ in a rehearsal")
    parser.add_argument("--rehearse", action="store_true", help="every part, tiny, on a CPU")
    parser.add_argument("--only", nargs="+", metavar="NAME", choices=[part.name for part in PARTS], help="some parts")
    options = parser.parse_args()
    end = time.monotonic() + 60 * options.minutes
    report: dict[str, Any] = {"rehearsal": options.rehearse, "minutes": options.minutes, "headline": {}, "parts": {}}
    out = options.out or ROOT / "outputs" / "gpu_rehearsal.json"
    for part in PARTS:
        if options.only and part.name not in options.only:
            continue
        limit = min(part.limit_s * options.minutes / MINUTES, end - time.monotonic())
        command = part.rehearsal if options.rehearse else part.full
        not_run = {"state": "not run: no time left"}
        found: dict[str, Any] = run(command, limit, options.rehearse) if limit > LEAST_S else not_run
        report["parts"][part.name] = found
        gpu = found.get("figures", {}).get("gpu")
        if part.name == "environment" and options.out is None and not options.rehearse:
            name = re.sub(r"\W+", "_", (gpu or "none").lower().removeprefix("nvidia"))
            out = ROOT / "benchmarks" / "results" / f"gpu_{name.strip('_')}.json"
        report["headline"] = headline(report["parts"])
        write(out, report)
        print(f"{part.name:28} {found.get('seconds', 0.0):6.1f} s  {found['state']}", flush=True)
    failed = [(name, found) for name, found in report["parts"].items() if found["state"] != "ok"]
    print(f"\n{json.dumps(report['headline'], indent=1)}\n{out}: {len(failed)} of {len(report['parts'])} parts failed")
    if failed:
        name, found = failed[0]
        print(f"the first, {name}: {found['state']}\n{found.get('tail', '')}")
    return 1 if failed else 0


def run(command: str, limit_s: float, rehearse: bool) -> dict[str, Any]:
    """One part, with all that it starts ended after `limit_s` -> its state, seconds, last lines and figures."""
    environment = os.environ | {"PYTHONUNBUFFERED": "1"}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    if rehearse:
        environment |= {"CUDA_VISIBLE_DEVICES": "", "EDITAR_REHEARSE": "1"}
    with tempfile.TemporaryDirectory() as folder:
        file, log = Path(folder) / "figures.json", Path(folder) / "log"
        words = [str(file) if word == "FILE" else word for word in command.split()]
        begun = time.monotonic()
        with log.open("w") as stream:
            child = subprocess.Popen(
                [sys.executable, *words],
                cwd=ROOT,
                env=environment,
                stdout=stream,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            try:
                code = child.wait(limit_s)
                state = "ok" if code == 0 else f"failed with exit code {code}"
            except BaseException as error:
                os.killpg(child.pid, signal.SIGKILL)  # its session is a process group: what it started ends too
                child.wait()
                if not isinstance(error, subprocess.TimeoutExpired):
                    raise
                state = f"stopped after {limit_s:.0f} s"
        found = {"command": f"python {command}", "state": state, "seconds": round(time.monotonic() - begun, 1)}
        found["tail"] = log.read_text(errors="replace")[-TAIL:]
        return found | ({"figures": json.loads(file.read_text())} if file.is_file() else {})


def headline(parts: dict[str, dict[str, Any]]) -> dict[str, float]:
    """The figures that targets are set for, as far as they are there."""
    found: dict[str, float] = {}
    for name, part in parts.items():
        for row in part.get("figures", {}).get("rows", []):
            if name.startswith("sampling, batch"):
                for engine, values in row["engine"].items():
                    place = f"batch {row['batch']}, {engine}"
                    found[f"{place}: ms a pass"] = values["ms_per_pass"]
                    found[f"{place}: images/s"] = values["images_per_s"]
                    found[f"{place}: times the plain loop"] = values["over_plain"]
                    found[f"{place}: share of the copy bandwidth"] = values["of_copy"]
            elif name.startswith("training step"):
                place = f"training {row['system']}, {row['batch']} samples"
                found[f"{place}: MFU"] = row["mfu"]
                found[f"{place}: times the plain step"] = row["ratio"]
                if row["memory_gb"]:
                    found[f"{place}: memory against dry_run"] = row["memory_gb"] / row["arithmetic_gb"]
    return {key: round(value, 4) for key, value in found.items()}


def write(path: Path, report: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.part")
    partial.write_text(json.dumps(report, indent=1) + "\n")
    partial.replace(path)


if __name__ == "__main__":
    raise SystemExit(main())
