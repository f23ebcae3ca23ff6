"""Any text on the command line arrives byte for byte, through Hydra, OmegaConf and config.yaml."""

from __future__ import annotations

import random
import re
from dataclasses import fields, is_dataclass
from typing import Any, get_type_hints

import pytest
from omegaconf import OmegaConf

from editar.config import EditConfig, EvalConfig, TokenizerTrainConfig, TrainConfig, kind_of, to_dataclass, to_yaml
from editar.errors import ConfigError
from editar.runtime.entry import compose, load_config

STRINGS = 200
# What a shell lets through and some layer below might want for itself, and letters of many scripts.
PIECES = [
    *"'\"!;#&()[]{}<>,:=|*?~^%@`$\\/ .-+_", "${image}", "${oc.env:HOME}", "\\${", "\\'", "1e5", "null", "true", "~",
    "???", "it's", "add a cat", "0x1F", "1_000", "2026-11-25", "- a", "a: b", "%s", "{}", "\n", "\t", "\r", "é", "ß",
    "Ω", "д", "ש", "ع", "中文", "한", "😀", "👩‍🎨", "\u200b", "\u2028", "\ufeff", "\x07", "\x7f",
]  # fmt: skip


def strings(seed: int) -> list[str]:
    """Neither empty nor of the three forms that mean something else: null, ??? and text in quotes."""
    rng, found = random.Random(seed), []
    while len(found) < STRINGS:
        text = "".join(rng.choice(PIECES) for _ in range(rng.randint(1, 8)))
        if (
            text.strip()
            and text not in ("null", "???")
            and not re.fullmatch(r"(['\"])(\\\1|(?!\1).)*\1", text, re.DOTALL)
        ):
            found.append(text)
    return found


def text_keys(cls: Any, prefix: str = "") -> list[str]:
    """Every text of a config class that is not in a dict."""
    found = []
    for spec in fields(cls):
        kind, key = get_type_hints(cls)[spec.name], prefix + spec.name
        found += text_keys(kind, f"{key}.") if is_dataclass(kind) else [key]
    return found


ENTRIES = {"train": TrainConfig, "train_tokenizer": TokenizerTrainConfig, "edit": EditConfig, "eval": EvalConfig}
SPECIAL = {"prompt", "results", "data.sources.nano.prompt"}  # which have forms of their own


@pytest.mark.slow
@pytest.mark.parametrize("entry", ENTRIES)
def test_random_texts(entry: str) -> None:
    cls = ENTRIES[entry]
    keys = [key for key in text_keys(cls) if kind_of(cls, key)[1] and key not in SPECIAL]
    keys += ["data.sources.nano.path"] if entry == "train" else []
    lists = {key: strings(number) for number, key in enumerate(keys)}
    for index in range(STRINGS):
        given = {key: texts[index] for key, texts in lists.items()}
        node = compose(cls, entry, [f"{key}={text}" for key, text in given.items()])
        found = {key: OmegaConf.select(node, key) for key in keys}
        assert found == given
    print(f"{entry}: {len(keys)} keys ({', '.join(keys)}) x {STRINGS} texts")


def test_texts_survive_config_yaml() -> None:
    for text in strings(1000):
        given = TrainConfig(output_dir=text)
        given.data.cache = given.init_from = text
        stored = OmegaConf.create(to_yaml(given))
        found = OmegaConf.to_container(stored, resolve=True)
        assert isinstance(found, dict)
        assert (found["output_dir"], found["data"]["cache"], found["init_from"]) == (text, text, text)


def test_a_folder_named_by_an_interpolation_keeps_its_name() -> None:
    cfg = load_config(TrainConfig, "train", ["output_dir=runs/${seed}, it's \\${x}"])
    assert cfg.output_dir == "runs/${seed}, it's \\${x}"
    assert cfg.data.cache == f"{cfg.output_dir}/codes"
    again = to_dataclass(TrainConfig, OmegaConf.create(to_yaml(cfg)))  # type: ignore[arg-type]
    assert again == cfg


@pytest.mark.parametrize(
    ("given", "prompt"),
    [
        ("prompt='given {}'", "given {}"),
        ("prompt='given the depth, generate {}'", "given the depth, generate {}"),
        ('prompt="given {}"', "given {}"),
        ("prompt=given {}", "given {}"),
        ("prompt=it's {}", "it's {}"),
        (r"prompt='it\'s {}'", "it's {}"),
        ("prompt='a' {} 'b'", "'a' {} 'b'"),
        ("prompt=null", None),
    ],
)
def test_quotes_around_a_whole_text_are_hydras(given: str, prompt: str | None) -> None:
    assert load_config(EvalConfig, "eval", ["checkpoint=a", "output_dir=b", given]).prompt == prompt


def test_forms_that_are_no_texts_stay() -> None:
    common = ["output_dir=b", "stage=score"]
    found = load_config(EvalConfig, "eval", [*common, "results={a: b, c: d.json}"])
    assert found.results == {"a": "b", "c": "d.json"}
    assert load_config(EvalConfig, "eval", [*common, "results=it's, a #folder"]).results == "it's, a #folder"
    assert load_config(EvalConfig, "eval", [*common, "root=null", "networks.clip=null"]).networks.clip is None
    with pytest.raises(ConfigError, match=r"image=\?\?\? stands for a value that is missing"):
        load_config(EditConfig, "edit", ["image=???", "instruction=x", "checkpoint=y"])


def test_names_in_a_list_may_have_quotes() -> None:
    def names(images: str) -> list[str | None]:
        given = ["checkpoint=x", "instruction=x", f"images={images}"]
        cfg = load_config(EditConfig, "edit", given)
        return [cfg.image, *cfg.references]

    assert names("['a.png','b.png']") == names('["a.png", "b.png"]') == names("[a.png,b.png]") == ["a.png", "b.png"]
    assert names("['a, b.png',it's.png]") == ["a, b.png", "it's.png"]
    for wrong in ("[]", "[,b.png]", "[a.png,,b.png]"):
        with pytest.raises(ConfigError, match="lacks a name"):
            names(wrong)
