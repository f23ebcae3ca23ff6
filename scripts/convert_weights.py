"""Outside weights to a folder of ours, a run of ours to the official .pt, or a run and an adapter to one folder.

    python scripts/convert_weights.py checkpoints/editar/editar_release.pt checkpoints/editar-xl \\
        --tokenizer checkpoints/vq_ds16_t2i.pt
    python scripts/convert_weights.py tiny.pt tiny --config experiment=editar_xl gpt.dim=16 gpt.n_layer=2 gpt.n_head=2
    python scripts/convert_weights.py runs/xl editar_xl.pt --export-official
    python scripts/convert_weights.py reference/nano merged --lora runs/lora
"""

from __future__ import annotations

import argparse
from pathlib import Path

from editar.runtime.entry import script
from editar.runtime.log import say
from editar.weights.convert import export_official, import_weights, merge_adapter


@script("convert_weights")
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", help="weights file, run folder or hub id (owner/name:file)")
    parser.add_argument("out", help="folder to make; with --export-official the .pt file to write")
    parser.add_argument("--config", nargs="+", metavar="KEY=VALUE", help="settings of a GPT without an official size")
    parser.add_argument("--tokenizer", help="VQ weights, or a run's folder, so that editar.edit can use the result")
    parser.add_argument("--keep-optimizer", action="store_true", help="also keep AdamW state and step, to train on")
    parser.add_argument("--export-official", action="store_true", help="write EditAR's training checkpoint layout")
    parser.add_argument("--lora", help="adapter trained on the run folder `source`, to merge into it")
    options = parser.parse_args()
    if options.lora is not None:
        if options.export_official or options.config or options.tokenizer or options.keep_optimizer:
            parser.error("--lora merges into a run folder and takes no other option; convert the merged folder then")
        merge_adapter(options.source, options.lora, options.out)
        say(f"{options.out}: {options.source} with the adapter {options.lora}, a run folder of its own")
        return
    if options.export_official:
        written = export_official(options.source, options.out)
        optimizer = "with" if "optimizer" in written else "without"
        say(f"{options.out}: {len(written['model'])} tensors, step {written['steps']}, {optimizer} optimiser state")
        return
    info = import_weights(options.source, options.out, options.config, options.tokenizer, options.keep_optimizer)
    sizes = ", ".join(f"{key} {value}" for key, value in info.sizes.items() if value is not None)
    say(f"{options.out}: {info.kind} ({sizes})")
    if info.kind != "vq" and not (Path(options.out) / "config.yaml").is_file():
        say("no config.yaml: this size has no name; give --config experiment=... gpt.dim=... gpt.n_head=...")


if __name__ == "__main__":
    main()
