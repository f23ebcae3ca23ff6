"""A downloaded data set to validated local shards that the training reads.

    python scripts/prepare_data.py pipe downloads/PIPE data/pipe
    python scripts/prepare_data.py multigen_depth hf://limingcv/MultiGen-20M_depth data/depth --files 0:40
    python scripts/prepare_data.py seed_unsplash downloads/SEED-Data-Edit-Part1-Unsplash data/seed --limit 20000

Interrupted at any point, the same command goes on; on a finished folder it does nothing. The folder
gets manifest.json (rows, checksums), shards/, dropped.jsonl (what was left out and why) and
contact_sheet.png (look at it).
"""

from __future__ import annotations

import argparse
from pathlib import Path

from editar.data.prepare.prepare import SOURCES, prepare
from editar.data.prepare.request import Request
from editar.runtime.entry import at_least, script


@script("prepare_data")
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", choices=SOURCES)
    parser.add_argument("origin", metavar="FROM", help="folder of the download, or hf://owner/name[@revision]")
    parser.add_argument("folder", metavar="TO", type=Path, help="folder to make")
    parser.add_argument("--split", default="train", help="of the parquet sets (train)")
    parser.add_argument(
        "--limit", type=int, metavar="N", help="only the first N rows; SEED: N pairs, of the first images"
    )
    parser.add_argument(
        "--files", default=":", metavar="A:B", help="only input files A to B-1 by name; SEED: parts 0:B"
    )
    parser.add_argument("--rows-per-shard", type=at_least(1), default=1000, metavar="N")
    parser.add_argument("--workers", type=at_least(0), default=0, metavar="N", help="processes (all cores)")
    parser.add_argument("--allow-truncated", action="store_true", help="SEED: take what an incomplete archive holds")
    prepare(Request(**vars(parser.parse_args())))


if __name__ == "__main__":
    main()
