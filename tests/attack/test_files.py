"""Files from outside that are damaged, replaced or odd: each entry names the file in one line, and nothing is lost."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from editar.config import TrainConfig, from_yaml
from editar.data.codes import stored_manifest
from editar.data.folder import FolderTable
from editar.data.prepare.prepare import prepare
from editar.data.prepare.request import Request
from editar.errors import BenchmarkError, ConfigError, DataError, UserError
from editar.generation.generate import read_cost
from editar.generation.result_folder import ResultFolder
from editar.runtime.files import parse_json, read_starts
from editar.runtime.lock import NAME, sole_run
from editar.sampling.pipeline import EditPipeline
from editar.tables.scores import load_evaluation
from editar.weights.read import read_checkpoint
from editar.weights.run_checkpoint import damage
from tests.helpers import miniature
from tests.helpers.hostile import names_in_one_line
from tests.helpers.tiny import ROOT

DEEP = b"[" * 100_000


BROKEN_JSON = {"empty": b"", "half": b'{"a": ', "list": b"[]", "number": b"7", "no text": b"\xff\xfe", "deep": DEEP}


BROKEN_YAML = {
    "no text": b"\xff\xfe\x00",
    "UTF-16": "steps: 4\n".encode("utf-16"),
    "number": b"3",
    "list": b"- 1\n- 2\n",
    "half": b"gpt: {dim: 3",
    "no mapping of its own": b"a: [1, 2\nb: }",
    "code": b"!!python/object/apply:os.system ['true']",
    "key twice": b"seed: 0\nseed: 3\n",
    "deep": b"[" * 3000,
}


@pytest.mark.parametrize("name", BROKEN_YAML)
def test_a_damaged_config_is_named(run: Path, name: str) -> None:
    (run / "config.yaml").write_bytes(BROKEN_YAML[name])
    for opened in (lambda: EditPipeline.from_pretrained(run, "cpu"), lambda: read_checkpoint(run)):
        with pytest.raises(ConfigError, match=r"config\.yaml: damaged \(") as error:
            opened()
        names_in_one_line(error, str(run / "config.yaml"))


@pytest.mark.parametrize(
    ("change", "said"),
    [(("seed: 0", "sead: 0"), "unknown key 'sead'"), (("base: 50.0", "base: .nan"), "not a finite number")],
)
def test_a_config_with_wrong_settings_is_named(run: Path, change: tuple[str, str], said: str) -> None:
    path = run / "config.yaml"
    path.write_text(path.read_text().replace(*change, 1))
    with pytest.raises(ConfigError, match=said) as error:
        EditPipeline.from_pretrained(run, "cpu")
    names_in_one_line(error, f"{path}: ")


@pytest.mark.parametrize("name", BROKEN_JSON)
def test_damaged_json_is_named_wherever_it_is_read(tmp_path: Path, run: Path, name: str) -> None:
    content, count = BROKEN_JSON[name], 0

    def refused(file: str, error: type[UserError], read: Callable[[], Any]) -> None:
        nonlocal count
        path = tmp_path / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        with pytest.raises(error) as found:
            read()
        names_in_one_line(found, path.name)
        path.unlink()
        count += 1

    request = Request("pipe", str(miniature.write_pipe(tmp_path / "download", 4)), tmp_path / "prepared", workers=1)
    refused("cache/nano/manifest.json", DataError, lambda: stored_manifest(str(tmp_path / "cache"), "nano"))
    refused("prepared/manifest.json", DataError, lambda: prepare(request))
    refused("prepared/unfinished.json", DataError, lambda: prepare(request))
    refused("own/pairs.jsonl", DataError, lambda: len(FolderTable(tmp_path / "own")) or FolderTable(tmp_path / "none"))
    refused("scores.json", BenchmarkError, lambda: load_evaluation(tmp_path / "scores.json"))
    if name != "list":
        refused("provenance.json", ConfigError, lambda: read_starts(tmp_path))
        refused("map.json", BenchmarkError, lambda: ResultFolder(tmp_path / "map.json"))
    if name not in ("list", "number"):
        refused("generation.json", BenchmarkError, lambda: read_cost(tmp_path))
    (tmp_path / NAME).write_bytes(content)
    with sole_run(tmp_path):
        pass
    (run / "checkpoints/step_0000004/state.json").write_bytes(content)
    assert damage(run / "checkpoints/step_0000004")
    print(f"{name}: {count + 2} files")


def test_deep_json_is_a_value_error() -> None:
    with pytest.raises(ValueError, match="nested without end"):
        parse_json(DEEP)


def test_null_characters_of_json() -> None:
    for text in ('["a\\u0000"]', '["\\\\\\u0000b"]', '{"a\\u0000": 1}'):
        for given in (text, text.encode()):
            with pytest.raises(ValueError, match="null character"):
                parse_json(given)
    assert parse_json(r'["\\u0000"]') == [r"\u0000"]  # a backslash and five letters


def test_yaml_that_grows_without_end(tmp_path: Path) -> None:
    lines = ["a0: &a0 [x, x]", *(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]" for i in range(1, 60))]
    (tmp_path / "config.yaml").write_text("\n".join(lines))
    with pytest.raises(ConfigError, match=r"config\.yaml: damaged \(more than 32 aliases"):
        from_yaml(TrainConfig, tmp_path / "config.yaml")
    (tmp_path / "config.yaml").write_text("seed: &a [*a]")
    with pytest.raises(ConfigError, match=r"config\.yaml: damaged \(Circular reference"):
        from_yaml(TrainConfig, tmp_path / "config.yaml")


def test_half_of_a_surrogate_pair_in_json() -> None:
    for escaped in (r'"\ud83d\ude00"', r'"\udcff"'):  # an emoji; a byte of a name that is not UTF-8
        assert parse_json(escaped) == parse_json(escaped.encode())
    for escaped in (r'{"\ud800": 1}', r'"\uDFFF"'):
        with pytest.raises(ValueError, match="surrogates not allowed"):
            parse_json(escaped.encode())


def test_a_config_that_ends_early_is_not_read(tmp_path: Path) -> None:
    text = (ROOT / "reference/nano/config.yaml").read_text()
    for section in ("sampling", "lora", "optim", "loss", "drop", "data"):
        (tmp_path / "config.yaml").write_text(text[: text.index(f"\n{section}:") + 1])
        with pytest.raises(ConfigError, match="ends early, without wandb, the last section"):
            from_yaml(TrainConfig, tmp_path / "config.yaml")
