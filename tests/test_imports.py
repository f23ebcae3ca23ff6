"""Imports run one way, from the entries down to the configuration: no circles between rooms."""

from __future__ import annotations

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
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
ENTRIES = {"train", "train_tokenizer", "eval", "edit", "app"}
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
        assert found == {"sampling"}  # EditPipeline, when it is first asked for
    elif room in ENTRIES:
        assert not found & ENTRIES
    else:
        assert found <= set(ORDER[: ORDER.index(room)]), f"{file} imports upward: {found}"


def test_any_module_may_be_imported_first() -> None:
    """No circle of imports, inside of a room neither: which of its modules came first would decide whether it works."""
    names = {module_name(file): file for file in FILES}
    needed = {name: set[str]() for name in names}
    for name, file in names.items():
        for node in ast.parse(file.read_text()).body:  # what stands in a function is imported later
            if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("editar"):
                wanted = {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
                packages = {parent for one in wanted for parent in parents(one)}
                needed[name] |= ((wanted | packages) & names.keys()) - parents(name) - {name}
    order = list(TopologicalSorter(needed).static_order())  # CycleError names the circle
    assert set(order) == names.keys()
    assert all(order.index(one) < order.index(name) for name in names for one in needed[name])


def module_name(file: Path) -> str:
    return ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def parents(name: str) -> set[str]:
    parts = name.split(".")
    return {".".join(parts[:end]) for end in range(1, len(parts))}


def test_the_model_knows_no_files() -> None:
    for name in ("gpt.py", "rope.py"):
        assert imports_of(ROOT / "editar/models" / name) <= {"config", "models"}
    assert imports_of(ROOT / "editar/models/vq.py") == {"config"}


def test_the_package_alone_imports_nothing_heavy() -> None:
    code = "import sys, editar; assert 'torch' not in sys.modules; print(editar.EditPipeline.__name__)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "EditPipeline", done.stderr


def test_help_needs_no_torch() -> None:
    code = "import sys; from editar.edit import main; sys.argv = ['', '--help']; main(); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stdout.startswith("usage: python -m editar.edit") and done.stdout.endswith("False\n"), done.stderr


def test_no_two_public_things_share_a_name() -> None:
    seen: dict[str, Path] = {}
    for file in FILES:
        if file.parent.name == "parity":  # its modules share the names of one interface
            continue
        for node in ast.parse(file.read_text()).body:
            if (
                isinstance(node, (ast.FunctionDef, ast.ClassDef))
                and not node.name.startswith("_")
                and node.name != "main"
            ):
                assert node.name not in seen, f"{node.name}: {seen[node.name]} and {file}"
                seen[node.name] = file
