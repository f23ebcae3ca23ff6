"""Train EditAR: `python -m editar.train experiment=nano output_dir=runs/nano`, or under torchrun."""

from editar.config import TrainConfig
from editar.runtime.entry import run
from editar.training.loop import train


def main() -> None:
    run(TrainConfig, "train", train)


if __name__ == "__main__":
    main()
