"""What training sees: a contact sheet of the first draws, and the realised shares.

    python scripts/inspect_data.py experiment=editar_xl
    python scripts/inspect_data.py --rows 1000:1024 --source pipe experiment=editar_xl

Each row of the sheet: source | target | id and instruction, after every transform.
"""

from __future__ import annotations

import argparse
import textwrap
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from editar.config import TrainConfig
from editar.data.loader import Item, Reader, TrainStream
from editar.data.sample import BadRow
from editar.data.sources import mixture_of, open_sources
from editar.errors import ConfigError
from editar.images import contact_sheet, picture_format, save_image
from editar.runtime.entry import at_least, load_config, script
from editar.runtime.files import spare_inputs
from editar.runtime.log import echo, say

SIDE = 192  # pixels of a picture on the sheet
SHARE_DRAWS = 10_000
SHOWN = 256  # rows of a sheet at most


@script("inspect_data")
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="settings of editar.train")
    parser.add_argument("--draws", type=at_least(1, most=SHOWN), default=24, help="how many draws to show")
    parser.add_argument("--source", help="show rows of this source instead of draws of the mixture")
    parser.add_argument("--rows", help="with --source: which rows, FIRST:END (0:24)")
    parser.add_argument("--out", type=Path, default=Path("outputs/inspect_data.png"), help="a picture, or a folder")
    options = parser.parse_args()
    out = options.out / "inspect_data.png" if options.out.is_dir() or not options.out.suffix else options.out
    picture_format(out)
    if options.rows and not options.source:
        raise ConfigError(f"--rows {options.rows} needs --source NAME, whose rows they are")
    cfg = load_config(TrainConfig, "train", ["output_dir=outputs/inspect_data", *options.overrides])
    spare_inputs(out, [source.path for source in cfg.data.sources.values() if source.path])
    sources = open_sources(cfg.data)
    readers = [Reader(source, None, cfg.image_size) for source in sources.values()]
    mixture = mixture_of(sources, cfg.seed)
    chosen, _ = mixture.locate(np.arange(SHARE_DRAWS, dtype=np.uint64))
    for index, (name, source) in enumerate(sources.items()):
        realised = np.mean(chosen == index)
        echo(f"{name:16} {len(source):>9} rows  {100 * realised:6.2f} % of {SHARE_DRAWS} draws")
    if options.source is None:
        stream = TrainStream(readers, mixture, cfg.seed)
        items = [item for _, item in stream.__getitems__(list(range(max(0, options.draws))))]
    elif options.source not in sources:
        raise ConfigError(f"--source {options.source}: not one of {', '.join(sources)}")
    else:
        source = sources[options.source]
        rows = range(len(source) + source.heldout)[parse_slice(options.rows or "0:24")]
        if len(rows) > SHOWN:
            raise ConfigError(f"--rows {options.rows}: {len(rows)} rows, a sheet shows at most {SHOWN}")
        items = list(readable(readers[list(sources).index(options.source)], rows))
    if not items:
        raise ConfigError("nothing to show: give --draws 1 or more, or --rows FIRST:END that the source has")
    for item in items:
        for row, reason in item.replaced:
            say(f"bad row {row}: {reason}")
    save_image(contact_sheet([sheet_row(item) for item in items]), out)
    echo(f"{len(items)} examples: {out}")


def parse_slice(text: str) -> slice:
    """FIRST:END -> slice. Raises ConfigError."""
    try:
        first, end = (int(part) for part in text.split(":"))
    except ValueError:
        raise ConfigError(f"--rows {text}: give FIRST:END, for example 0:24") from None
    return slice(max(0, first), max(0, end))


def readable(reader: Reader, rows: range) -> list[Item]:
    found = []
    for row in rows:
        try:
            found.append(reader.item(row, 1.0, 0.0))
        except BadRow as error:
            say(f"bad row {reader.source.row_id(row)}: {error}")
    return found


def sheet_row(item: Item) -> list[np.ndarray]:
    pictures = [np.asarray(Image.fromarray(p).resize((SIDE, SIDE))) for p in (*item.source, item.target)]
    card = Image.new("RGB", (SIDE * 2, SIDE), "white")
    lines = [f"{item.task}   {item.id}", "", *textwrap.wrap(item.instruction or "(empty)", 58)]
    ImageDraw.Draw(card).multiline_text((8, 8), "\n".join(lines), fill="black", spacing=4)
    return [*pictures, np.asarray(card)]


if __name__ == "__main__":
    main()
