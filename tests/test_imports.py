"""Imports run one way, from the entries down to the configuration: no circles between rooms."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tests.helpers.tiny import ROOT

# Rooms from the bottom up: each may import itself, what stands before it, and nothing after it.
ORDER = (
    "errors",
    "config",
    "runtime",
    "images",
    "conditions",
    "models",
    "weights",
    "data",
    "sampling",
    "training",
    "metrics",
    "tables",
    "generation",
    "evaluation",
    "report",
    "parity",
)
ENTRIES = {"train", "train_tokenizer", "eval", "edit"}
FILES = sorted((ROOT / "editar").rglob("*.py"))


def imports_of(file: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("editar."):
            found.add(node.module.split(".")[1])
        elif isinstance(node, ast.ImportFrom) and node.module == "editar":
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("editar.")}
    return found


@pytest.mark.parametrize("file", FILES, ids=lambda f: str(f.relative_to(ROOT)))
def test_arrows(file: Path) -> None:
    room = file.relative_to(ROOT / "editar").parts[0].removesuffix(".py")
    found = imports_of(file) - {room}
    if room == "__init__":
        assert not found
    elif room in ENTRIES:
        assert not found & ENTRIES
    else:
        assert found <= set(ORDER[: ORDER.index(room)]), f"{file} imports upward: {found}"


def test_the_model_knows_no_files() -> None:
    for name in ("gpt.py", "rope.py"):
        assert imports_of(ROOT / "editar/models" / name) <= {"config", "models"}
    assert imports_of(ROOT / "editar/models/vq.py") == {"config"}
