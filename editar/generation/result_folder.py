"""A method's pictures, wherever they lie: below a folder by the benchmark's names, or by id in a JSON map.

FOLDER                       NAME.png (or .jpg, .webp) for every picture, as `stage=generate` writes them
FOLDER/ID.png                the same, called by their ids alone
FOLDER/annotation_images     the layout of PnPInversion's published outputs; FOLDER/images is ours
FILE.json                    {"id": "path of the picture", ...}, paths relative to the file
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from editar.errors import BenchmarkError
from editar.generation.manifest import MANIFEST, ResultManifest, read_result_manifest
from editar.runtime.files import parse_json

SUBFOLDERS = ("annotation_images", "images")
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".PNG", ".JPG", ".JPEG")


class ResultFolder:
    """`results.path(id, name)` is the picture of one benchmark entry; `made` is our own folder's manifest."""

    def __init__(self, source: str | Path) -> None:
        """Raises BenchmarkError for what is neither a folder nor a JSON map, or a map with a file twice."""
        self.source = Path(source)
        self.map: dict[str, Path] | None = None
        self.made: ResultManifest | None = None
        if self.source.is_dir():
            inner = [self.source / name for name in SUBFOLDERS if (self.source / name).is_dir()]
            self.root = inner[0] if inner else self.source
            self.made = read_result_manifest(self.source)
        elif self.source.is_file():
            self.root = self.source.parent
            self.map = {id: self.root / path for id, path in _read_map(self.source).items()}
            check_once(self.source, self.map)
        else:
            raise BenchmarkError(f"{source}: no such folder; make it with stage=generate or give results=FOLDER")

    @property
    def generated_with(self) -> dict[str, Any] | None:
        """What made our own results; None for anybody else's."""
        return None if self.made is None else self.made.generated_with

    def path(self, id: str, name: str) -> Path:
        """Raises BenchmarkError when there is none."""
        if self.map is None:
            return find_picture(self.root, name, f"{id}.png")
        if id not in self.map:
            raise BenchmarkError(f"{self.source}: no picture for id {id}")
        if not self.map[id].is_file():
            raise BenchmarkError(f"{self.source}: id {id} points to {self.map[id]}, which is not there")
        return self.map[id]

    def beside(self, kind: str, names: Iterable[str]) -> dict[str, Path]:
        """Name -> what our own run kept beside images/ under KIND; {} unless all are there. Raises BenchmarkError
        for pictures of another run."""
        found = {} if self.made is None else {n: self.made.file.parent / kind / f"{n}.png" for n in names}
        if self.made is None or not all(path.is_file() for path in found.values()):
            return {}
        self.made.check(found.values())
        return found

    def check(self, names: dict[str, str]) -> None:
        """Every id of `names` (id -> name) has a picture, there are no others, and in a folder of ours all
        were made by the same run. Raises BenchmarkError that counts and names."""
        found, missing = dict[str, Path](), []
        for id, name in names.items():
            try:
                found[id] = Path(os.path.realpath(self.path(id, name)))
            except BenchmarkError as error:
                missing.append((name, error))
        if missing:
            text = f"{len(missing)} of {len(names)} results are missing, first {missing[0][0]} ({missing[0][1]})"
            advice = "; stage=generate makes the missing ones" if self.made else ""
            raise BenchmarkError(f"{self.source}: {text}{advice}")
        check_once(self.source, found)
        if self.map is not None:
            extra: list[Any] = sorted(set(self.map) - set(names))
        else:
            known = set(found.values())
            files = [path for path in sorted(self.root.rglob("*")) if path.is_file() and path.name[0] != "."]
            extra = [
                path for path in files if path != self.root / MANIFEST and Path(os.path.realpath(path)) not in known
            ]
        if extra:
            text = f"{len(extra)} files belong to no picture of the benchmark, first {extra[0]}"
            raise BenchmarkError(f"{self.source}: {text}")
        if self.made is not None:
            self.made.check(self.path(id, name) for id, name in names.items())


def find_picture(folder: Path, *names: str) -> Path:
    """The first of `folder/name` that is there, or the same with another suffix (results are often kept as PNG).

    Raises BenchmarkError when there is none.
    """
    for path in (folder / name for name in names):
        for candidate in (path, *(path.with_suffix(suffix) for suffix in SUFFIXES)):
            if candidate.is_file():
                return candidate
    other = "".join(f", nor {name}" for name in names[1:] if name != names[0])
    raise BenchmarkError(f"{folder / names[0]}: no such result{other}, nor one with {', '.join(SUFFIXES[:4])}")


def check_once(file: Path, map: dict[str, Path]) -> None:
    """Two ids on one picture would score it twice. Raises BenchmarkError that names `file` and both."""
    seen: dict[Path, str] = {}
    for id, path in map.items():
        if (first := seen.setdefault(Path(os.path.realpath(path)), id)) != id:
            raise BenchmarkError(f"{file}: ids {first} and {id} both point to {path}; each needs its own picture")


def _read_map(file: Path) -> dict[str, str]:
    try:
        raw = parse_json(file.read_bytes())
    except ValueError as error:
        raise BenchmarkError(f"{file}: neither a folder nor readable JSON ({error})") from None
    if not isinstance(raw, dict) or not all(isinstance(value, str) for value in raw.values()):
        raise BenchmarkError(f'{file}: must map ids to paths, {{"000000000000": "outputs/0.png", ...}}')
    return raw
