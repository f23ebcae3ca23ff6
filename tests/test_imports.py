"""Arrows run one way: entries -> evaluation, training -> sampling -> encoders, model, data -> config, images."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from conftest import ROOT

# package or module -> what of editar it may import
MAY_IMPORT = {
    "config": {"config"},
    "images": set(),
    "conditions": {"images"},
    "runtime": {"config", "images", "runtime"},
    "model": {"config", "model", "runtime"},
    "encoders": {"config", "images", "encoders", "runtime"},
    "data": {"config", "images", "conditions", "encoders", "runtime", "data"},
    "sampling": {"config", "images", "encoders", "model", "runtime", "sampling"},
    "training": {"config", "images", "data", "encoders", "model", "runtime", "sampling", "training"},
    "evaluation": {
        "config",
        "images",
        "conditions",
        "data",
        "encoders",
        "model",
        "runtime",
        "sampling",
        "evaluation",
    },
    "parity": {
        "config",
        "images",
        "conditions",
        "data",
        "encoders",
        "evaluation",
        "model",
        "runtime",
        "sampling",
        "training",
        "parity",
    },
}
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
    part = file.relative_to(ROOT / "editar").parts[0].removesuffix(".py")
    if part == "__init__":
        assert not imports_of(file)
    elif part in ENTRIES:
        assert not imports_of(file) & ENTRIES
    else:
        assert imports_of(file) <= MAY_IMPORT[part], f"{file} imports upward"


def test_the_model_knows_no_files() -> None:
    for name in ("gpt.py", "rope.py"):
        assert imports_of(ROOT / "editar/model" / name) <= {"config", "model"}
    assert imports_of(ROOT / "editar/encoders/vq.py") == {"config"}
