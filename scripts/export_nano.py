"""Write held-out samples of the nano world as a public benchmark, for `python -m editar.eval`.

python scripts/export_nano.py pie_bench outputs/nano_pie --count 40
python -m editar.eval benchmark=pie_bench root=outputs/nano_pie checkpoint=reference/nano output_dir=outputs/pie

python scripts/export_nano.py depth outputs/nano_depth --count 40
python -m editar.eval benchmark=depth root=outputs/nano_depth checkpoint=reference/nano output_dir=outputs/depth \
    "prompt='given the depth, generate {}'"
"""

from __future__ import annotations

import argparse
from pathlib import Path

from editar.config.fields import LARGEST
from editar.errors import ConfigError
from editar.evaluation.nano.export import PROMPTS, export_pie_bench, export_translation
from editar.runtime.entry import at_least, script
from editar.runtime.files import new_folder
from editar.runtime.log import echo


@script("export_nano")
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("benchmark", choices=["pie_bench", *PROMPTS])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--count", type=at_least(1), default=40)
    parser.add_argument("--seed", type=at_least(0), default=0, help="of the held-out samples")
    args = parser.parse_args(argv)
    if args.count < 1 or not 0 <= args.seed <= LARGEST:
        raise ConfigError(f"--count {args.count} must be at least 1, --seed {args.seed} between 0 and {LARGEST}")
    with new_folder(args.folder) as partial:
        if args.benchmark == "pie_bench":
            export_pie_bench(partial, args.count, args.seed)
        else:
            export_translation(args.benchmark, partial, args.count, args.seed)
    echo(f"{args.count} samples in {args.folder}")


if __name__ == "__main__":
    main()
