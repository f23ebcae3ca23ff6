"""Pictures through a tokenizer and back: PSNR, SSIM, code use and, with clean-fid's Inception file, rFID.

python scripts/score_tokenizer.py runs/vq HELDOUT --inception checkpoints/inception-2015-12-05.pt --out scores.json
"""

from __future__ import annotations

import argparse
from pathlib import Path

from editar.config import PicturesConfig
from editar.errors import ConfigError
from editar.runtime.entry import at_least, script
from editar.runtime.log import echo


@script("score_tokenizer")
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of a tokenizer's or a GPT's training")
    parser.add_argument("pictures", help="folder of pictures, parquet or arrow files, or tars")
    parser.add_argument("--column", default="image", help="of parquet: the column that holds pictures (image)")
    parser.add_argument("--rows", type=at_least(1), metavar="N", help="only the first N")
    parser.add_argument("--size", type=at_least(1, most=4096), help="side of the squares in pixels (the training's)")
    parser.add_argument("--inception", metavar="FILE", help="inception-2015-12-05.pt, for rFID")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    options = parser.parse_args()
    from editar.evaluation.reconstruction import score_reconstructions
    from editar.runtime.device import pick_device
    from editar.runtime.files import spare_inputs, write_json

    if options.out is not None:
        spare_inputs(options.out, [options.run, options.pictures])
        if options.out.suffix != ".json":
            raise ConfigError(f"--out {options.out}: give the name of a .json file")

    cfg = PicturesConfig(path=options.pictures, column=options.column)
    device = pick_device(options.device)
    found = score_reconstructions(options.run, cfg, device, options.rows, options.size, options.inception)
    echo(
        "\n".join(
            f"{name:12} {value:.4f}" if isinstance(value, float) else f"{name:12} {value}"
            for name, value in found.items()
        )
    )
    if options.out is not None:
        write_json(options.out, found)


if __name__ == "__main__":
    main()
