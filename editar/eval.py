"""Score a checkpoint: `python -m editar.eval checkpoint=reference/nano output_dir=outputs/eval`."""

from editar.config import EvalConfig
from editar.evaluation.run import evaluate
from editar.runtime.entry import run


def main() -> None:
    run(EvalConfig, "eval", evaluate)


if __name__ == "__main__":
    main()
