#!/usr/bin/env python
"""Chosen examples of scored folders as a figure: source, then a column per method, as Figures 3, 4 and 7 to 14.

    python scripts/figure_examples.py outputs/pie outputs/ip2p --ids 000000000000 111000000004 --out figure3.pdf
    python scripts/figure_examples.py ours=outputs/depth --draws 4 --out figure12.png

SCORED is a folder written by `python -m editar.eval`, all of one benchmark; NAME=SCORED calls its method NAME.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from editar.errors import BenchmarkError
from editar.report.examples import draw_examples
from editar.report.merge import load_scored, merge
from editar.runtime.entry import at_least, script
from editar.runtime.files import spare_inputs
from editar.runtime.log import echo


@script("figure_examples")
def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scored", nargs="+", metavar="SCORED")
    parser.add_argument("--ids", nargs="+", default=[], help="which pictures, as in scores.json (six, evenly spaced)")
    parser.add_argument(
        "--draws", type=at_least(1), default=1, help="pictures per method, of protocol=controlnet++ (1)"
    )
    parser.add_argument("--out", type=Path, default=Path("examples.png"), help="a .png, .pdf or .svg")
    options = parser.parse_args(arguments)
    spare_inputs(options.out, [argument.partition("=")[2] or argument for argument in options.scored])
    evaluations = merge([load_scored(argument) for argument in options.scored])
    if len(evaluations) > 1:
        found = ", ".join(evaluation.benchmark for evaluation in evaluations)
        raise BenchmarkError(f"the folders are of several benchmarks ({found}); give those of one")
    draw_examples(evaluations[0], options.out, options.ids, options.draws)
    echo(options.out)


if __name__ == "__main__":
    main()
