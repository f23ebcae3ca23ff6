"""A run folder made small: what editing needs, in half the bytes, and nothing about the machine."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from editar.errors import CheckpointError
from editar.runtime.files import CHECKSUM, load_weights, save_weights, tensors_crc
from editar.sampling.pipeline import EditPipeline
from scripts.export_run import export
from tests.helpers.tiny import GOLDEN, run_module


def test_an_exported_run_edits(tmp_path: Path, tiny_run: Path) -> None:
    out = tmp_path / "out"
    done = run_module("scripts/export_run.py", str(tiny_run), str(out))
    assert done.returncode == 0, done.stderr
    whole, half = (load_weights(folder / "model.safetensors") for folder in (tiny_run, out))
    assert all(torch.equal(value, whole[key].half()) for key, value in half.items()) and half.keys() == whole.keys()
    with safe_open(str(out / "model.safetensors"), "pt") as file:
        assert file.metadata().items() > {"format": "pt", "step": "4", CHECKSUM: tensors_crc(half)}.items()
    assert not load_weights(out / "tokenizer.safetensors")["quantize.codebook_used"].any()
    starts = json.loads((out / "provenance.json").read_text())
    assert "command" in starts[0] and "host" not in starts[0]
    pipeline = EditPipeline.from_pretrained(out, "cpu")
    assert len(pipeline(GOLDEN / "release_ckpt" / "image_0.png", "make the red circle blue")) == 1


def test_the_decoder_may_be_newer_but_not_the_codes(tmp_path: Path, tiny_run: Path) -> None:
    newer = load_weights(tiny_run / "tokenizer.safetensors")
    newer["decoder.conv_out.bias"] += 1
    (tmp_path / "decoder").mkdir()
    save_weights(newer, tmp_path / "decoder" / "model.safetensors")
    export(tiny_run, tmp_path / "out", tmp_path / "decoder")
    exported = load_weights(tmp_path / "out" / "tokenizer.safetensors")
    assert torch.equal(exported["decoder.conv_out.bias"], newer["decoder.conv_out.bias"].half())
    newer["quant_conv.bias"] += 1
    save_weights(newer, tmp_path / "decoder" / "model.safetensors")
    with pytest.raises(CheckpointError, match="has other codes than the run; train it with freeze_codes=true"):
        export(tiny_run, tmp_path / "refused", tmp_path / "decoder")
    assert not (tmp_path / "refused").exists()


def test_what_is_no_run_folder_is_one_line(tmp_path: Path) -> None:
    done = run_module("scripts/export_run.py", str(tmp_path), str(tmp_path / "out"))
    assert done.returncode == 2
    assert done.stderr.strip() == f"export_run: {tmp_path}/model.safetensors: no such weights file"
