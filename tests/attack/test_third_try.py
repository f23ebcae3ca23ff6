"""What a third attack found, by somebody who knew neither the tests nor the earlier ones: files that a command replaced
though it only reads them, settings without effect, and values that passed for others."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from editar.config import EditConfig, EvalConfig, TokenizerTrainConfig, TrainConfig, from_yaml
from editar.data.pictures import tar_members
from editar.data.prepare.webdataset import list_tars
from editar.edit import edit
from editar.errors import BenchmarkError, CheckpointError, ConfigError, DataError, TrainingError
from editar.evaluation.registry import benchmark_class, benchmarks
from editar.evaluation.run import evaluate
from editar.generation.result_folder import check_once
from editar.report.merge import load_scored
from editar.runtime.distributed import distributed
from editar.runtime.entry import load_config, told_in_one_line
from editar.runtime.files import content_sum, load_weights, read_starts
from editar.runtime.log import MetricLogger
from editar.sampling.pipeline import EditPipeline
from editar.tables.scores import load_evaluation
from editar.training.loop import train
from editar.training.tokenizer.loop import train_tokenizer
from editar.weights.convert import import_weights
from editar.weights.load import save_pair
from editar.weights.run_checkpoint import latest_checkpoint
from tests.helpers.tiny import ROOT, tiny_overrides, train_config


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def bare(run: Path, folder: Path) -> Path:
    """A copy of a run without its checkpoints."""
    return shutil.copytree(run, folder, ignore=shutil.ignore_patterns("checkpoints", "codes", "samples"))


# --- nothing that is read, or belongs to something else, is replaced ------------------------------------------------


def test_an_export_takes_a_new_folder(tiny_run: Path, tmp_path: Path, one_line: Callable[..., str]) -> None:
    run = bare(tiny_run, tmp_path / "run")
    before = contents(run)
    assert "exists already" in one_line("scripts/export_run.py", str(tiny_run), str(run))
    assert contents(run) == before
    text = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(text[: text.index("\noptim:") + 1])
    assert "ends early" in one_line("scripts/export_run.py", str(run), str(tmp_path / "out"))
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


def moved(run: Path) -> TrainConfig:
    """The run's own settings, in the folder where it lies now."""
    cfg = from_yaml(TrainConfig, run / "config.yaml")
    cfg.data.cache, cfg.output_dir = str(cfg.data.cache).replace(cfg.output_dir, str(run)), str(run)
    return cfg


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


def test_scripts_do_not_write_over_what_they_read(tiny_run: Path, tmp_path: Path, one_line: Callable[..., str]) -> None:
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save(pictures / "a.png")
    run = bare(tiny_run, tmp_path / "run")
    before = contents(tmp_path)
    score = ["scripts/score_tokenizer.py", str(run), str(pictures), "--out"]
    for out in (run / "model.safetensors", pictures / "a.png"):
        assert "is among what is read, and never replaced" in one_line(*score, str(out))
    assert "the page is a .html" in one_line("scripts/report.py", str(run), "--out", str(run / "scores.json"))
    figure = one_line("scripts/figure_examples.py", str(run), "--out", str(run / "model.safetensors"))
    assert "is among what is read" in figure
    own = ["+source@data.sources.own=folder", f"data.sources.own.path={pictures}"]
    shown = one_line("scripts/inspect_data.py", *own, "--out", str(pictures / "a.png"))
    assert "is among what is read" in shown
    assert contents(tmp_path) == before


# --- settings without effect ----------------------------------------------------------------------------------------


def test_a_config_that_ends_early_is_not_read(tmp_path: Path) -> None:
    text = (ROOT / "reference/nano/config.yaml").read_text()
    for section in ("sampling", "lora", "optim", "loss", "drop", "data"):
        (tmp_path / "config.yaml").write_text(text[: text.index(f"\n{section}:") + 1])
        with pytest.raises(ConfigError, match="ends early, without wandb, the last section"):
            from_yaml(TrainConfig, tmp_path / "config.yaml")


@pytest.mark.parametrize("key", ["steps", "seed", "precision", "gpt.dim", "optim.lr", "init_from", "compile"])
def test_three_question_marks_are_no_value(key: str) -> None:
    for value in ("???", "'???'"):
        with pytest.raises(ConfigError, match=r"=\?\?\? stands for a value that is missing"):
            load_config(TrainConfig, "train", ["output_dir=x", f"{key}={value}"])


def test_a_benchmark_refuses_settings_of_others() -> None:
    values = {"samples": "3", "rows": "3", "data_seed": "1", "shuffle_instructions": "true", "second": "none"}
    values |= {"prompt": "a {}", "pairs": "all", "protocol": "controlnet++", "evaluator": "2023", "root": "nowhere"}
    values |= {"fid_statistics": "x.npz", "canny.operator": "cv2"}
    for name, cls in benchmarks().items():
        for key, value in values.items():
            if key.split(".")[0] not in cls.settings:
                cfg = load_config(
                    EvalConfig, "eval", ["checkpoint=x", "output_dir=x", f"benchmark={name}", f"{key}={value}"]
                )
                with pytest.raises(ConfigError, match=f"benchmark={name} has no {key.split('.')[0]}, found"):
                    benchmark_class(name)(cfg)


def test_other_settings_without_effect(one_line: Callable[..., str]) -> None:
    with pytest.raises(ConfigError, match="the nano world's pictures have 64 pixels"):
        load_config(TokenizerTrainConfig, "train_tokenizer", ["output_dir=x", "image_size=128"])
    with pytest.raises(ConfigError, match=r"baseline\.\* are given, but no baseline=NAME"):
        load_config(EvalConfig, "eval", ["checkpoint=x", "output_dir=x", "baseline.size=256"])
    with pytest.raises(ConfigError, match=r"wandb\.project=a/b must not have / in it"):
        load_config(TrainConfig, "train", ["output_dir=x", "wandb.project=a/b"])
    with pytest.raises(ConfigError, match=r"text\.extra_words: .* is not one word"):
        load_config(TrainConfig, "train", ["output_dir=x", "text.extra_words=[[a]]"])
    with pytest.raises(ConfigError, match=r"gpt\.n_layer=100000000 must be at most 1000"):
        load_config(TrainConfig, "train", ["output_dir=x", "gpt.n_layer=100000000"])
    for hydra in ("hydra.run.dir=/tmp/x", "hydra/launcher=joblib", "+hydra.verbose=true"):
        with pytest.raises(ConfigError, match=r"Hydra's own settings have no effect here; give output_dir"):
            load_config(EvalConfig, "eval", ["checkpoint=x", "output_dir=x", hydra])
    with pytest.raises(ConfigError, match=r"-m: a setting is KEY=VALUE"):
        load_config(TrainConfig, "train", ["-m"])
    assert "--rows 1:2 needs --source NAME" in one_line("scripts/inspect_data.py", "--rows", "1:2")


# --- values that passed for others ----------------------------------------------------------------------------------


def test_weights_that_are_no_numbers_are_not_converted(tiny_run: Path, tmp_path: Path) -> None:
    for change in (
        lambda value: torch.full_like(value, torch.nan),
        lambda value: value.to(torch.complex64),
        lambda value: value.to(torch.int64),
    ):
        state = load_weights(tiny_run / "model.safetensors")
        state["output.weight"] = change(state["output.weight"])
        torch.save({"model": state}, tmp_path / "weights.pt")
        with pytest.raises(
            CheckpointError, match=r"not finite: output\.weight|no floating-point weights: output\.weight"
        ):
            import_weights(tmp_path / "weights.pt", tmp_path / "converted")
        assert not (tmp_path / "converted").exists()


def test_a_tokenizer_that_overflows_draws_nothing(tiny_run: Path, tmp_path: Path) -> None:
    run = bare(tiny_run, tmp_path / "run")
    state = load_weights(run / "tokenizer.safetensors")
    key = next(key for key in state if key.startswith("decoder.") and key.endswith("norm_out.weight"))
    state[key] = torch.full_like(state[key], 3e38)
    save_pair(run, load_weights(run / "model.safetensors"), state)
    with pytest.raises(CheckpointError, match="draws pixels that are not finite"):
        EditPipeline.from_pretrained(run)(np.zeros((64, 64, 3), np.uint8), "x")


@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_a_tar_cut_between_two_samples(tmp_path: Path, mode: str) -> None:
    whole, cut = tmp_path / "whole.tar", tmp_path / "tars" / "cut.tar"
    cut.parent.mkdir()
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "a.png")
    with tarfile.open(whole, "w") as tar:
        for name in ("0.src.png", "0.tgt.png", "1.src.png"):
            tar.add(tmp_path / "a.png", name)
        end = tar.offset
    content = whole.read_bytes()
    assert len(tar_members(whole, {".png"})) == 3
    if mode == "w:gz":
        cut.write_bytes(gzip.compress(content[:end]))
    else:
        cut.write_bytes(content[:end])
        with pytest.raises(DataError, match="no end mark"):
            tar_members(cut, {".png"})
    with pytest.raises(DataError, match=r"cut\.tar: damaged or cut short \(no end mark"):
        len(list(list_tars(str(cut.parent))[0]._members(read=True)))


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


def test_a_folder_that_was_moved_goes_on(tiny_run: Path, tmp_path: Path) -> None:
    run = shutil.copytree(tiny_run, tmp_path / "elsewhere")
    cfg = moved(run)
    cfg.steps += 1
    train(cfg)
    assert latest_checkpoint(run).name == f"step_{cfg.steps:07d}"  # type: ignore[union-attr]


def test_the_last_good_step_is_kept_when_the_next_is_not_finite(tiny_tokenizer: Path, tmp_path: Path) -> None:
    cfg = train_config(
        *tiny_overrides(tmp_path / "run", tiny_tokenizer, "optim.muon_lr=1e38", "steps=3", "save_every=1")
    )
    with pytest.raises(TrainingError, match="The last checkpoint is step_0000001"):
        train(cfg)
    assert not list((tmp_path / "run" / "checkpoints").glob(".*"))


# --- waiting, terminals, surroundings -------------------------------------------------------------------------------


def test_pipes_are_not_waited_for(tiny_run: Path, tmp_path: Path) -> None:
    for name in ("scores.json", "config.yaml", "provenance.json", "metrics.jsonl"):
        os.mkfifo(tmp_path / name)
    with pytest.raises(BenchmarkError, match=r"scores\.json is no file"):
        load_evaluation(tmp_path)
    with pytest.raises(ConfigError, match=r"config\.yaml: is no file"):
        from_yaml(TrainConfig, tmp_path / "config.yaml")
    with pytest.raises(ConfigError, match=r"provenance\.json: damaged .*is no file"):
        read_starts(tmp_path)
    with pytest.raises(BenchmarkError, match=r"scores\.json: cannot be read \(is no file\)"):
        content_sum([tmp_path / "scores.json"])
    with pytest.raises(ConfigError, match=r"metrics\.jsonl is no file; remove it"):
        MetricLogger(tmp_path, 1)


def test_names_in_a_file_do_not_steer_the_terminal(tmp_path: Path, one_line: Callable[..., str]) -> None:
    torch.save({"model": {"\n\x1b[31mOWNED": torch.zeros(1)}}, tmp_path / "w.pt")
    told = one_line("scripts/convert_weights.py", str(tmp_path / "w.pt"), str(tmp_path / "out"))
    assert "OWNED" in told and "\x1b" not in told and len(told.splitlines()) == 1


def test_scores_with_bad_types_or_bytes(tmp_path: Path) -> None:
    evaluate_two = {"id": "0", "instruction": "x", "l1": 1.0}
    method = {"results": "", "groups": {}, "whole": {}, "why_not": [], "generated_with": None, "rows": [evaluate_two]}
    column = {"name": "l1", "title": "L1", "unit": "", "better": "lower"}
    head = {"benchmark": "b", "protocol": "p", "root": "", "missing_columns": {}, "judges": {}, "columns": [column]}
    cost = {"images": 1, "passes_per_image": 1.0, "codes_per_pass": 1.0, "images_per_s": 1.0}
    good = head | {"methods": {"ours": method | {"cost": [cost]}}}
    (tmp_path / "scores.json").write_text(json.dumps(good))
    load_evaluation(tmp_path)
    for wrong in (
        {"protocol": []},
        {"columns": [column | {"title": []}]},
        {"missing_columns": {"l1": {}}},
        {"methods": {"ours": method | {"rows": [{"id": "0", "l1": 1.0}]}}},
        {"methods": {"ours": method | {"cost": True}}},
        {"methods": {"ours": method | {"groups": {"kind": None}}}},
        {"methods": {"ours": method | {"groups": {"kind": []}}}},
        {"methods": {"ours": method | {"why_not": "x"}}},
        {"methods": {"ours": method | {"generated_with": {"sampling": {"cfg_scale": {}}}}}},
        {"judges": "x"},
        {"judges": None},
        {"judges": {"lpips": {}}},
        {"methods": {"ours": method | {"cost": [{"images": 1}]}}},
        {"methods": {"ours": method | {"cost": [cost | {"codes_per_pass": "x"}]}}},
    ):
        (tmp_path / "scores.json").write_text(json.dumps(good | wrong))
        with pytest.raises(BenchmarkError, match=r"not a scores\.json of this version"):
            load_evaluation(tmp_path)
    (tmp_path / "scores.json").write_bytes(b"\x89PNG\xff" * 1000)
    with pytest.raises(BenchmarkError) as told:
        load_evaluation(tmp_path)
    assert len(str(told.value)) < 500


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


def test_surroundings_that_were_tracebacks(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def ends(error: BaseException) -> str:
        with pytest.raises(SystemExit) as end:
            raise_in_entry(error)
        assert end.value.code == 2
        return capsys.readouterr().err

    assert "No space left" in ends(OSError(28, "No space left on device"))
    with pytest.raises(UnicodeEncodeError) as told:
        os.fsdecode(b"\xff").encode()
    assert "a name that is not UTF-8" in ends(told.value)
    work = tmp_path / "gone"
    work.mkdir()
    command = f"PYTHONPATH={ROOT} {sys.executable} -m editar.train output_dir=x"
    assert in_shell(f"cd {work}; rmdir {work}; {command}") == "the working directory does not exist any more"
    silent = (
        f"cd {tmp_path}; (PYTHONPATH={ROOT} {sys.executable} -m editar.edit image=x 2>&-); echo code: $? >&2; exit 2"
    )
    assert in_shell(silent) == "2"
    monkeypatch.setenv("LOCAL_RANK", "zero")
    with pytest.raises(ConfigError, match="LOCAL_RANK=zero in the environment is no number"), distributed("cpu"):
        pass


def raise_in_entry(error: BaseException) -> None:
    with told_in_one_line("editar.train"):
        raise error


def in_shell(script: str) -> str:
    """What the last line of stderr says, between the program's name and the first semicolon; exit code 2."""
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 2
    return done.stderr.splitlines()[-1].partition(": ")[2].partition(";")[0]
