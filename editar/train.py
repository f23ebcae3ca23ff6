"""Train EditAR: `python -m editar.train experiment=nano output_dir=runs/nano`, or under torchrun."""

from editar.config import TrainConfig
from editar.runtime.entry import run


def run_training(cfg: TrainConfig) -> None:
    from editar.training.loop import train  # here, because the help text needs no torch

    train(cfg)


def main() -> None:
    run(TrainConfig, "train", run_training)


if __name__ == "__main__":
    main()
