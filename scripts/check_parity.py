#!/usr/bin/env python
"""Compare editar with stored outputs of the official implementation.

    python scripts/check_parity.py tests/golden
    python scripts/check_parity.py tests/golden --device cuda --dtype bf16

One line per check: name, kind of error, error, tolerance, ok or FAIL; `editar/parity/checks.py`
defines the kinds. Exit code 1 if anything failed or a file is missing, 2 if nothing could be run.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from editar.parity.checks import Check
from editar.parity.groups import run_all
from editar.runtime.device import pick_device
from editar.runtime.entry import script
from editar.runtime.log import echo

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@script("check_parity")
def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Compare editar with stored outputs of the official implementation.")
    parser.add_argument("golden", type=Path, help="folder with gpt/, vq/, ... as in tests/golden")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--dtype", choices=tuple(DTYPES), default="fp32", help="of weights and activations")
    options = parser.parse_args(arguments)
    checks: list[Check] = []
    for result in run_all(options.golden, pick_device(options.device), DTYPES[options.dtype]):
        echo(result.line())
        if isinstance(result, Check):
            checks.append(result)
    failed = sum(not check.ok for check in checks)
    echo(f"{len(checks)} checks, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
