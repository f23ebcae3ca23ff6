"""The documentation works: commands compose or run, recipes apply, links, paths, settings and messages exist."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import nbformat
import pytest
import yaml
from nbclient import NotebookClient
from omegaconf import OmegaConf
from PIL import Image

from editar.config import CONFIG_DIR, SamplingConfig
from editar.runtime.entry import compose as compose_node
from tests.helpers.commands import ENTRIES, compose
from tests.helpers.markdown import COMMAND, LANGUAGES, MarkdownPage
from tests.helpers.tiny import ROOT, TINY_GPT, TINY_TOKENIZER

EXTENDING = "docs/extending.md"
PAGES = ["README.md", "CONTRIBUTING.md", *sorted(str(file.relative_to(ROOT)) for file in ROOT.glob("docs/*.md"))]
FOLDERS = "editar|configs|scripts|docs|tests|benchmarks|reference|third_party"
# Set in the copy of the repository that the recipes of docs/extending.md were applied to.
APPLIED = "EDITAR_RECIPES_APPLIED" in os.environ


def page(name: str) -> MarkdownPage:
    return MarkdownPage(ROOT / name)


COMMANDS = [(name, command) for name in PAGES for command in page(name).commands]
here = pytest.mark.parametrize("name", [name for name in PAGES if APPLIED or name != EXTENDING])


# --- reading ---------------------------------------------------------------------------------------


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_bytes()) <= 9000


@pytest.mark.parametrize("name", PAGES)
def test_every_block_says_what_it_is(name: str) -> None:
    assert page(name).text.count("```") == 2 * len(page(name).blocks), "a fence that is not at the line's start"
    for block in page(name).blocks:
        assert block.language in LANGUAGES, block.text
        if block.language == "text":
            assert not any(COMMAND.match(line.strip()) for line in block.text.splitlines()), block.text
        elif block.language == "yaml":
            yaml.safe_load(block.text)
        elif block.language == "json":
            json.loads(block.text)


@pytest.mark.parametrize("name", PAGES)
def test_links_lead_somewhere(name: str) -> None:
    for link in page(name).links:
        path, _, anchor = link.partition("#")
        if not link.startswith("https://"):
            target = (ROOT / name).parent / path if path else ROOT / name
            assert target.exists(), f"{name}: {link}"
            assert not anchor or anchor in MarkdownPage(target).anchors, f"{name}: {link}"


@here
def test_named_files_exist(name: str) -> None:
    """In code spans, and in trees and lists of files."""
    found = page(name)
    words = [span for span in found.spans if " " not in span]
    words += [word for block in found.blocks if block.language == "text" for word in block.text.split()]
    for word in words:
        if re.fullmatch(rf"({FOLDERS})(/[\w.\-*/]*)?", word):
            assert any(ROOT.glob(word.rstrip("/"))), f"{name}: {word}"


@here
def test_named_settings_exist(name: str) -> None:
    """`key=value` in a code span is a setting of some entry; of a group, the value is one of its files. A span
    that holds `setting(` is a line of code."""
    for span in page(name).spans:
        for word in span.split() if not COMMAND.match(span) and "setting(" not in span else ():
            if match := re.fullmatch(r"[+~]?([a-z][\w.]*)(=(\S*))?", word):
                key, value = match[1], match[3]
                section, _, inner = key.partition(".")
                is_file = inner in ("py", "yaml", "json", "jsonl", "html", "pt", "safetensors")
                inside = inner and not is_file and section in known_settings()
                if value is not None or word.startswith("~") or inside:
                    assert key in known_settings(), f"{name}: {span}"
                if (CONFIG_DIR / key).is_dir() and re.fullmatch(r"[a-z]\w*", value or ""):
                    assert (CONFIG_DIR / key / f"{value}.yaml").is_file(), f"{name}: {span}"


@cache
def known_settings() -> set[str]:
    """Every key of every entry and group, sections included."""
    xl = compose_node(ENTRIES["train"], "train", ["experiment=editar_xl", "output_dir=x"])
    found = {folder.name for folder in CONFIG_DIR.iterdir() if folder.is_dir()} | {"sampling", "networks"}
    found |= {f"sampling.{key}" for key in vars(SamplingConfig())}
    for node in (xl, *(compose_node(cls, entry, []) for entry, cls in ENTRIES.items())):
        found |= keys(OmegaConf.to_container(node))
    return found | {key.replace("multigen_depth", "NAME") for key in found}


def keys(node: Any, prefix: str = "") -> set[str]:
    if not isinstance(node, dict):
        return set()
    own = {f"{prefix}{key}": value for key, value in node.items()}
    return set(own).union(*(keys(value, f"{key}.") for key, value in own.items()))


def test_quoted_messages_are_those_of_the_code() -> None:
    """First cells of the tables in docs/troubleshooting.md that are code, against what the code can say."""
    sources = [*ROOT.glob("editar/**/*.py"), *ROOT.glob("scripts/*.sh"), ROOT / "Makefile"]
    code = re.sub(r'"\s*\n\s*f?"', "", "\n".join(file.read_text() for file in sources))
    foreign = ("Could not override", "No module named", "operator torchvision::nms", "make", "data wait")
    cells = [line.split("|")[1] for line in page("docs/troubleshooting.md").prose.splitlines() if line.startswith("|")]
    quoted = [text for cell in cells for text in re.findall(r"`([^`]+)`", cell) if not text.startswith(foreign)]
    assert len(quoted) > 100
    assert [text for text in quoted if text not in code and not (ROOT / text).exists()] == []


def test_the_citation_names_the_paper() -> None:
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "authors"} <= set(cited)
    paper = cited["preferred-citation"]
    assert [author["family-names"] for author in paper["authors"]] == ["Mu", "Vasconcelos", "Wang"]
    assert paper["year"] == 2025


# --- composing -------------------------------------------------------------------------------------


@here
def test_commands_compose(name: str) -> None:
    failures = []
    for command in page(name).commands:
        try:
            compose(command)
        except (Exception, SystemExit) as error:
            failures.append(f"{command}\n    {type(error).__name__}: {error}")
    assert not failures, "\n".join(failures)


@pytest.mark.parametrize(
    "command",
    [
        "python -m editar.train output_dir=x judges.clip=null",
        "python -m editar.train gpt=xxxl output_dir=x",
        "python -m editar.eval checkpoint=x output_dir=y sampling.cfg_scal=2",
        "python -m editar.nothing",
        "python scripts/report.py outputs/a --no-such-option",
        "python scripts/plan_gpus.py gpt=xxxl",
        "python scripts/ablate.py runs/a teacher=none,hug",
        "python scripts/nothing.py",
        "torchrun --no-such-option=8 -m editar.train output_dir=x",
        "torchrun -m editar.train outputdir=x",
        "CHECKPOINT=x DATA=y COLOUR=z scripts/table1.sh",
        "CHECKPOINT=x DATA=y scripts/table1.sh no_such=1",
        "make everything",
        "pip install -e '.[extra]'",
        "curl example.com",
    ],
)
def test_a_wrong_command_is_noticed(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises((ValueError, AssertionError, SystemExit)):
        compose(command)


# --- running ---------------------------------------------------------------------------------------

TINY = ["num_workers=0", "log_every=1", *TINY_TOKENIZER]
# Commands of the pages that are run here, in this order, with what makes them small.
RUN: dict[str, list[str]] = {
    "python -m editar.edit image=photo.jpg": [],
    "python -m editar.edit image=PHOTOS": [],
    "python -m editar.edit edits=edits.jsonl": [],
    "python -m editar.eval checkpoint=reference/nano output_dir=outputs/eval samples=480": ["samples=2"],
    "python -m editar.train --help": [],
    "python -m editar.train_tokenizer": ["steps=2", "batch_size=2", "kmeans_at=1", *TINY],
    "python -m editar.train output_dir=runs/nano ": ["steps=2", *TINY_TOKENIZER, *TINY_GPT],
    "python -m editar.train experiment=editar_xl output_dir=runs/xl dry_run=true": [],
    "python -m editar.train data=folder": ["steps=1", "data.heldout_samples=1", *TINY_GPT[:-5], "global_batch=1"],
    "python -m editar.eval benchmark=folder root=FOLDER checkpoint=reference/nano output_dir=outputs/mine": [],
    "python -m editar.eval benchmark=folder root=FOLDER results=FOLDER2": [],
    "python scripts/export_nano.py pie_bench outputs/nano_pie --count 40": ["--count", "1"],
    "python scripts/report.py outputs/pie outputs/ip2p --out report.html": [],
    "python scripts/fetch_weights.py --list": [],
    "python scripts/export_run.py runs/nano exported/nano": [],
    "python -m editar.train experiment=nano_lora": [
        "steps=1",
        "data.heldout_samples=1",
        "num_workers=0",
        "global_batch=1",
    ],
    'python -m editar.edit image=photo.jpg instruction="make it night"': [],
    "python -m editar.eval benchmark=folder root=night_test": [],
    "python scripts/convert_weights.py reference/nano merged --lora": [],
}


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that has what the commands name: the repository's parts, a photograph, a mask, pairs."""
    folder = tmp_path_factory.mktemp("desk")
    for name in ("reference", "scripts", "third_party"):
        (folder / name).symlink_to(ROOT / name)
    Image.new("RGB", (80, 64), "orange").save(folder / "photo.jpg")
    Image.new("L", (80, 64), "white").save(folder / "mask.png")
    (folder / "PHOTOS").mkdir()
    (folder / "PHOTOS/photo.jpg").symlink_to(folder / "photo.jpg")
    line = next(block.text for block in page("docs/editing.md").blocks if block.language == "json")
    (folder / "edits.jsonl").write_text(line)
    (folder / "FOLDER").mkdir()
    for name in ("a", "b"):
        Image.new("RGB", (64, 64), "blue").save(folder / "FOLDER" / f"{name}.png")
    pair = {"source": "a.png", "target": "b.png", "instruction": "make it snow"}
    (folder / "FOLDER/pairs.jsonl").write_text(f"{json.dumps(pair)}\n" * 2)
    for name in ("night", "night_test"):
        shutil.copytree(folder / "FOLDER", folder / name)
    return folder


def test_commands_run(desk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(desk)
    for start, small in RUN.items():
        given = [command for _, command in COMMANDS if command.startswith(start)]
        assert given, f"{start} is in no page any more"
        words = [*shlex.split(given[0], comments=True)[1:], *small]
        if "results=FOLDER2" in words:
            shutil.copytree("outputs/mine/images", "FOLDER2")
        if "outputs/ip2p" in words:
            shutil.copytree("outputs/mine", "outputs/pie")
            shutil.copytree("outputs/theirs", "outputs/ip2p")
        module = words[1] if words[0] == "-m" else words[0].removesuffix(".py").replace("/", ".")
        monkeypatch.setattr(sys, "argv", words[1:] if words[0] == "-m" else words)
        import_module(module).main()
    made = ["out.png", "out_side_by_side.png", "outputs/eval/scores.json", "outputs/eval/grid.png", "report.html"]
    made += ["outputs/edited/photo.png", "outputs/listed/0001_photo.png", "outputs/mine/scores.json"]
    made += ["outputs/nano_pie/mapping_file.json", "exported/nano/model.safetensors"]
    made += ["runs/lora/adapter_model.safetensors", "night.png", "outputs/lora/scores.json", "merged/model.safetensors"]
    assert [name for name in made if not Path(name).is_file()] == []


# Pages with Python -> how many pictures their last line with `images =` makes.
PYTHON = {"README.md": 4, "docs/editing.md": 2, "docs/finetune.md": 60}


def test_pages_with_python_are_known() -> None:
    found = [name for name in PAGES if any(block.language == "python" for block in page(name).blocks)]
    assert set(found) - {EXTENDING} == set(PYTHON)


@pytest.mark.parametrize("name", PYTHON)
def test_python_blocks_run(name: str, desk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(desk)
    names: dict[str, Any] = {}  # later blocks of a page go on with what earlier ones made
    for block in page(name).blocks:
        if block.language == "python":
            exec(compile(block.text, name, "exec"), names)
    assert len(names["images"]) == PYTHON[name]
    assert all(isinstance(image, Image.Image) for image in names["images"])


def test_the_notebook_runs() -> None:
    """In a kernel of its own, as a reader runs it; pictures come out."""
    notebook = nbformat.read(ROOT / "docs/edit_and_score.ipynb", as_version=4)
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(ROOT)}}).execute()
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert sum("image/png" in output.get("data", {}) for cell in cells for output in cell.outputs) == 3
    assert re.search(r"\d+ of 16 edits succeed", str(cells[-1].outputs))


# --- recipes ---------------------------------------------------------------------------------------

NEW = re.compile(r"New file `([^`]+)`:$")
EDIT = re.compile(r"In `([^`]+)`, (before|after|instead of) the line `([^`]+)`:$")


def apply(block_text: str, label: str, root: Path) -> str:
    """Do to `root` what a recipe's paragraph says with its block -> the file."""
    if match := NEW.search(label):
        file = root / match[1]
        assert not file.exists(), f"{match[1]} exists already"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(block_text)
        return match[1]
    match = EDIT.search(label)
    assert match, f"not an instruction: {label}"
    file = root / match[1]
    lines = file.read_text().splitlines(keepends=True)
    places = [number for number, line in enumerate(lines) if line.strip() == match[3]]
    assert len(places) == 1, f"{match[1]} has the line {match[3]} {len(places)} times"
    start, end = {"before": (0, 0), "after": (1, 1), "instead of": (0, 1)}[match[2]]
    if block_text.startswith("def "):
        block_text += "\n\n"
    lines[places[0] + start : places[0] + end] = [block_text]
    file.write_text("".join(lines))
    return match[1]


@pytest.mark.skipif(APPLIED, reason="this is the copy that they were applied to")
def test_recipes(tmp_path: Path) -> None:
    """Apply them to a copy of the repository; there, run their tests and compose the commands of the page."""
    names = ("editar", "configs", "scripts", "benchmarks", "docs", "tests", "pyproject.toml", "constraints.txt")
    for name in (*names, "Makefile", "README.md", "CONTRIBUTING.md", "CITATION.cff", "CHANGELOG.md"):
        if (ROOT / name).is_file():
            shutil.copy(ROOT / name, tmp_path)
        else:
            shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("golden", "__pycache__"))
    for name in ("reference", "third_party"):
        (tmp_path / name).symlink_to(ROOT / name)
    blocks = [block for block in page(EXTENDING).blocks if block.language in ("python", "yaml")]
    changed = [apply(block.text, block.before, tmp_path) for block in blocks]
    tests = [name for name in changed if name.startswith("tests/")]
    assert len(tests) == 5
    own = [f"tests/test_docs.py::{test}[{EXTENDING}]" for test in OWN]
    environment = os.environ | {"PYTHONPATH": str(tmp_path), "EDITAR_RECIPES_APPLIED": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", *tests, *own],
        cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=400,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-1000:]
    assert f"{len(tests) + len(own)} passed" in done.stdout


OWN = ("test_commands_compose", "test_named_files_exist", "test_named_settings_exist")
