"""Copy a run folder down to what editing needs, with weights in float16: `export_run.py runs/nano reference/nano`.

`--decoder RUN` takes the decoder of a tokenizer that was trained further with `freeze_codes=true`; its codes must
be those of the run.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import torch

from editar.config import TokenizerTrainConfig, TrainConfig, from_yaml, read_yaml
from editar.errors import CheckpointError
from editar.runtime.entry import script
from editar.runtime.files import load_weights, new_folder, read_starts, save_weights, weights_header, write_text
from editar.runtime.log import echo
from editar.weights.load import check_header, save_pair

WEIGHTS = ("model.safetensors", "tokenizer.safetensors")
# The usage history is only of interest while a tokenizer is trained.
DROP_TO_ZERO = "quantize.codebook_used"


def export(run: Path, out: Path, decoder: Path | None = None) -> None:
    """A training's folder, of a GPT or of a tokenizer, into a new one. Raises CheckpointError when `decoder` reads
    other codes than the run's tokenizer, or `out` exists."""
    starts = read_starts(run)
    states = {WEIGHTS[0]: load_weights(run / WEIGHTS[0])}
    is_gpt = "gpt" in read_yaml(run / "config.yaml")
    if is_gpt:
        states[WEIGHTS[1]] = load_weights(run / WEIGHTS[1])
        check_header(run, from_yaml(TrainConfig, run / "config.yaml"), states[WEIGHTS[1]])
    else:
        from_yaml(TokenizerTrainConfig, run / "config.yaml")  # a damaged one is not passed on
    if decoder is not None:
        tokenizer = list(states)[-1]  # the only file of a tokenizer's run
        states[tokenizer] = with_decoder(states[tokenizer], decoder)
    for start in starts:
        start.pop("host", None)
    with new_folder(out) as partial:
        first, *tokenizers = [halved(state) for state in states.values()]
        header = weights_header(run / WEIGHTS[0])
        if tokenizers:
            save_pair(partial, first, tokenizers[0], header)
        else:
            save_weights(first, partial / WEIGHTS[0], header)
        for name in ("config.yaml", "metrics.jsonl"):
            shutil.copyfile(run / name, partial / name)
        write_text(partial / "provenance.json", json.dumps(starts, indent=1) + "\n")
    size = sum(file.stat().st_size for file in out.iterdir())
    echo(f"{out}: {size / 1e6:.1f} MB")


def halved(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    half = {key: value.half() if value.dtype == torch.float32 else value for key, value in state.items()}
    if DROP_TO_ZERO in half:
        half[DROP_TO_ZERO].zero_()
    return half


def with_decoder(state: dict[str, torch.Tensor], decoder: Path) -> dict[str, torch.Tensor]:
    """The tokenizer of the folder `decoder`, if it gives every picture the codes that `state` gives it."""
    newer = load_weights(decoder / "model.safetensors")
    codes = [key for key in state if not key.startswith(("decoder.", "post_quant_conv.")) and key != DROP_TO_ZERO]
    if newer.keys() != state.keys() or not all(torch.equal(state[key], newer[key]) for key in codes):
        raise CheckpointError(f"{decoder} has other codes than the run; train it with freeze_codes=true")
    return newer


@script("export_run")
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--decoder", type=Path, help="run folder of a tokenizer with the same codes")
    args = parser.parse_args()
    export(args.run, args.out, args.decoder)


if __name__ == "__main__":
    main()
