"""Train a VQ tokenizer: `python -m editar.train_tokenizer output_dir=runs/tokenizer`, or under torchrun."""

from editar.config import TokenizerTrainConfig
from editar.runtime.entry import run


def run_tokenizer_training(cfg: TokenizerTrainConfig) -> None:
    from editar.training.tokenizer.loop import train_tokenizer  # here, because the help text needs no torch

    train_tokenizer(cfg)


def main() -> None:
    run(TokenizerTrainConfig, "train_tokenizer", run_tokenizer_training)


if __name__ == "__main__":
    main()
