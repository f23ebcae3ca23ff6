"""editar against stored outputs of the official code, and the checker against stored lies."""

from __future__ import annotations

import importlib.util
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from editar.data.sources import official_prompt, remove_instruction
from editar.parity.checks import Check, error_of
from editar.parity.groups import GROUPS, run_all
from tests.helpers import tiny

GOLDEN = tiny.GOLDEN
SCRIPT = tiny.ROOT / "scripts" / "check_parity.py"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("check_parity", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def copy_group(group: str, root: Path) -> Path:
    """A writable copy of one stored group, alone under `root`."""
    return Path(shutil.copytree(GOLDEN / group, root / group))


@pytest.mark.parametrize("group", GROUPS)
def test_group_matches(group: str, tmp_path: Path) -> None:
    (tmp_path / group).symlink_to(GOLDEN / group, target_is_directory=True)
    lines = list(run_all(tmp_path, torch.device("cpu"), torch.float32))
    checks = [line for line in lines if isinstance(line, Check)]
    assert len(checks) >= 20
    assert [check.line() for check in checks if not check.ok] == []


def test_script_counts_and_skips(script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copy_group("sampling", tmp_path)
    (tmp_path / "astrology").mkdir()
    assert script.main([str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    compared = [line for line in lines[:-1] if "skipped:" not in line]
    assert lines[-1] == f"{len(compared)} checks, 0 failed"
    assert all(line.endswith("ok") for line in compared)
    assert [line.split() for line in lines if line.startswith("astrology")] == [
        ["astrology", "skipped:", "not", "supported", "yet"]
    ]


@pytest.mark.parametrize("group", ["gpt", "release_ckpt"])
def test_bfloat16_stays_within_its_bounds(group: str, tmp_path: Path) -> None:
    (tmp_path / group).symlink_to(GOLDEN / group, target_is_directory=True)
    lines = run_all(tmp_path, torch.device("cpu"), torch.bfloat16)
    assert [line.line() for line in lines if isinstance(line, Check) and not line.ok] == []


# --- a wrong number is found ----------------------------------------------------------------------


def edit_tensors(path: Path, change: Callable[[Any], None]) -> None:
    values = torch.load(path, weights_only=True)
    change(values)
    torch.save(values, path)


def edit_json(path: Path, change: Callable[[Any], None]) -> None:
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))


def edit_array(path: Path, change: Callable[[Any], None]) -> None:
    values = np.load(path)
    change(values)
    np.save(path, values)


def nudge(*keys: str, by: float = 1e-3) -> Callable[[Any], None]:
    """Add `by` to the first number of the tensor under `keys`."""

    def change(values: Any) -> None:
        for key in keys:
            values = values[key]
        values.view(-1)[0] += by

    return change


def first_token(values: Any) -> None:
    values["cases"][0]["tokens"][0][0] += 1


def dropped(values: Any) -> None:
    values[0]["image_dropped"] = False


def removal(values: Any) -> None:
    values[0]["flipped"]["edit_text"] += "!"


def pixel(values: Any) -> None:
    values[0, 0, 0] += 1e-4


# group -> what is changed in it: file, how, and the check that must fail
WRONG = {
    "gpt": [
        ("train_forward.pt", edit_tensors, nudge("mixed", "logits"), "forward mixed logits"),
        ("grads.pt", edit_tensors, nudge("none", "norms", "norm.weight", by=1e-2), "gradients none norms"),
        ("train_steps.pt", edit_tensors, nudge("params_after", "norm.weight"), "after steps norm.weight"),
        ("decode.pt", edit_tensors, nudge("img0_uncond"), "decode img0 uncond"),
        ("greedy.json", edit_json, first_token, "greedy img1_cfg1.0_topk0"),
        ("dropout_table.json", edit_json, dropped, "dropout table, image"),
    ],
    "release_ckpt": [
        ("expected.pt", edit_tensors, nudge("upstream_t2i_train_logits"), "t2i itself logits"),
        ("expected.pt", edit_tensors, nudge("greedy_tokens_cfg3", by=1), "release greedy_tokens_cfg3"),
    ],
    "vq": [
        ("outputs.pt", edit_tensors, nudge("random_indices_decode"), "decoded picture of random codes"),
        ("outputs.pt", edit_tensors, nudge("no_l2_indices", by=1), "no l2: codes"),
    ],
    "preprocess": [
        ("rgba.npy", edit_array, pixel, "rgba.png tensor"),
        ("pipe_instructions.json", edit_json, removal, "add/remove instruction 0 flipped"),
    ],
    "sampling": [
        ("sampling.pt", edit_tensors, nudge("cfg_3.0"), "guidance scale 3"),
        ("sampling.pt", edit_tensors, nudge("k5_p1.0", by=math.inf), "filter k5_p1.0"),
    ],
}


@pytest.mark.parametrize("group", WRONG)
def test_changed_values_fail(
    script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str], group: str
) -> None:
    """Each changed number makes its own check fail, and few others."""
    folder = copy_group(group, tmp_path)
    for file, edit, change, _ in WRONG[group]:
        edit(folder / file, change)
    assert script.main([str(tmp_path)]) == 1
    lines = capsys.readouterr().out.splitlines()
    failed = [line for line in lines if "FAIL" in line]
    for _, _, _, title in WRONG[group]:
        assert any(line.startswith(f"{group}: {title}") for line in failed), (title, failed)
    assert len(failed) <= 2 * len(WRONG[group])
    assert lines[-1].endswith(f"checks, {len(failed)} failed")


# --- a broken folder is one line ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("group", "file"), [("gpt", "grads.pt"), ("vq", "config.json"), ("preprocess", "rgba_canny.npy")]
)
def test_missing_file_is_named(
    script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str], group: str, file: str
) -> None:
    (copy_group(group, tmp_path) / file).unlink()
    assert script.main([str(tmp_path)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    assert "FAIL" in lines[0]
    assert lines[0].endswith(f"(missing: {file})")
    assert lines[1] == "1 checks, 1 failed"


@pytest.mark.parametrize(
    ("file", "found"), [("sampling.pt", "not a readable tensor"), ("index.json", "not readable JSON")]
)
def test_damaged_file_is_named(
    script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str], file: str, found: str
) -> None:
    path = copy_group("sampling", tmp_path) / file
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert script.main([str(tmp_path)]) == 1
    line, total = capsys.readouterr().out.splitlines()
    assert f"sampling/{file}: {found}" in line
    assert total == "1 checks, 1 failed"


def test_absent_entry_is_named(script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    edit_tensors(copy_group("sampling", tmp_path) / "sampling.pt", lambda values: values.pop("sample0_probs"))
    assert script.main([str(tmp_path)]) == 1
    assert "sampling/sampling.pt: has no entry sample0_probs" in capsys.readouterr().out


def test_folder_without_groups(script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(SystemExit, match="2"):
            script.main([str(folder)])
    assert len(capsys.readouterr().err.splitlines()) == 2


# --- small parts ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "found", "stored", "error"),
    [
        ("absolute", [1.0, 2.0], [1.0, 4.0], 2.0),
        ("scaled", [1.0, 2.0], [1.0, 4.0], 0.5),
        ("scaled", [0.0, 0.1], [0.0, 0.2], 0.1),
        ("relative", [0.0, 0.1], [0.0, 0.2], 0.5),
        ("elements", [2.0, 100.0], [1.0, 100.0], 1.0),
        ("differing", [1.0, 2.0], [1.0, 4.0], 0.5),
        ("scaled", [-math.inf, 1.0], [-math.inf, 1.0], 0.0),
        ("scaled", [0.0, 1.0], [-math.inf, 1.0], math.inf),
        ("elements", [math.nan, 1.0], [math.nan, 1.0], 0.0),
        ("elements", [math.nan, 1.0], [0.0, 1.0], math.inf),
    ],
)
def test_error_kinds(kind: str, found: list[float], stored: list[float], error: float) -> None:
    measured = error_of(kind, torch.tensor(found).double(), torch.tensor(stored).double())
    assert measured == pytest.approx(error)


def test_nan_error_is_not_ok() -> None:
    assert not Check("x", math.nan, 1.0, "scaled").ok


def test_prompts() -> None:
    assert official_prompt("multigen_depth").format("a {curly} barn").endswith("description: a {curly} barn")
    assert remove_instruction("Insert 2 birds") == "Remove rt 2 birds"
