"""What stands where something is to be written: nothing is replaced that the command did not make itself."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from editar.config import EditConfig, EvalConfig, TokenizerTrainConfig
from editar.edit import edit
from editar.errors import CheckpointError, ConfigError
from editar.evaluation.run import evaluate
from editar.generation.result_folder import check_once
from editar.report.merge import load_scored
from editar.runtime.entry import load_config
from editar.runtime.files import load_weights, write_text
from editar.runtime.lock import sole_run
from editar.training.loop import train
from editar.training.tokenizer.loop import train_tokenizer
from editar.weights.convert import export_official
from editar.weights.load import save_pair
from editar.weights.run_checkpoint import latest_checkpoint
from scripts.export_run import export
from tests.helpers.hostile import bare, contents, moved


@pytest.mark.parametrize("output", ["{}/new/", "{}", "{}/.."])
def test_a_folder_is_no_output(tmp_path: Path, output: str) -> None:
    given = [f"image={tmp_path / 'a.png'}", "instruction=x", "checkpoint=c", f"output={output.format(tmp_path)}"]
    with pytest.raises(ConfigError, match="is a folder; give the name of a picture"):
        edit(load_config(EditConfig, "edit", given))


def test_an_export_onto_itself_or_of_damaged_starts_is_refused_and_harms_nothing(run: Path, tmp_path: Path) -> None:
    before = {path: path.read_bytes() for path in run.iterdir() if path.is_file()}
    with pytest.raises(CheckpointError, match="exists already"):
        export(run, run)
    (run / "provenance.json").write_text("[1]")
    with pytest.raises(ConfigError, match=r"provenance\.json: damaged"):
        export(run, tmp_path / "out")
    (run / "provenance.json").write_bytes(before[run / "provenance.json"])
    assert before == {path: path.read_bytes() for path in run.iterdir() if path.is_file()}
    assert not (tmp_path / "out").exists()


def test_an_official_export_replaces_nothing(tiny_run: Path, tiny_tokenizer: Path, tmp_path: Path) -> None:
    (tmp_path / "o.pt").write_text("mine")
    with pytest.raises(CheckpointError, match=r"o\.pt exists already"):
        export_official(tiny_run, tmp_path / "o.pt")
    with pytest.raises(CheckpointError, match=r"holds no config\.yaml of a GPT"):
        export_official(tiny_tokenizer, tmp_path / "new.pt")
    assert (tmp_path / "o.pt").read_text() == "mine"


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


def test_an_export_takes_a_new_folder(tiny_run: Path, tmp_path: Path, refusal: Callable[..., str]) -> None:
    run = bare(tiny_run, tmp_path / "run")
    before = contents(run)
    assert "exists already" in refusal("scripts/export_run.py", str(tiny_run), str(run))
    assert contents(run) == before
    text = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(text[: text.index("\noptim:") + 1])
    assert "ends early" in refusal("scripts/export_run.py", str(run), str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_pictures_of_a_folder_are_not_replaced(tiny_run: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save(tmp_path / f"{name}.png")
    before = contents(tmp_path)
    given = [f"image={tmp_path}", f"output={tmp_path}", "instruction=x", f"checkpoint={tiny_run}", "overwrite=true"]
    with pytest.raises(ConfigError, match=r"a\.png is read, and never replaced"):
        edit(load_config(EditConfig, "edit", given))
    assert contents(tmp_path) == before


def test_a_training_does_not_replace_weights_that_it_cannot_go_on_from(
    tiny_run: Path, tiny_tokenizer: Path, tmp_path: Path
) -> None:
    run = bare(tiny_run, tmp_path / "run")
    before = contents(run)
    with pytest.raises(ConfigError, match=r"holds model\.safetensors, but no checkpoint .* init_from="):
        train(moved(run))
    assert contents(run) == before
    (run / "checkpoints").mkdir()  # as a training that was killed within its first checkpoint, of step 2
    save_pair(run, *(load_weights(run / f"{name}.safetensors") for name in ("model", "tokenizer")), {"step": "2"})
    assert latest_checkpoint(train(moved(run))) is not None
    shutil.rmtree(run / "checkpoints")
    (run / "config.yaml").unlink()
    with pytest.raises(ConfigError, match=r"model\.safetensors is of no training in this folder"):
        train_tokenizer(load_config(TokenizerTrainConfig, "train_tokenizer", [f"output_dir={run}"]))


def test_scores_of_something_else_are_not_replaced(tiny_run: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        evaluate(
            load_config(EvalConfig, "eval", [f"checkpoint={tiny_run}", f"output_dir={tmp_path / name}", "samples=2"])
        )
    before = contents(tmp_path / "a")
    theirs = [f"results={tmp_path / 'b/images'}", "data_seed=0", "samples=2", f"output_dir={tmp_path / 'a'}"]
    with pytest.raises(ConfigError, match="holds pictures and is for their scores"):
        evaluate(load_config(EvalConfig, "eval", theirs))
    other = ["benchmark=nano_pairs", f"results={tmp_path / 'a/images'}", "data_seed=0", f"output_dir={tmp_path / 'a'}"]
    with pytest.raises(ConfigError, match="holds scores of benchmark=nano"):
        evaluate(load_config(EvalConfig, "eval", other))
    assert contents(tmp_path / "a") == before
    (tmp_path / "a/scores.json").write_text("{")  # damaged ones may be replaced
    again = [f"results={tmp_path / 'a/images'}", "data_seed=0", "samples=2", f"output_dir={tmp_path / 'a'}"]
    assert evaluate(load_config(EvalConfig, "eval", again)) is not None


def test_scripts_do_not_write_over_what_they_read(tiny_run: Path, tmp_path: Path, refusal: Callable[..., str]) -> None:
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save(pictures / "a.png")
    run = bare(tiny_run, tmp_path / "run")
    before = contents(tmp_path)
    score = ["scripts/score_tokenizer.py", str(run), str(pictures), "--out"]
    for out in (run / "model.safetensors", pictures / "a.png"):
        assert "is among what is read, and never replaced" in refusal(*score, str(out))
    assert "the page is a .html" in refusal("scripts/report.py", str(run), "--out", str(run / "scores.json"))
    figure = refusal("scripts/figure_examples.py", str(run), "--out", str(run / "model.safetensors"))
    assert "is among what is read" in figure
    own = ["+source@data.sources.own=folder", f"data.sources.own.path={pictures}"]
    shown = refusal("scripts/inspect_data.py", *own, "--out", str(pictures / "a.png"))
    assert "is among what is read" in shown
    assert contents(tmp_path) == before


def test_links_and_names_that_lead_nowhere(tmp_path: Path) -> None:
    (tmp_path / "a.png").symlink_to(tmp_path / "a.png")
    check_once(tmp_path, {"0": tmp_path / "a.png"})
    name = os.fsdecode(b"\xff")
    for key in ("output_dir", "method"):
        given = {"checkpoint": "x", "output_dir": "x"} | {key: name}
        with pytest.raises(ConfigError, match=rf"{key}='.udcff' is not UTF-8"):
            load_config(EvalConfig, "eval", [f"{key}={value}" for key, value in given.items()])
    with pytest.raises(ConfigError, match=r"the method's name='.udcff' is not UTF-8"):
        load_scored(f"{name}={tmp_path}")
