"""The six pictures of PIE-Bench in tests/golden, scored without networks."""

from __future__ import annotations

from pathlib import Path

from editar.config import EvalConfig
from editar.runtime.entry import load_config
from tests.helpers import tiny

GOLDEN = tiny.GOLDEN / "pie"
RESULTS = GOLDEN / "output" / "tiny-editor"


def config(out: Path, *overrides: str) -> EvalConfig:
    judges = ["networks.structure=null", "networks.lpips=null", "networks.clip=null", "num_workers=0"]
    base = [f"output_dir={out}", "benchmark=pie_bench", f"root={GOLDEN / 'data'}", *judges]
    return load_config(EvalConfig, "eval", [*base, *overrides])
