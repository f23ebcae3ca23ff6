"""What a fourth attack found, by somebody who knew neither the tests nor the earlier ones."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest


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
