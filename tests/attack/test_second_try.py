"""What a second, independent attack found: links, bit flips, impossible surroundings and values."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from editar.config import EditConfig, SamplingConfig, TrainConfig, from_yaml, override
from editar.data.codes import unpack_picture
from editar.data.prepare.prepare import prepare
from editar.data.prepare.request import Request
from editar.data.tables import open_table
from editar.edit import edit
from editar.errors import BenchmarkError, CheckpointError, ConfigError, DataError, ImageError
from editar.images import load_image
from editar.runtime.entry import load_config, told_in_one_line
from editar.runtime.files import load_weights, parse_json, save_weights, write_text
from editar.runtime.lock import sole_run
from editar.sampling.pipeline import EditPipeline
from editar.tables.scores import load_evaluation
from editar.weights.read import read_checkpoint, read_file
from editar.weights.run_checkpoint import damage
from tests.helpers import miniature
from tests.helpers.tiny import ROOT, run_module


def test_nothing_is_written_through_links(tmp_path: Path) -> None:
    precious, run = tmp_path / "precious", tmp_path / "run"
    precious.write_text("precious")
    run.mkdir()
    (run / "running.lock").symlink_to(precious)
    with pytest.raises(ConfigError, match=r"running\.lock: not a plain file; remove it"), sole_run(run):
        pass
    (run / "running.lock").unlink()
    os.mkfifo(run / "running.lock")
    with pytest.raises(ConfigError, match=r"running\.lock: not a plain file"), sole_run(run):
        pass
    (run / ".config.yaml.part").symlink_to(precious)
    write_text(run / "config.yaml", "mine")
    assert precious.read_text() == "precious" and (run / "config.yaml").read_text() == "mine"


def test_a_folder_in_the_place_of_a_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "scores.json").mkdir()
    with pytest.raises(IsADirectoryError) as told:
        write_text(tmp_path / "scores.json", "{}")
    assert told.value.filename == str(tmp_path / "scores.json") and "is a folder" in str(told.value.strerror)


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.safetensors"])
def test_one_flipped_bit_of_a_run_is_noticed(tiny_run: Path, tmp_path: Path, name: str) -> None:
    folder = shutil.copytree(tiny_run, tmp_path / "run", ignore=shutil.ignore_patterns("checkpoints", "codes"))
    content = bytearray((folder / name).read_bytes())
    content[-5] ^= 4
    (folder / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=r"its tensors are not as they were written, the file is damaged"):
        EditPipeline.from_pretrained(folder)


def test_weights_of_others_have_no_checksum(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"a": torch.ones(3)}, tmp_path / "a.safetensors")
    assert torch.equal(load_weights(tmp_path / "a.safetensors")["a"], torch.ones(3))
    odd = {"half": torch.ones(2, dtype=torch.bfloat16), "flag": torch.tensor(True), "none": torch.zeros(0)}
    save_weights(odd, tmp_path / "b.safetensors")
    assert load_weights(tmp_path / "b.safetensors").keys() == odd.keys()


def test_a_flipped_bit_in_a_torch_file_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    torch.save({"model": {"a": torch.randn(1000)}}, path)
    with zipfile.ZipFile(path) as archive:
        entry = next(info for info in archive.infolist() if info.filename.endswith("data/0"))
    content = bytearray(path.read_bytes())
    content[entry.header_offset + 200 + entry.file_size // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"truncated or damaged .*data/0"):
        read_file(path)


def test_yaml_that_grows_without_end(tmp_path: Path) -> None:
    lines = ["a0: &a0 [x, x]", *(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]" for i in range(1, 60))]
    (tmp_path / "config.yaml").write_text("\n".join(lines))
    with pytest.raises(ConfigError, match=r"config\.yaml: damaged \(more than 32 aliases"):
        from_yaml(TrainConfig, tmp_path / "config.yaml")


def test_a_checkpoint_with_a_pipe_in_it(tmp_path: Path) -> None:
    (tmp_path / "step_0000001").mkdir()
    os.mkfifo(tmp_path / "step_0000001" / "state.json")
    assert damage(tmp_path / "step_0000001") == "state.json is not a plain file"


def test_values_that_are_none() -> None:
    for changes, message in (
        ({"cfg_scale": 1e308}, r"sampling\.cfg_scale=1e\+308 must be at most"),
        ({"greedy": 7}, r"sampling\.greedy=7 is neither true nor false"),
    ):
        with pytest.raises(ConfigError, match=message):
            override(SamplingConfig(), changes, "sampling")
    with pytest.raises(ConfigError, match="text=null: text is one of flan_t5_xl, nano"):
        load_config(EditConfig, "edit", ["text=null"])
    for value in ("int8=2", "compile=1", "overwrite=yes", "sampling.greedy=7"):
        with pytest.raises(ConfigError, match=f"{value}.* neither true nor false"):
            load_config(EditConfig, "edit", ["checkpoint=x", "image=x", "instruction=x", value])
    with pytest.raises(ConfigError) as told:
        load_config(EditConfig, "edit", ["k" * 3000 + "=1"])
    assert len(str(told.value)) < 400


def test_scores_of_another_shape(tmp_path: Path) -> None:
    row = {"id": "0", "instruction": "x", "source": "a.png", "result": "b.png", "l1": 1.0}
    ours = {"results": "", "groups": {}, "whole": {}, "why_not": [], "generated_with": None, "rows": [row]}
    column = {"name": "l1", "title": "L1", "unit": "", "better": "lower"}
    head = {"benchmark": "b", "protocol": "p", "root": "", "missing_columns": {}, "judges": {}}
    good = head | {"columns": [column], "methods": {"ours": ours}}

    def with_rows(*rows: object) -> dict[str, object]:
        return {"methods": {"ours": ours | {"rows": list(rows)}}}

    (tmp_path / "scores.json").write_text(json.dumps(good))
    assert load_evaluation(tmp_path).methods[0].rows == [row]
    for wrong in (
        {"methods": {}},
        {"methods": [1]},
        {"methods": {"ours": 3}},
        {"columns": [column | {"better": "sideways"}]},
        with_rows(),
        with_rows({"instruction": "x"}),
        with_rows({key: value for key, value in row.items() if key != "l1"}),
        with_rows(row | {"result": 5}),
    ):
        (tmp_path / "scores.json").write_text(json.dumps(good | wrong))
        with pytest.raises(BenchmarkError, match=r"not a scores\.json of this version"):
            load_evaluation(tmp_path)


def test_a_cached_picture_that_is_none() -> None:
    with pytest.raises(DataError, match=r"a cached picture is damaged .* make them anew"):
        unpack_picture(b"junk")


def test_rows_that_a_manifest_invents(tmp_path: Path) -> None:
    prepared = tmp_path / "pipe"
    prepare(Request("pipe", str(miniature.write_pipe(tmp_path / "raw", 6, files=1)), prepared))
    file = prepared / "manifest.json"
    good = file.read_text()
    for rows in ("-5", '"6"', "1.5", "null"):
        file.write_text(good.replace('"rows": 6', f'"rows": {rows}'))
        with pytest.raises(DataError, match=r"manifest\.json: not a manifest of"):
            open_table(prepared)
    file.write_text(good.replace('"rows": 6', '"rows": 600'))
    with pytest.raises(DataError, match="holds 6 rows, not the row 7 that is listed for it"):
        open_table(prepared)[7]


def test_weights_without_values(tmp_path: Path) -> None:
    torch.save({"model": {"x": torch.empty(3, device="meta")}}, tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match=r"sparse or empty \(meta\) tensors \(x\)"):
        read_checkpoint(tmp_path / "a.pt")


def test_half_of_a_surrogate_pair_in_json() -> None:
    for escaped in (r'"\ud83d\ude00"', r'"\udcff"'):  # an emoji; a byte of a name that is not UTF-8
        assert parse_json(escaped) == parse_json(escaped.encode())
    for escaped in (r'{"\ud800": 1}', r'"\uDFFF"'):
        with pytest.raises(ValueError, match="surrogates not allowed"):
            parse_json(escaped.encode())


def test_a_very_long_error_is_cut_in_its_middle(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit), told_in_one_line("editar.edit"):
        raise ConfigError(f"{'a' * 9000}: give another")
    error = capsys.readouterr().err
    assert len(error) < 1300 and error.startswith("editar.edit: aaa") and error.endswith("aaa: give another\n")


def test_a_picture_of_no_numbers(tmp_path: Path) -> None:
    values = np.full((8, 8), np.nan, np.float32)
    Image.fromarray(values).save(tmp_path / "a.tiff")
    with pytest.raises(ImageError, match=r"a\.tiff: none of its pixels is a finite number"):
        load_image(tmp_path / "a.tiff")
    values[0, 0] = 1
    Image.fromarray(values).save(tmp_path / "a.tiff")
    assert load_image(tmp_path / "a.tiff").getpixel((0, 0)) == (255, 255, 255)


def test_a_working_directory_that_is_gone(tmp_path: Path) -> None:
    code = "import os\nos.rmdir(os.getcwd())\nfrom editar.edit import main\nmain()"
    command, environment = [sys.executable, "-c", code, "image=x"], os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 2 and "the working directory does not exist any more" in done.stderr


def test_an_output_that_is_a_dangling_link_is_not_replaced(tiny_run: Path, tmp_path: Path) -> None:
    Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save(tmp_path / "photo.png")
    (tmp_path / "out.png").symlink_to(tmp_path / "nowhere.png")
    given = [f"image={tmp_path / 'photo.png'}", "instruction=x", f"checkpoint={tiny_run}", f"output={tmp_path}/out.png"]
    with pytest.raises(ConfigError, match=r"out\.png exists; give another output"):
        edit(load_config(EditConfig, "edit", given))


def test_a_name_too_long_for_the_comparison_is_told_before_the_edit(tiny_run: Path, tmp_path: Path) -> None:
    Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save(tmp_path / "photo.png")
    given = [f"image={tmp_path / 'photo.png'}", "instruction=x", f"checkpoint={tiny_run}"]
    with pytest.raises(ConfigError, match=r"a_side_by_side\.png is longer than 249 bytes; give a shorter output"):
        edit(load_config(EditConfig, "edit", [*given, f"output={tmp_path}/{'a' * 240}.png"]))
    assert [path.name for path in tmp_path.iterdir()] == ["photo.png"]


@pytest.mark.parametrize(
    ("script", "arguments", "message"),
    [
        ("plan_gpus", ["gpt=zzz"], "plan_gpus: "),
        ("inspect_speed", ["checkpoint=x", "--batch", "0"], "argument --batch: 0 is less than 1"),
        ("report", ["x", "--pictures", "-1"], "argument --pictures: -1 is less than 0"),
        ("figure_examples", ["x", "--draws", "0"], "argument --draws: 0 is less than 1"),
    ],
)
def test_scripts_name_impossible_arguments(script: str, arguments: list[str], message: str) -> None:
    done = run_module(f"scripts/{script}.py", *arguments)
    assert done.returncode == 2 and message in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "environment",
    [{"WORLD_SIZE": "-1"}, {"WORLD_SIZE": "2"}, {"RANK": "5", "WORLD_SIZE": "2"}, {"WORLD_SIZE": "two"},
     {"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "localhost", "MASTER_PORT": "99999"}],
)  # fmt: skip
def test_impossible_torchrun_environments(environment: dict[str, str]) -> None:
    code = (
        "from editar.runtime.distributed import distributed\n"
        "try:\n    distributed('cpu').__enter__()\n"
        "except Exception as error:\n    print(type(error).__name__, error)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.stdout.startswith("ConfigError") and "start with torchrun" in done.stdout, done.stdout + done.stderr
    assert len(done.stdout.splitlines()) == 1
