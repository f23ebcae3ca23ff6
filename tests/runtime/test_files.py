"""Weight files: equal input gives equal bytes, and a load judges every key before it copies any."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import nn

from editar.errors import CheckpointError
from editar.runtime.files import CHECKSUM, load_state, load_weights, save_weights, tensors_crc


def test_weights_are_readable_by_whom_other_files_are(tmp_path: Path) -> None:
    save_weights({"a": torch.zeros(2)}, tmp_path / "weights.safetensors")
    (tmp_path / "plain").touch()
    assert (tmp_path / "weights.safetensors").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_equal_weights_give_equal_bytes(tmp_path: Path) -> None:
    """safetensors alone writes metadata in an order drawn anew for each file."""
    state = {"z.weight": torch.randn(3, 2), "a.größe": torch.ones(5, dtype=torch.int64), "empty": torch.zeros(0)}
    metadata = {f"key {i}": f'wert "{i}" ä' for i in range(5)}
    for i in range(8):
        pairs = list(state.items())[:: 1 if i % 2 else -1]
        save_weights(dict(pairs), tmp_path / f"{i}.safetensors", metadata)
    first, *others = [(tmp_path / f"{i}.safetensors").read_bytes() for i in range(8)]
    assert all(other == first for other in others)
    found = load_weights(tmp_path / "0.safetensors")
    assert found.keys() == state.keys() and all(torch.equal(found[key], state[key]) for key in state)
    with safe_open(str(tmp_path / "0.safetensors"), "pt") as file:
        assert file.metadata() == {"format": "pt", CHECKSUM: tensors_crc(state)} | metadata


def test_a_load_that_does_not_fit_names_its_problems_and_copies_nothing() -> None:
    module = nn.Linear(2, 3)
    before = module.weight.detach().clone()
    with pytest.raises(CheckpointError) as error:
        load_state(module, {"weight": torch.zeros(3, 2), "scale": torch.zeros(1)}, "file.pt")
    assert str(error.value) == "file.pt: does not fit the configured model: missing bias; unexpected scale"
    with pytest.raises(CheckpointError, match=r"bias is \(2,\), the config needs \(3,\)"):
        load_state(module, {"weight": torch.zeros(3, 2), "bias": torch.zeros(2)}, "file.pt")
    assert torch.equal(module.weight, before)
