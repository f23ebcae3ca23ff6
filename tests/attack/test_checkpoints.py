"""Checkpoints from strangers, damaged ones and half-written folders: nothing is run, nothing wrong is loaded."""

from __future__ import annotations

import json
import os
import pickle
import random
import subprocess
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.checkpoint import FileSystemReader
from torch.distributed.checkpoint.metadata import BytesStorageMetadata, Metadata

from editar.errors import CheckpointError
from editar.runtime.files import load_weights, save_weights, weights_step
from editar.weights.run_checkpoint import damage, read_whole
from tests.attack.conftest import Continue


class Evil:
    """Pickles as a call."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


def payloads(marker: Path) -> dict[str, Evil]:
    """Calls that make the file `marker`, by what they go through."""
    shell, python = f"touch {marker}", f"open({str(marker)!r}, 'w').close()"
    return {
        "os.system": Evil(os.system, shell),
        "eval": Evil(eval, python),
        "exec": Evil(exec, python),
        "open": Evil(open, str(marker), "w"),
        "subprocess": Evil(subprocess.check_call, ["touch", str(marker)]),
        "a method": Evil(Path.touch, Path(marker)),
        "torch.save": Evil(torch.save, [], str(marker)),
        "a call inside the arguments": Evil(torch.Size, Evil(os.system, shell)),
    }


def places(evil: Evil, table: Metadata) -> dict[str, Any]:
    """The payload as the whole file, and in every part of a table of contents that is otherwise right."""
    parts = ("planner_data", "storage_data", "state_dict_metadata", "storage_meta", "version")
    whole = {name: pickle.loads(pickle.dumps(table)) for name in parts}
    for name, changed in whole.items():
        value = getattr(changed, name)
        setattr(changed, name, {**value, "x": evil} if isinstance(value, dict) else evil)
    return {"alone": evil, **whole}


def drop_checksums(checkpoint: Path) -> None:
    """As a stranger would: who can write the files can write their sums."""
    state = json.loads((checkpoint / "state.json").read_text())
    del state["sha256"]
    (checkpoint / "state.json").write_text(json.dumps(state))


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 4
    file.write_bytes(content)


def change_step(step: Any) -> Callable[[Path], Any]:
    def change(file: Path) -> None:
        file.write_text(json.dumps(json.loads(file.read_text()) | {"step": step}))

    return change


DAMAGE: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "flipped": ("__0_0.distcp", flip),
    "truncated": ("__0_0.distcp", truncate),
    "gone": ("__0_0.distcp", Path.unlink),
    "table gone": (".metadata", Path.unlink),
    "state gone": ("state.json", Path.unlink),
    "state empty": ("state.json", lambda file: file.write_text("")),
    "state a list": ("state.json", lambda file: file.write_text("[]")),
    "another step": ("state.json", change_step(2)),
    "step below zero": ("state.json", change_step(-5)),
    "step a text": ("state.json", change_step("x")),
    "step without end": ("state.json", change_step(1e400)),
    "sums a number": ("state.json", lambda file: file.write_text('{"step": 4, "sha256": 7}')),
}


def test_no_pickle_of_a_strangers_checkpoint_is_run(run: Path, go_on: Continue, tmp_path: Path) -> None:
    checkpoint, marker, count = run / "checkpoints/step_0000004", tmp_path / "was_run", 0
    table = FileSystemReader(checkpoint).read_metadata()
    drop_checksums(checkpoint)
    for evil in payloads(marker).values():
        with suppress(TypeError):  # torch.Size does not like what os.system returns
            pickle.loads(pickle.dumps(evil))
        assert marker.exists()  # the payload works where nothing holds it back
        marker.unlink(missing_ok=True)
        for value in places(evil, table).values():
            for protocol in (0, 2, 4):
                (checkpoint / ".metadata").write_bytes(pickle.dumps(value, protocol))
                with pytest.raises(CheckpointError, match=r"not a readable checkpoint \(refused: it names") as error:
                    read_whole(checkpoint)
                assert "\n" not in str(error.value) and not marker.exists()
                count += 1
        with pytest.raises(CheckpointError, match="refused: it names"):
            go_on(run)
        assert not marker.exists()
        count += 1
    print(f"{count} malicious tables of contents refused, none run")


def test_entries_that_dcp_would_unpickle_and_files_elsewhere_are_refused(
    run: Path, go_on: Continue, tmp_path: Path
) -> None:
    checkpoint, marker = run / "checkpoints/step_0000004", tmp_path / "was_run"
    original = FileSystemReader(checkpoint).read_metadata()
    drop_checksums(checkpoint)

    def bytes_entry(table: Any) -> None:
        (index,) = (index for index in table.storage_data if index.fqn == "model.output.weight")
        data = pickle.dumps(Evil(os.system, f"touch {marker}"))
        (checkpoint / "evil.distcp").write_bytes(data)
        table.storage_data[index].relative_path, table.storage_data[index].offset = "evil.distcp", 0
        table.storage_data[index].length = len(data)
        table.state_dict_metadata["model.output.weight"] = BytesStorageMetadata()

    def outside(table: Any) -> None:
        next(iter(table.storage_data.values())).relative_path = "../../../secret.distcp"

    for change in (bytes_entry, outside):
        table = pickle.loads(pickle.dumps(original))
        change(table)
        (checkpoint / ".metadata").write_bytes(pickle.dumps(table))
        for read in (lambda: read_whole(checkpoint), lambda: go_on(run)):
            with pytest.raises(CheckpointError, match="refused: "):
                read()
            assert not marker.exists()


def test_every_flipped_bit_is_found(run: Path) -> None:
    checkpoint, rng, count = run / "checkpoints/step_0000004", random.Random(0), 0
    assert damage(checkpoint) is None
    for file in sorted(path for path in checkpoint.iterdir() if path.name != "state.json"):
        whole = file.read_bytes()
        for position in rng.sample(range(len(whole)), 40):
            changed = bytearray(whole)
            changed[position] ^= 1 << rng.randrange(8)
            file.write_bytes(changed)
            assert damage(checkpoint) == f"{file.name} is not as it was written"
            count += 1
        file.write_bytes(whole)
    assert damage(checkpoint) is None
    print(f"{count} flipped bits found")


@pytest.mark.slow
@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_newest_checkpoint_gives_way_to_the_one_before(
    run: Path, tiny_run: Path, go_on: Continue, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    file, harm = DAMAGE[name]
    harm(run / "checkpoints/step_0000004" / file)
    with pytest.raises(CheckpointError, match=r"step_0000004: not a readable checkpoint"):
        read_whole(run / "checkpoints/step_0000004")
    go_on(run)
    said = capsys.readouterr().err
    assert said.count("warning: step_0000004 is damaged (") == 1 and f"resuming {run} at step 2" in said
    assert damage(run / "checkpoints/step_0000004") is None
    assert (run / "model.safetensors").read_bytes() == (tiny_run / "model.safetensors").read_bytes()


def test_when_all_are_damaged_a_line_says_so(run: Path, go_on: Continue) -> None:
    for checkpoint in (run / "checkpoints").iterdir():
        flip(checkpoint / "__0_0.distcp")
    with pytest.raises(CheckpointError, match=r"step_0000002: not readable .*__0_0.distcp is not as it was written"):
        go_on(run)


def test_checkpoints_from_before_checksums_load_with_a_note(
    run: Path, go_on: Continue, capsys: pytest.CaptureFixture[str]
) -> None:
    drop_checksums(run / "checkpoints/step_0000004")
    go_on(run)
    assert "step_0000004 is older than checksums and was not checked" in capsys.readouterr().err


@pytest.mark.parametrize("left", ["older", "newer", "missing", "truncated", "no step"])
def test_weights_that_a_kill_left_behind_are_repaired(run: Path, tiny_run: Path, go_on: Continue, left: str) -> None:
    """A kill between a checkpoint's rename and the write of model.safetensors, or before the rename."""
    file = run / "model.safetensors"
    wrong = {key: torch.zeros_like(value) for key, value in load_weights(file).items()}
    if left in ("older", "newer", "no step"):
        save_weights(wrong, file, {"step": {"older": "2", "newer": "6"}[left]} if left != "no step" else None)
    elif left == "truncated":
        truncate(file)
    else:
        file.unlink()
    go_on(run)
    assert weights_step(file) == 4
    assert file.read_bytes() == (tiny_run / "model.safetensors").read_bytes()


def test_a_checkpoint_with_a_pipe_in_it(tmp_path: Path) -> None:
    (tmp_path / "step_0000001").mkdir()
    os.mkfifo(tmp_path / "step_0000001" / "state.json")
    assert damage(tmp_path / "step_0000001") == "state.json is not a plain file"
