"""Instruction -> T5 embeddings, frozen.

EditAR tokenises the raw instruction (no caption cleaning), right-pads to 120 tokens and gives T5 the
attention mask; the outputs at pad positions are not zeroed and the GPT attends to them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from editar.config import TextConfig
from editar.errors import ConfigError
from editar.models.nano_t5 import NanoT5
from editar.runtime.device import pick_dtype, send
from editar.runtime.files import some
from editar.runtime.hub import from_pretrained
from editar.runtime.log import say

VOCABULARY_FILE = Path(__file__).with_name("nano_vocabulary.json")


class TextTokens(NamedTuple):
    """Right-padded ids (B, L) int64; 0 is T5's pad token, and nothing else is 0."""

    ids: torch.Tensor

    @property
    def mask(self) -> torch.Tensor:
        """(B, L) int64, 1 where a token is."""
        return (self.ids != 0).long()


class TextEncoder:
    """Tokenizer and frozen T5 encoder; `encoder(texts)` -> (B, L, C) in the encoder's dtype."""

    def __init__(self, cfg: TextConfig, device: torch.device) -> None:
        self.cfg, self.device = cfg, device
        self.truncated = 0
        self.named: set[str] = set()  # unknown words that were told
        if cfg.name == "nano":
            self.tokenizer: WordTokenizer | HubTokenizer = WordTokenizer(cfg.max_tokens, cfg.extra_words)
            self.model: nn.Module = NanoT5(cfg, self.tokenizer.size)
        else:
            self.tokenizer = HubTokenizer(cfg.name, cfg.max_tokens)
            self.model = load_t5(cfg, device)
        self.model.to(device=device, dtype=pick_dtype(cfg.dtype, device))  # type: ignore[call-arg]
        self.model.eval().requires_grad_(False)

    def tokenize(self, texts: list[str]) -> TextTokens:
        """Raw instructions -> ids and mask on the CPU; too long ones are cut with one warning each run, and words that
        the encoder does not know are named once."""
        self.name_unknown(texts)
        tokens, cut = self.tokenizer(texts)
        if cut and not self.truncated:
            say(f"warning: an instruction has more than {self.cfg.max_tokens} tokens; the rest is ignored")
        self.truncated += cut
        return tokens

    def name_unknown(self, texts: Iterable[str], where: str = "") -> None:
        """A warning with the words in `texts` that are not known and were not named before."""
        new = [word for word in self.tokenizer.unknown(texts) if word not in self.named]
        if new:
            self.named |= set(new)
            say(
                f"warning: {where}the text encoder does not know: {some(new, 12)}; all such words look the same to it. "
                "A training can add them: text.extra_words=[...] (docs/finetune.md)"
            )

    @torch.no_grad()
    def embed(self, tokens: TextTokens) -> torch.Tensor:
        """(B, L) ids on the CPU -> (B, L, C), pad positions included. Equal texts are encoded once."""
        distinct, place = tokens.ids.unique(dim=0, return_inverse=True)
        if repeated := len(distinct) < len(tokens.ids):
            tokens = TextTokens(distinct)
        ids, mask = (send(tensor, self.device) for tensor in (tokens.ids, tokens.mask))
        found = self.model(input_ids=ids, attention_mask=mask).last_hidden_state
        return found[send(place, self.device)] if repeated else found

    def __call__(self, texts: list[str]) -> torch.Tensor:
        return self.embed(self.tokenize(texts))


class WordTokenizer:
    """Whole words of the nano world from a committed list, then `extra_words`; id 0 pad, 1 end, 2 unknown."""

    def __init__(self, max_tokens: int, extra_words: Sequence[str] = ()) -> None:
        words = json.loads(VOCABULARY_FILE.read_text(encoding="utf-8"))
        if known := [word for word in extra_words if word in words]:
            raise ConfigError(f"text.extra_words: {some(known)} known already; leave out")
        words += extra_words
        self.ids = {word: index + 3 for index, word in enumerate(words)}
        self.size = len(words) + 3
        self.max_tokens = max_tokens

    def __call__(self, texts: list[str]) -> tuple[TextTokens, int]:
        """-> tokens and how many texts were cut."""
        ids = torch.zeros(len(texts), self.max_tokens, dtype=torch.long)
        cut = 0
        for row, text in enumerate(texts):
            words = [self.ids.get(word, 2) for word in self.words(text)]
            cut += len(words) + 1 > self.max_tokens
            words = [*words[: self.max_tokens - 1], 1]
            ids[row, : len(words)] = torch.tensor(words)
        return TextTokens(ids), cut

    @staticmethod
    def words(text: str) -> list[str]:
        return re.findall(r"[a-z]+", text.lower())

    def unknown(self, texts: Iterable[str]) -> list[str]:
        """Words without a row of their own, in the order of their appearance."""
        return list(dict.fromkeys(word for text in texts for word in self.words(text) if word not in self.ids))


class HubTokenizer:
    """The tokenizer of a T5 checkpoint: right padding to `max_tokens`, truncation, raw text."""

    def __init__(self, name: str, max_tokens: int) -> None:
        from transformers import AutoTokenizer

        self.tokenizer = from_pretrained(AutoTokenizer, name)
        self.max_tokens = max_tokens

    def __call__(self, texts: list[str]) -> tuple[TextTokens, int]:
        whole = self.tokenizer(texts)["input_ids"]
        cut = sum(len(ids) > self.max_tokens for ids in whole)
        batch = self.tokenizer(
            texts, max_length=self.max_tokens, padding="max_length", truncation=True, return_tensors="pt"
        )
        return TextTokens(batch["input_ids"]), cut

    def unknown(self, texts: Iterable[str]) -> list[str]:
        """None: words are spelled in pieces."""
        return []


def load_t5(cfg: TextConfig, device: torch.device) -> nn.Module:
    """Raises ConfigError for embeddings of another width than `cfg.dim`."""
    from transformers import T5EncoderModel

    model = from_pretrained(T5EncoderModel, cfg.name, dtype=pick_dtype(cfg.dtype, device))
    width = model.config.d_model
    if width != cfg.dim:
        raise ConfigError(f"text.dim={cfg.dim} but {cfg.name} gives {width}-d embeddings")
    return model
