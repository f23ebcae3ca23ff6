#!/usr/bin/env python
"""One page from scored folders, to open from disk: tables beside the paper's rows, plots, all pictures.

    python scripts/report.py outputs/pie outputs/ip2p --out report.html
    python scripts/report.py ours=outputs/a/scores.json outputs/b --out report.html --pictures 700

SCORED is a folder (or its scores.json) written by `python -m editar.eval`, of any benchmark;
NAME=SCORED calls its method NAME. The tables also go to the terminal and into report_TABLE.{txt,md,tex,csv,json}.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from editar.config import check_utf8
from editar.errors import ConfigError
from editar.report.merge import load_scored
from editar.report.page import PICTURES, write_comparison
from editar.runtime.entry import at_least, script


@script("report")
def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scored", nargs="+", metavar="SCORED")
    parser.add_argument("--out", type=Path, default=Path("report.html"))
    parser.add_argument("--title", default="EditAR evaluation")
    parser.add_argument(
        "--pictures", type=at_least(0), default=PICTURES, help="entries per benchmark with pictures (%(default)s)"
    )
    options = parser.parse_args(arguments)
    if options.out.suffix != ".html":
        raise ConfigError(f"--out {options.out}: the page is a .html")
    check_utf8("--title", options.title)
    scored = [load_scored(argument) for argument in options.scored]
    write_comparison(scored, options.out, options.title, options.pictures)


if __name__ == "__main__":
    main()
