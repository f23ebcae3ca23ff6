"""Download outside weights as third_party/weights.yaml describes them.

python scripts/fetch_weights.py --list
python scripts/fetch_weights.py edit                 # all that editing with the released model needs
python scripts/fetch_weights.py train --dir /data/checkpoints
"""

from __future__ import annotations

import argparse
from pathlib import Path

from editar.runtime.entry import script
from editar.runtime.log import echo
from editar.runtime.manifest import CHECKPOINTS, load_manifest, missing_files
from editar.weights.fetch import fetch


def listing(folder: Path) -> None:
    """One line per weight: name, state, uses, licence, what it is."""
    for name, entry in load_manifest().items():
        state = "missing" if missing_files(entry, folder) else "here"
        echo(f"{name:24} {state:8} {','.join(entry.used_by) or '-':15} {entry.what} [{entry.licence}]")


@script("fetch_weights")
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="weights by name, or edit, train, evaluate, baselines: all for that")
    parser.add_argument("--list", action="store_true", help="show the known weights and what is here already")
    parser.add_argument(
        "--dir", type=Path, default=CHECKPOINTS, help="where to put them (default: checkpoints, where they are found)"
    )
    options = parser.parse_args()
    if options.list or not options.names:
        listing(options.dir)
    else:
        fetch(options.names, options.dir)


if __name__ == "__main__":
    main()
