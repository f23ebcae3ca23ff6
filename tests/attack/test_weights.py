"""Weights from strangers or of another model: nothing wrong is loaded, and a line says what does not fit."""

from __future__ import annotations

import re
import shutil
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from editar.config import TrainConfig
from editar.errors import CheckpointError, ConfigError
from editar.metrics.networks import pretrained
from editar.runtime.entry import load_config
from editar.runtime.files import load_weights, save_weights, weights_header
from editar.sampling.pipeline import EditPipeline
from editar.training.loop import train
from editar.weights.convert import import_weights
from editar.weights.load import save_pair, vq_checksum
from editar.weights.read import read_checkpoint, read_file
from scripts.export_run import export
from tests.helpers.hostile import bare
from tests.helpers.tiny import ROOT, tiny_overrides, train_config
from tests.helpers.tiny_networks import write_clip


def test_odd_weights_are_refused_in_a_line(tmp_path: Path) -> None:
    dense = torch.eye(4)
    odd: dict[str, Any] = {
        "integer keys": {1: dense},
        "mixed keys": {"model": {"a.weight": dense, 2: dense}},
        "no tensors": {"model": {"a.weight": [1.0]}},
        "sparse": {"tok_embeddings.weight": dense.to_sparse()},
        "sparse rows": {"model": {"tok_embeddings.weight": dense.to_sparse_csr()}},
        "nothing": {},
        "a list": [dense],
    }
    for name, content in odd.items():
        torch.save(content, tmp_path / "odd.pt")
        with pytest.raises(CheckpointError) as error:
            read_checkpoint(tmp_path / "odd.pt")
        assert "\n" not in str(error.value), name


@pytest.mark.parametrize("file", ["model", "tokenizer"])
def test_whole_numbers_are_no_weights(run: Path, file: str) -> None:
    path = run / f"{file}.safetensors"
    save_weights({key: value.long() for key, value in load_weights(path).items()}, path)
    with pytest.raises(CheckpointError, match=r"holds torch\.int64, the config needs torch\.float32"):
        EditPipeline.from_pretrained(run, "cpu")


@pytest.mark.parametrize("settings", [["teacher.dim=5"], ["teacher.grid=3"], ["teacher.grid=2", "teacher.dim=12"]])
def test_a_teacher_that_does_not_fit_is_refused_before_data_is_encoded(
    tmp_path: Path, tiny_tokenizer: Path, settings: list[str]
) -> None:
    with pytest.raises(ConfigError, match=r"teacher"):
        train(load_config(TrainConfig, "train", tiny_overrides(tmp_path / "run", tiny_tokenizer, *settings)))
    assert list((tmp_path / "run").iterdir()) == []


def test_exchanged_weights_are_told_apart(run: Path) -> None:
    """Swapped files are told apart by what they hold."""
    model, tokenizer = run / "model.safetensors", run / "tokenizer.safetensors"
    first, second = model.read_bytes(), tokenizer.read_bytes()
    model.write_bytes(second)
    tokenizer.write_bytes(first)
    with pytest.raises(CheckpointError, match="a VQ tokenizer, where a GPT is wanted"):
        EditPipeline.from_pretrained(run, torch.device("cpu"))


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


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (("n_head: 2", "n_head: 1"), "gpt.n_head=1, was 2"),
        (("base: 50.0", "base: 60.0"), "rope.base=60.0, was 50.0"),
        (("nano_seed: 0", "nano_seed: 4"), "text.nano_seed=4, was 0"),
    ],
)
def test_other_settings_than_the_trained_are_refused(
    tiny_run: Path, run: Path, change: tuple[str, str], told: str
) -> None:
    """No tensor has another shape, and every picture would be another one."""
    text = (run / "config.yaml").read_text()
    assert change[0] in text
    (run / "config.yaml").write_text(text.replace(*change))
    with pytest.raises(CheckpointError, match=rf"other settings than the GPT was trained with \({re.escape(told)}\)"):
        EditPipeline.from_pretrained(run, "cpu")


def test_every_pair_of_weights_names_its_tokenizer(tiny_run: Path, tiny_tokenizer: Path, tmp_path: Path) -> None:
    export(tiny_run, tmp_path / "exported")
    EditPipeline.from_pretrained(tiny_run, "cpu").save_pretrained(tmp_path / "saved")
    import_weights(tiny_run, tmp_path / "imported", tokenizer=str(tiny_tokenizer))
    made = [tiny_run, *(tmp_path / name for name in ("exported", "saved", "imported"))]
    assert len({weights_header(folder / "model.safetensors")["settings"] for folder in made}) == 1
    shipped = [ROOT / "reference/nano", ROOT / "reference/nano_pairs"]
    for folder in (*made, *shipped):
        named = weights_header(folder / "model.safetensors")["tokenizer"]
        assert named == vq_checksum(load_weights(folder / "tokenizer.safetensors"))
        EditPipeline.from_pretrained(folder, "cpu")


def test_an_expanded_tensor_is_named(tmp_path: Path) -> None:
    """A file of some kB that would fill 4 TB."""
    torch.save({"model": {"tok_embeddings.weight": torch.zeros(1).expand(2**20, 2**20)}}, tmp_path / "w.pt")
    with pytest.raises(CheckpointError, match=r"w\.pt: its tensors take 4,398 GB; no model here has so many"):
        read_checkpoint(tmp_path / "w.pt")


def test_weights_of_more_source_images_say_so(tiny_tokenizer: Path, tmp_path: Path) -> None:
    given = tiny_overrides(tmp_path / "run", tiny_tokenizer, f"init_from={ROOT / 'reference/nano_pairs'}")
    with pytest.raises(CheckpointError, match=r"these weights need .*data\.images=2"):
        train(train_config(*given))


@pytest.mark.parametrize("file", ["model", "tokenizer"])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_weights_that_are_not_finite_do_not_edit(run: Path, file: str, value: float) -> None:
    path = run / f"{file}.safetensors"
    state = load_weights(path)
    name = {"model": "output.weight", "tokenizer": "decoder.conv_out.weight"}[file]
    state[name].view(-1)[3] = value
    save_weights(state, path)
    with pytest.raises(CheckpointError, match=rf"not finite: {name}"):
        EditPipeline.from_pretrained(run, "cpu")


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


@pytest.mark.parametrize("entry", ["0", "2"])
def test_an_entry_cut_short_in_a_torch_file_is_noticed(tmp_path: Path, entry: str) -> None:
    """The archive's own checksums are right, and torch would read on behind the entry's end."""
    torch.save(
        {
            "model": {"a": torch.ones(1000), "none": torch.ones(0)},
            "optimizer": {"state": {0: {"step": [torch.ones(50)]}}},
        },
        tmp_path / "a.pt",
    )
    with zipfile.ZipFile(tmp_path / "a.pt") as whole, zipfile.ZipFile(tmp_path / "b.pt", "w") as cut:
        for name in whole.namelist():
            content = whole.read(name)
            cut.writestr(name, content[: len(content) * 9 // 10] if name.endswith(f"data/{entry}") else content)
    assert read_file(tmp_path / "a.pt")["model"]["a"].sum() == 1000
    with pytest.raises(CheckpointError, match=r"b\.pt: truncated or damaged \(no entry has the (4000|200) bytes of"):
        read_file(tmp_path / "b.pt")


def test_a_networks_pickle_is_not_run_nor_recommended(tmp_path: Path) -> None:
    from transformers import CLIPModel

    class Evil:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "run",))

    folder = write_clip(tmp_path / "clip")
    (folder / "model.safetensors").unlink()
    torch.save({"a": Evil()}, folder / "pytorch_model.bin")
    with pytest.raises(ConfigError, match="its weights are a pickle that holds more than tensors; take safetensors"):
        pretrained(CLIPModel, str(folder), "clip")
    assert not (tmp_path / "run").exists()


def test_weights_without_values(tmp_path: Path) -> None:
    torch.save({"model": {"x": torch.empty(3, device="meta")}}, tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match=r"sparse or empty \(meta\) tensors \(x\)"):
        read_checkpoint(tmp_path / "a.pt")


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
    state = load_weights(tiny_run / "tokenizer.safetensors")
    state["decoder.conv_out.bias"] += torch.inf
    save_weights(state, tmp_path / "tokenizer.safetensors")
    with pytest.raises(CheckpointError, match=r"tokenizer\.safetensors: not finite: decoder\.conv_out\.bias"):
        import_weights(
            tiny_run / "model.safetensors", tmp_path / "converted", tokenizer=str(tmp_path / "tokenizer.safetensors")
        )


def test_a_tokenizer_that_overflows_draws_nothing(tiny_run: Path, tmp_path: Path) -> None:
    run = bare(tiny_run, tmp_path / "run")
    state = load_weights(run / "tokenizer.safetensors")
    key = next(key for key in state if key.startswith("decoder.") and key.endswith("norm_out.weight"))
    state[key] = torch.full_like(state[key], 3e38)
    save_pair(run, load_weights(run / "model.safetensors"), state, {})
    with pytest.raises(CheckpointError, match="draws pixels that are not finite"):
        EditPipeline.from_pretrained(run)(np.zeros((64, 64, 3), np.uint8), "x")
