"""What a fourth attack found, by somebody who knew neither the tests nor the earlier ones."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from editar.config import EditConfig, EvalConfig, TrainConfig
from editar.data.prepare.prepare import prepare
from editar.data.prepare.request import Request
from editar.data.tables import open_table
from editar.edit import edit
from editar.errors import BenchmarkError, CheckpointError, ConfigError, DataError, TrainingError
from editar.evaluation.pie_bench.dataset import load_items
from editar.evaluation.run import evaluate
from editar.generation.edit_list import read_lines
from editar.runtime.entry import load_config, told_in_one_line
from editar.runtime.files import load_weights, parse_json, save_weights, weights_header
from editar.sampling.pipeline import EditPipeline
from editar.training.loop import train
from editar.weights.convert import export_official, import_weights
from editar.weights.load import vq_checksum
from editar.weights.read import read_checkpoint
from editar.weights.run_checkpoint import latest_checkpoint
from scripts.export_run import export
from tests.helpers import miniature
from tests.helpers.pie import GOLDEN
from tests.helpers.tiny import ROOT, tiny_overrides, train_config


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


def test_a_tokenizer_of_another_training_is_refused(tiny_run: Path, tmp_path: Path) -> None:
    """It has the same shapes, and would draw noise."""
    run = Path(shutil.copytree(tiny_run, tmp_path / "run"))
    other = load_weights(run / "tokenizer.safetensors")
    other["encoder.conv_in.weight"] += 0.01
    save_weights(other, run / "tokenizer.safetensors")
    for start in (lambda: EditPipeline.from_pretrained(run, "cpu"), lambda: export(run, tmp_path / "exported")):
        with pytest.raises(CheckpointError, match="the GPT was trained on the codes of a tokenizer with checksum"):
            start()
    assert not (tmp_path / "exported").exists()


def test_every_pair_of_weights_names_its_tokenizer(tiny_run: Path, tiny_tokenizer: Path, tmp_path: Path) -> None:
    export(tiny_run, tmp_path / "exported")
    EditPipeline.from_pretrained(tiny_run, "cpu").save_pretrained(tmp_path / "saved")
    import_weights(tiny_run, tmp_path / "imported", tokenizer=str(tiny_tokenizer))
    shipped = [ROOT / "reference/nano", ROOT / "reference/nano_pairs"]
    for folder in (tiny_run, *(tmp_path / name for name in ("exported", "saved", "imported")), *shipped):
        named = weights_header(folder / "model.safetensors")["tokenizer"]
        assert named == vq_checksum(load_weights(folder / "tokenizer.safetensors"))
        EditPipeline.from_pretrained(folder, "cpu")


def test_an_expanded_tensor_is_named(tmp_path: Path) -> None:
    """A file of some kB that would fill 4 TB."""
    torch.save({"model": {"tok_embeddings.weight": torch.zeros(1).expand(2**20, 2**20)}}, tmp_path / "w.pt")
    with pytest.raises(CheckpointError, match=r"w\.pt: its tensors take 4,398 GB; no model here has so many"):
        read_checkpoint(tmp_path / "w.pt")


def test_a_cache_cut_short_is_mended(tiny_run: Path, tiny_tokenizer: Path, tmp_path: Path) -> None:
    cache = Path(shutil.copytree(tiny_run / "codes", tmp_path / "codes"))
    shard = next(cache.rglob("codes-*.parquet"))
    before = shard.read_bytes()
    shard.write_bytes(before[: len(before) // 2])
    train(train_config(*tiny_overrides(tmp_path / "run", tiny_tokenizer, f"data.cache={cache}", "steps=1")))
    assert shard.read_bytes() == before


def test_codes_of_another_row_are_named(tiny_run: Path, tiny_tokenizer: Path, tmp_path: Path) -> None:
    cache = Path(shutil.copytree(tiny_run / "codes", tmp_path / "codes"))
    shard = next(cache.rglob("codes-*.parquet"))
    table = pq.read_table(shard)
    pq.write_table(table.take(list(reversed(range(len(table))))), shard)
    with pytest.raises(DataError, match=r"in the place of nano/\d+ are the codes of nano/\d+; remove that folder"):
        train(train_config(*tiny_overrides(tmp_path / "run", tiny_tokenizer, f"data.cache={cache}", "steps=1")))


def test_a_column_of_numbers_is_no_text(tmp_path: Path) -> None:
    file = next(miniature.write_multigen_depth(tmp_path / "raw", 4, files=1).rglob("*.parquet"))
    table = pq.read_table(file)
    pq.write_table(table.set_column(table.schema.get_field_index("text"), "text", pa.array(range(4))), file)
    with pytest.raises(DataError, match="no row was kept"):
        prepare(Request("multigen_depth", str(tmp_path / "raw"), tmp_path / "out"))
    assert "text is no text" in (tmp_path / "out/dropped.jsonl").read_text()


def test_a_byte_order_mark_is_no_part_of_a_list(tmp_path: Path) -> None:
    text = json.dumps({"image": "a.png", "instruction": "x"})
    (tmp_path / "list.jsonl").write_text(text, encoding="utf-8-sig")
    assert [edit.instruction for edit in read_lines(tmp_path / "list.jsonl", tmp_path)] == ["x"]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("gpt=null", "gpt is one of 3b, b, l, nano"),
        ("+source@data.sources.a b=folder", "not readable as KEY=VALUE"),
        ("optim.lr='1", "not readable as KEY=VALUE"),
    ],
)
def test_an_override_that_hydra_cannot_read_is_named(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as told:
        load_config(TrainConfig, "train", ["output_dir=x", override])
    assert str(told.value).startswith(override)


def test_weights_of_more_source_images_say_so(tiny_tokenizer: Path, tmp_path: Path) -> None:
    given = tiny_overrides(tmp_path / "run", tiny_tokenizer, f"init_from={ROOT / 'reference/nano_pairs'}")
    with pytest.raises(CheckpointError, match=r"these weights need .*data\.images=2"):
        train(train_config(*given))


def test_an_official_export_replaces_nothing(tiny_run: Path, tiny_tokenizer: Path, tmp_path: Path) -> None:
    (tmp_path / "o.pt").write_text("mine")
    with pytest.raises(CheckpointError, match=r"o\.pt exists already"):
        export_official(tiny_run, tmp_path / "o.pt")
    with pytest.raises(CheckpointError, match=r"holds no config\.yaml of a GPT"):
        export_official(tiny_tokenizer, tmp_path / "new.pt")
    assert (tmp_path / "o.pt").read_text() == "mine"


def test_a_folder_takes_no_second_picture(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="begins with a folder; of several pictures each is a file"):
        edit(load_config(EditConfig, "edit", ["checkpoint=x", f"images=[{tmp_path},b.png]", "instruction=x"]))


def test_a_run_whose_checkpoints_were_removed_is_not_trained_anew(
    tiny_run: Path, tiny_tokenizer: Path, tmp_path: Path
) -> None:
    run = Path(shutil.copytree(tiny_run, tmp_path / "run"))
    for checkpoint in (run / "checkpoints").iterdir():
        shutil.rmtree(checkpoint)
    with pytest.raises(ConfigError, match=r"holds model\.safetensors, but no checkpoint to go on from"):
        train(train_config(*tiny_overrides(run, tiny_tokenizer, "steps=4", "eval_every=4", "save_every=2")))


def test_a_training_without_reader_or_git(tiny_tokenizer: Path, tmp_path: Path) -> None:
    """Its output is a pipe that nobody reads, and `git` hangs."""
    bin = tmp_path / "bin"
    bin.mkdir()
    (bin / "git").write_text("#!/bin/sh\nexec sleep 300\n")
    (bin / "git").chmod(0o755)
    given = " ".join(tiny_overrides(tmp_path / "run", tiny_tokenizer, "steps=1"))
    command = f"{sys.executable} -m editar.train {given}"
    settings = os.environ | {"PATH": f"{bin}:{os.environ['PATH']}"}
    silent = ["bash", "-c", f"set -o pipefail; {command} 2>&1 | true"]
    assert subprocess.run(silent, cwd=ROOT, env=settings, timeout=200).returncode == 0
    assert latest_checkpoint(tmp_path / "run") is not None
    helps = ["bash", "-c", f"set -o pipefail; {sys.executable} -m editar.train --help | head -n 1"]
    done = subprocess.run(helps, cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "") and done.stdout.startswith("usage: ")
    full = subprocess.run(["bash", "-c", f"{sys.executable} -m editar.edit image=x 2>/dev/full"], cwd=ROOT)
    assert full.returncode == 2


def test_a_lock_without_room(tmp_path: Path) -> None:
    code = "import resource\nfrom pathlib import Path\nfrom editar.runtime.lock import sole_run\n"
    code += "resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))\nsole_run(Path('run')).__enter__()"
    settings = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=settings, capture_output=True, text=True)
    assert "ConfigError: run/running.lock: cannot be written (File too large); make room there" in done.stderr
    assert not list((tmp_path / "run").iterdir())


def test_small_things_of_the_fifth_try(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ConfigError, match="image is null, and region needs one"):
        load_config(EditConfig, "edit", ["checkpoint=x", "image=null", "instruction=x", "region=0,0,64"])
    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    pair = {"source": "a.png", "target": "a.png", "instruction": "x"}
    (tmp_path / "pairs.jsonl").write_text(json.dumps(pair))
    (tmp_path / "made").mkdir()
    Image.new("RGB", (1, 1)).save(tmp_path / "made/0.png")
    given = ["benchmark=folder", f"root={tmp_path}", f"results={tmp_path / 'made'}", f"output_dir={tmp_path / 'out'}"]
    with pytest.raises(BenchmarkError, match=r"0\.png: 1 pixels wide; SSIM needs 11"):
        evaluate(load_config(EvalConfig, "eval", given))
    with pytest.raises(SystemExit, match="2"), told_in_one_line("editar.train"):
        torch.empty(2**40, 2**40)
    assert "out of memory" in capsys.readouterr().err


def test_int8_takes_no_half_precision(tiny_run: Path) -> None:
    with pytest.raises(ConfigError, match="int8=true needs a float32 model on a CPU"):
        EditPipeline.from_pretrained(tiny_run, "cpu", int8=True, dtype="bfloat16")


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
