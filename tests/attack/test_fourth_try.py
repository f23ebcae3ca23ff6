"""What a fourth attack found, by somebody who knew neither the tests nor the earlier ones."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from editar.data.prepare.prepare import prepare
from editar.data.prepare.request import Request
from editar.data.tables import open_table
from editar.errors import BenchmarkError, DataError, TrainingError
from editar.evaluation.pie_bench.dataset import load_items
from editar.generation.edit_list import read_lines
from editar.runtime.files import parse_json
from editar.training.loop import train
from editar.weights.run_checkpoint import latest_checkpoint
from tests.helpers import miniature
from tests.helpers.pie import GOLDEN
from tests.helpers.tiny import tiny_overrides, train_config


@pytest.mark.parametrize(
    ("script", "arguments", "message"),
    [
        ("score_tokenizer", ["run", "pictures", "--size", "1000000"], "1000000 is more than 4096"),
        ("inspect_data", ["--draws", "1000000"], "1000000 is more than 256"),
        (
            "inspect_data",
            ["--source", "nano", "--rows", "0:300", "experiment=nano"],
            "a sheet shows at most 256",
        ),
        ("push_to_hub", ["run", "o/n\n---\nx", "--save", "x"], "give the repository as owner/name"),
        ("prepare_data", ["webdataset", "a", "out", "--allow-truncated"], "--allow-truncated is of seed_unsplash"),
        ("prepare_data", ["seed_unsplash", "a", "out", "--split", "test"], "seed_unsplash has no splits"),
        ("ablate", ["out", "output_dir=a,b"], "output_dir is chosen for every run, below out"),
        ("ablate", ["out", "seed=0,1", "--eval", "checkpoint=mine"], "checkpoint is chosen for every run"),
    ],
)
def test_a_script_names_what_it_cannot_do(
    script: str,
    arguments: list[str],
    message: str,
    one_line: Callable[..., str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert message in one_line(f"scripts/{script}.py", *arguments)
    assert not list(tmp_path.iterdir())


def test_pipes_are_no_data(tmp_path: Path) -> None:
    """Each would wait for a writer for ever."""
    for name in ("a.tar", "a.parquet", "a.jsonl"):
        os.mkfifo(tmp_path / name)
    with pytest.raises(DataError, match=r"no \*\.tar in it"):
        prepare(Request("webdataset", str(tmp_path), tmp_path / "out"))
    with pytest.raises(DataError, match=r"no manifest\.json, state\.json, \*\.parquet or \*\.arrow"):
        open_table(tmp_path)
    with pytest.raises(DataError, match=r"a\.jsonl is no file; give a UTF-8 file"):
        read_lines(tmp_path / "a.jsonl", tmp_path)


def test_an_update_that_went_wrong_is_not_saved(tiny_tokenizer: Path, tmp_path: Path) -> None:
    """The last step's loss is that of the weights before it, and there is no next step to find it out."""
    wild = ["optim.lr=1e38", "optim.muon_lr=1e38"]
    given = tiny_overrides(tmp_path / "run", tiny_tokenizer, "steps=1", "optim.warmup_steps=0", *wild)
    with pytest.raises(TrainingError, match=r"after step 1: .* not finite, nothing of it is saved"):
        train(train_config(*given))
    assert not (tmp_path / "run/model.safetensors").exists() and latest_checkpoint(tmp_path / "run") is None


def test_a_text_that_is_not_utf8_is_left_out(tmp_path: Path) -> None:
    raw = miniature.write_webdataset(tmp_path / "raw", 6, texts={2: b"a \xff star", 4: "ein grüner Stern".encode()})
    manifest = prepare(Request("webdataset", str(raw), tmp_path / "out"))
    assert (manifest["rows"], manifest["dropped"]) == (5, {"text is not UTF-8": 1})
    assert any("grüner" in row["instruction"] for row in open_table(tmp_path / "out"))


@pytest.mark.parametrize("id", ["../../precious", "/tmp/evil", "a/b", "..", "", "a\nb"])
def test_an_id_that_is_no_file_name(id: str, tmp_path: Path) -> None:
    """It would be written, and read, outside of the results folder."""
    with pytest.raises(BenchmarkError, match="an id has only letters, digits, - and _"):
        load_items(changed_mapping(tmp_path, lambda entries: entries | {id: entries.popitem()[1]}))


def test_a_picture_path_with_a_null_byte(tmp_path: Path) -> None:
    def change(entries: dict[str, Any]) -> dict[str, Any]:
        next(iter(entries.values()))["image_path"] += "\0.jpg"
        return entries

    with pytest.raises(BenchmarkError, match="a text in it holds a null character"):
        load_items(changed_mapping(tmp_path, change))


def test_null_characters_of_json() -> None:
    for text in ('["a\\u0000"]', '["\\\\\\u0000b"]', '{"a\\u0000": 1}'):
        for given in (text, text.encode()):
            with pytest.raises(ValueError, match="null character"):
                parse_json(given)
    assert parse_json(r'["\\u0000"]') == [r"\u0000"]  # a backslash and five letters


def test_a_flipped_bit_in_a_prepared_folder_is_noticed(five_sources: dict[str, Path], tmp_path: Path) -> None:
    copy = Path(shutil.copytree(five_sources["multigen_depth"], tmp_path / "copy"))
    shard = next(copy.rglob("*.parquet"))
    content = bytearray(shard.read_bytes())
    content[len(content) // 3] ^= 1
    shard.write_bytes(content)
    table = open_table(copy)
    with pytest.raises(DataError, match=r"parquet: cannot be read \(.*CRC.*get the file anew"):
        [table[row] for row in range(len(table))]
    (copy / "manifest.json").unlink()
    with pytest.raises(DataError, match=r"its manifest\.json is gone"):
        open_table(copy)


def changed_mapping(folder: Path, change: Callable[[dict[str, Any]], dict[str, Any]]) -> Path:
    """A small PIE-Bench with another mapping_file.json."""
    copy = Path(shutil.copytree(GOLDEN / "data", folder / "data"))
    entries = json.loads((copy / "mapping_file.json").read_text())
    (copy / "mapping_file.json").write_text(json.dumps(change(entries)))
    return copy
