"""Training an adapter: the base stays, the adapter is small, resumes exactly and belongs to its base."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from editar.config import EditConfig
from editar.edit import edit
from editar.errors import CheckpointError, ConfigError
from editar.runtime.entry import load_config
from editar.runtime.files import checksum
from editar.sampling.pipeline import EditPipeline
from editar.training.loop import train
from editar.weights.convert import merge_adapter
from editar.weights.load import save_pair
from tests.helpers import trainings
from tests.helpers.tiny import TINY_GPT, TINY_TOKENIZER, run_module, tiny_overrides, train_config

LORA = ["lora.rank=2", "lora.alpha=8", "optim.name=adamw", "optim.lr=0.05", "eval_every=100"]


def overrides(folder: Path, base: Path, *more: str) -> list[str]:
    return tiny_overrides(folder, base, f"init_from={base}", *LORA, *more)


def train_adapter(folder: Path, base: Path, *more: str) -> Path:
    return train(train_config(*overrides(folder, base, *more)))


def adapter(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "adapter_model.safetensors")


@pytest.fixture(scope="module")
def lora_run(tmp_path_factory: pytest.TempPathFactory, tiny_run: Path) -> Path:
    before = checksum(tiny_run / "model.safetensors")
    folder = train_adapter(tmp_path_factory.mktemp("lora") / "run", tiny_run, "steps=3", "eval_every=3")
    assert checksum(tiny_run / "model.safetensors") == before
    return folder


def test_the_folder_holds_an_adapter_alone(lora_run: Path, tiny_run: Path) -> None:
    names = {path.name for path in lora_run.iterdir()}
    assert {"config.yaml", "adapter_model.safetensors", "adapter_config.json", "metrics.jsonl"} <= names
    assert not names & {"model.safetensors", "tokenizer.safetensors"}
    stored = trainings.stored(lora_run / "checkpoints/step_0000003")
    trained = [name for name in stored if name.startswith("model.") and "uncond_embedding" not in name]
    assert trained and all(".lora_" in name for name in trained)
    sizes = [sum(f.stat().st_size for f in folder.rglob("model*.safetensors")) for folder in (tiny_run, lora_run)]
    assert (lora_run / "adapter_model.safetensors").stat().st_size < sizes[0] / 2
    assert json.loads((lora_run / "adapter_config.json").read_text())["r"] == 2
    assert (lora_run / "samples/step_0000003.png").is_file()
    assert any(value.abs().max() > 0 for name, value in adapter(lora_run).items() if "lora_B" in name)


def test_edits_with_the_adapter_are_those_of_the_merged_folder(lora_run: Path, tiny_run: Path, tmp_path: Path) -> None:
    merge_adapter(tiny_run, lora_run, tmp_path / "merged")
    source = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    made, weights = [], []
    for folder, lora in ((tiny_run, None), (tiny_run, lora_run), (tmp_path / "merged", None)):
        pipeline = EditPipeline.from_pretrained(folder, "cpu", lora=lora)
        codes = pipeline.encode(source[None])
        made.append(pipeline.edit_codes(codes, ["make it snow"], ["a"], pipeline.cfg.sampling))
        weights.append(pipeline.gpt.layers[0].attention.wqkv.weight)
    assert torch.equal(made[1], made[2])
    assert torch.equal(weights[1], weights[2]) and not torch.equal(weights[0], weights[1])
    with pytest.raises(CheckpointError, match="exists already"):
        merge_adapter(tiny_run, lora_run, tmp_path / "merged")


def test_edit_and_eval_take_it(lora_run: Path, tiny_run: Path, tmp_path: Path) -> None:
    Image.new("RGB", (64, 64), "red").save(tmp_path / "a.png")
    given = [f"checkpoint={tiny_run}", f"lora={lora_run}"]
    own = [f"image={tmp_path / 'a.png'}", "instruction=make it snow", f"output={tmp_path / 'b.png'}"]
    edit(load_config(EditConfig, "edit", [*given, *own]))
    assert (tmp_path / "b.png").is_file()
    done = run_module("editar.eval", *given, f"output_dir={tmp_path / 'eval'}", "samples=2", "num_workers=0")
    assert done.returncode == 0, done.stderr
    manifest = json.loads((tmp_path / "eval/manifest.json").read_text())
    assert checksum(lora_run / "adapter_model.safetensors") in json.dumps(manifest)


@pytest.mark.parametrize("ema", ["0", "0.75"])
def test_a_resumed_adapter_equals_an_uninterrupted_one(ema: str, tiny_run: Path, tmp_path: Path) -> None:
    common = ["steps=5", "save_every=3", "lora.dropout=0.1", f"optim.ema_decay={ema}", "activation_checkpointing=true"]
    whole = train_adapter(tmp_path / "whole", tiny_run, *common)
    broken = train_adapter(tmp_path / "broken", tiny_run, *common)
    (broken / "checkpoints/step_0000005").rename(tmp_path / "lost")
    (broken / "adapter_model.safetensors").unlink()
    train_adapter(broken, tiny_run, *common)
    a, b = adapter(whole), adapter(broken)
    assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.multiprocess
def test_two_processes_train_the_same_adapter(tiny_run: Path, tmp_path: Path) -> None:
    common = ["steps=3", "micro_batch=2", "optim.eps=1e-3", "gpt.resid_dropout=0", "lora.dropout=0"]
    alone = train_adapter(tmp_path / "alone", tiny_run, *common)
    done = run_module("editar.train", *overrides(tmp_path / "two", tiny_run, *common), processes=2)
    assert done.returncode == 0, done.stderr[-2000:]
    a, b = adapter(alone), adapter(tmp_path / "two")
    for name in a:
        torch.testing.assert_close(b[name], a[name], rtol=1e-3, atol=1e-4)


def test_an_adapter_of_other_weights_is_refused(lora_run: Path, tiny_run: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    for name in ("config.yaml", "tokenizer.safetensors"):
        (other / name).write_bytes((tiny_run / name).read_bytes())
    state = load_file(tiny_run / "model.safetensors")
    save_file(state | {"norm.weight": state["norm.weight"] + 0.01}, other / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"trained on a GPT with checksum \w+, .* its init_from \(.*run\)"):
        EditPipeline.from_pretrained(other, "cpu", lora=lora_run)
    with pytest.raises(CheckpointError, match=r"whole model: give checkpoint="):
        EditPipeline.from_pretrained(tiny_run, "cpu", lora=other)
    with pytest.raises(
        CheckpointError, match=r"config\.yaml not found; give a run folder of a training with lora\.rank"
    ):
        EditPipeline.from_pretrained(tiny_run, "cpu", lora=tmp_path / "nowhere")
    codes = load_file(other / "tokenizer.safetensors")
    codes["decoder.conv_out.bias"] += 0.01
    save_pair(other, load_file(tiny_run / "model.safetensors"), codes, {})
    with pytest.raises(CheckpointError, match="trained on a tokenizer with checksum"):
        EditPipeline.from_pretrained(other, "cpu", lora=lora_run)
    with pytest.raises(ConfigError, match=r"tokenizer\.weights=.* is not the tokenizer of init_from"):
        train(train_config(*tiny_overrides(tmp_path / "new", other, f"init_from={tiny_run}", *LORA)))
    assert not (tmp_path / "new/config.yaml").exists()


def test_a_description_of_another_adapter_is_refused(lora_run: Path, tiny_run: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(lora_run, tmp_path / "copy")
    file = copy / "adapter_config.json"
    for text, message in (
        (file.read_text().replace('"lora_alpha": 8.0', '"lora_alpha": 16.0'), r"lora_alpha=16.0, its training 8.0"),
        (file.read_text().replace('"use_rslora": false', '"use_rslora": true'), "use_rslora=True, its training False"),
        ("[]", "not a mapping"),
        (file.read_text()[:-20], "adapter_config.json is damaged"),
    ):
        file.write_text(text)
        with pytest.raises(CheckpointError, match=message):
            EditPipeline.from_pretrained(tiny_run, "cpu", lora=copy)


def test_a_base_that_changed_is_noticed_on_resuming(tiny_run: Path, tmp_path: Path) -> None:
    base = tmp_path / "base"
    base.mkdir()
    for name in ("config.yaml", "tokenizer.safetensors", "model.safetensors"):
        (base / name).write_bytes((tiny_run / name).read_bytes())
    train_adapter(tmp_path / "run", base, "steps=1")
    state = load_file(base / "model.safetensors")
    save_file(state | {"norm.weight": state["norm.weight"] + 0.01}, base / "model.safetensors")
    with pytest.raises(CheckpointError, match="trained on a GPT with checksum"):
        train_adapter(tmp_path / "run", base, "steps=2")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["lora.rank=-1"], "lora.rank=-1 must be at least 0"),
        (["lora.rank=0"], "lora.rank=0 trains no adapter, and other lora settings are given"),
        (["lora.targets=[wq]"], "lora.targets=wq is not one of wqkv, wo, w1, w2, w3, fc1, fc2"),
        (["lora.targets=[]"], "lora.targets is empty"),
        (["init_from=null"], r"lora\.rank=2 adapts a trained GPT; give init_from"),
        (["parallel=fsdp"], "needs parallel=ddp"),
        (["lora.base=bf16"], "lora.base=bf16 needs precision=bf16, found precision=fp32"),
        (["text.extra_words=[van,Gogh]"], "'Gogh' is not one word of the letters a to z"),
        (["text.extra_words=[van,van]"], "'van' is given twice"),
    ],
)
def test_impossible_settings(given: list[str], message: str, tiny_run: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        train_config(*overrides(tmp_path / "run", tiny_run, *given))


def test_a_base_without_what_the_teacher_needs_is_named(tiny_tokenizer: Path, tmp_path: Path) -> None:
    base = train(train_config(*tiny_overrides(tmp_path / "base", tiny_tokenizer, "steps=1", "teacher=none")))
    with pytest.raises(CheckpointError, match=r"init_from=.*lacks|missing alignment"):
        train_adapter(tmp_path / "run", base)
    assert not (tmp_path / "run/config.yaml").exists()


def test_new_words_are_named_and_can_be_added(
    tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pairs = tmp_path / "pairs"
    pairs.mkdir()
    for name, colour in (("a", "red"), ("b", "blue")):
        Image.new("RGB", (64, 64), colour).save(pairs / f"{name}.png")
    line = json.dumps({"source": "a.png", "target": "b.png", "instruction": "paint like van gogh"})
    (pairs / "pairs.jsonl").write_text(f"{line}\n" * 6)
    source = ["data=folder", f"data.sources.folder.path={pairs}"]
    small = [setting for setting in TINY_GPT if not setting.startswith("data.")]
    common = [f"tokenizer.weights={tiny_run}", f"init_from={tiny_run}", *TINY_TOKENIZER, *small, *LORA, "steps=1"]
    common += [*source, "data.heldout_samples=2"]
    train(train_config(f"output_dir={tmp_path / 'without'}", *common))
    assert "data.sources.folder: the text encoder does not know: like, van, gogh" in capsys.readouterr().err
    words = "text.extra_words=[like,van,gogh]"
    run = train(train_config(f"output_dir={tmp_path / 'with'}", *common, words))
    assert "does not know" not in capsys.readouterr().err
    pipeline = EditPipeline.from_pretrained(tiny_run, "cpu", lora=run)
    pipeline(pairs / "a.png", "paint like van goch")
    assert "does not know: goch" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="red known already"):
        train(train_config(f"output_dir={tmp_path / 'known'}", *common, "text.extra_words=[red]"))


def test_an_eight_bit_base_trains_goes_on_and_fits_the_base(lora_run: Path, tiny_run: Path, tmp_path: Path) -> None:
    for steps in (2, 3):
        folder = train_adapter(tmp_path / "run", tiny_run, "lora.base=int8", "precision=bf16", f"steps={steps}")
    stored = trainings.stored(folder / "checkpoints/step_0000003")
    assert stored.keys() == trainings.stored(lora_run / "checkpoints/step_0000003").keys()  # nothing of the base
    merge_adapter(tiny_run, folder, tmp_path / "merged")
    losses = [[json.loads(row)["token"] for row in (run / "metrics.jsonl").open() if '"token"' in row]
              for run in (lora_run, folder)]  # fmt: skip
    assert len(losses[0]) == len(losses[1]) and losses[1] == pytest.approx(losses[0], rel=0.02)
