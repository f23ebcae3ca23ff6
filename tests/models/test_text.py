"""The T5 side through files in the format of the hub: the embeddings are those of the raw model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer, PreTrainedTokenizerFast, T5Config, T5EncoderModel

from editar.config import TextConfig
from editar.errors import ConfigError
from editar.models.text import TextEncoder

WORDS = [
    "<pad>", "</s>", "<unk>", "make", "the", "red", "circle", "blue", "remove", "a", "small", "square", "big", "them",
    ",",
]  # fmt: skip
CPU = torch.device("cpu")
SHORT, LONG = "make the red circle blue", "make the red circle blue , remove a small square , make them big"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A T5 encoder with random weights and a fast tokenizer, saved as on the hub."""
    path = tmp_path_factory.mktemp("t5")
    tokenizer = Tokenizer(WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.post_processor = TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=512
    )
    fast.save_pretrained(path)
    torch.manual_seed(3)
    shape = T5Config(
        vocab_size=len(WORDS), d_model=16, d_kv=4, d_ff=32, num_layers=2, num_heads=4, feed_forward_proj="gated-gelu"
    )
    T5EncoderModel(shape).save_pretrained(path)
    return path


def encoder(folder: Path, max_tokens: int = 12) -> TextEncoder:
    return TextEncoder(TextConfig(name=str(folder), dim=16, max_tokens=max_tokens, dtype="bfloat16"), CPU)


def test_embeddings_are_the_raw_models(folder: Path) -> None:
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= {path.name for path in folder.iterdir()}
    texts = [SHORT, "remove a small square"]
    ours = encoder(folder)(texts)
    batch = AutoTokenizer.from_pretrained(folder)(
        texts, padding="max_length", max_length=12, truncation=True, return_tensors="pt"
    )
    model = T5EncoderModel.from_pretrained(folder).eval()
    with torch.no_grad():
        raw = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).last_hidden_state
    assert ours.shape == (2, 12, 16) and ours.dtype == torch.float32
    torch.testing.assert_close(ours, raw, rtol=0, atol=1e-6)
    assert not ours.requires_grad


def test_right_padding_to_the_full_length(folder: Path) -> None:
    tokens = encoder(folder).tokenize([SHORT, "red"])
    words = [WORDS.index(word) for word in SHORT.split()]
    assert tokens.ids.tolist() == [[*words, 1, *[0] * 6], [WORDS.index("red"), 1, *[0] * 10]]
    assert tokens.mask.tolist() == [[1] * 6 + [0] * 6, [1] * 2 + [0] * 10]


def test_pad_positions_are_not_zeroed_and_do_not_act(folder: Path) -> None:
    short, long = encoder(folder, 8)([SHORT]), encoder(folder, 12)([SHORT])
    assert long[:, 6:].abs().sum(-1).min() > 0.1
    torch.testing.assert_close(short[:, :6], long[:, :6], rtol=0, atol=1e-6)


def test_equal_texts_are_encoded_once(folder: Path) -> None:
    text, seen = encoder(folder), []
    text.model.register_forward_pre_hook(lambda model, args, given: seen.append(given["input_ids"]), with_kwargs=True)
    found = text([SHORT, "red", SHORT, "red", "blue"])
    assert [len(ids) for ids in seen] == [3]
    for row, words in enumerate([SHORT, "red", SHORT, "red", "blue"]):
        torch.testing.assert_close(found[row], text([words])[0], rtol=0, atol=1e-6)


def test_truncation_warns_once_and_counts(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = encoder(folder, 6)
    capsys.readouterr()  # transformers' progress bar
    assert text([SHORT]).shape == (1, 6, 16)
    assert (text.truncated, capsys.readouterr().err) == (0, "")
    tokens = text.tokenize([LONG, SHORT, LONG])
    assert tokens.ids[0, -1] == 1  # the end token survives
    assert text.truncated == 2
    assert capsys.readouterr().err.count("more than 6 tokens") == 1
    text([LONG])
    assert text.truncated == 3
    assert "more than 6 tokens" not in capsys.readouterr().err


def test_mistakes_are_one_line(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"text.dim=32 but .* gives 16-d embeddings"):
        TextEncoder(TextConfig(name=str(folder), dim=32, max_tokens=8), CPU)
    with pytest.raises(ConfigError, match=f"cannot load {tmp_path}") as error:
        TextEncoder(TextConfig(name=str(tmp_path), dim=16, max_tokens=8), CPU)
    assert "\n" not in str(error.value)
