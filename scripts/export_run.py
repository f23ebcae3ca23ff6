"""Copy a run folder down to what editing needs, with weights in float16: `export_run.py runs/nano reference/nano`."""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import torch
from safetensors import safe_open

from editar.errors import ConfigError
from editar.runtime.entry import script
from editar.runtime.files import load_weights, read_starts, save_weights, write_text

WEIGHTS = ("model.safetensors", "tokenizer.safetensors")
# The usage history is only of interest while a tokenizer is trained.
DROP_TO_ZERO = "quantize.codebook_used"


def export(run: Path, out: Path) -> None:
    starts = read_starts(run)
    if out.exists() and out.samefile(run):
        raise ConfigError(f"{out} is the run itself; choose another folder")
    out.mkdir(parents=True, exist_ok=True)
    for name in WEIGHTS:
        state = load_weights(run / name)
        half = {key: value.half() if value.dtype == torch.float32 else value for key, value in state.items()}
        if DROP_TO_ZERO in half:
            half[DROP_TO_ZERO].zero_()
        with safe_open(str(run / name), framework="pt") as file:
            save_weights(half, out / name, file.metadata())
    for name in ("config.yaml", "metrics.jsonl"):
        shutil.copyfile(run / name, out / name)
    for start in starts:
        start.pop("host", None)
    write_text(out / "provenance.json", json.dumps(starts, indent=1) + "\n")
    size = sum(file.stat().st_size for file in out.iterdir())
    print(f"{out}: {size / 1e6:.1f} MB")


@script("export_run")
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("out", type=Path)
    args = parser.parse_args()
    export(args.run, args.out)


if __name__ == "__main__":
    main()
