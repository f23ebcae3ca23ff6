"""Train a VQ tokenizer: `python -m editar.train_tokenizer output_dir=runs/tokenizer`, or under torchrun."""

from editar.config import TokenizerTrainConfig
from editar.runtime.entry import run
from editar.training.tokenizer.loop import train_tokenizer


def main() -> None:
    run(TokenizerTrainConfig, "train_tokenizer", train_tokenizer)


if __name__ == "__main__":
    main()
