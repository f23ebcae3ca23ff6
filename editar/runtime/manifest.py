"""Outside weights: what `third_party/weights.yaml` lists and where `scripts/fetch_weights.py` puts it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from editar.config import CONFIG_DIR, from_plain, read_yaml
from editar.config.entries import MISSING
from editar.errors import CheckpointError, ConfigError, one_line

MANIFEST = CONFIG_DIR.parent / "third_party" / "weights.yaml"
CHECKPOINTS = Path("checkpoints")


@dataclass
class WeightsFile:
    file: str = MISSING  # name in the repository; `a | b` = the first that exists
    to: str = ""  # checkpoints/...; ends in / to keep the name; empty: its place in the repository, below `folder`
    size: int | None = None
    sha256: str | None = None
    sha256_prefix: str | None = None
    url: str | None = None


@dataclass
class WeightsEntry:
    """One outside weight. `used_by`: edit, train, evaluate, baselines. `folder`: where the repository's files keep
    their places, if they do."""

    what: str = MISSING
    repo: str | None = None
    repo_type: str | None = None  # model | dataset
    licence: str = MISSING
    used_by: list[str] = field(default_factory=list)
    use: str | None = None
    folder: str | None = None
    files: list[WeightsFile] = field(default_factory=list)


def load_manifest(path: Path = MANIFEST) -> dict[str, WeightsEntry]:
    """Name -> entry, every field checked."""
    try:
        entries = {name: from_plain(WeightsEntry, found, f"{name}.") for name, found in read_yaml(path).items()}
    except (OSError, ConfigError) as error:
        raise CheckpointError(f"{path}: {one_line(error)}") from None
    for name, entry in entries.items():
        if entry.repo is None and any(file.url is None for file in entry.files):
            raise CheckpointError(f"{path}: {name} has neither a repo nor a url for each file")
        if entry.repo is not None and entry.repo_type not in ("model", "dataset"):
            raise CheckpointError(f"{path}: {name}.repo_type={entry.repo_type} is not one of model, dataset")
        for file in entry.files:
            file.to = file.to or f"{Path(str(entry.folder)) / Path(alternatives(file)[0]).parent}/"
    return entries


def alternatives(item: WeightsFile) -> list[str]:
    return [name.strip() for name in item.file.split("|")]


def missing_files(entry: WeightsEntry, folder: Path) -> list[WeightsFile]:
    return [f for f in entry.files if not any(target_path(f, name, folder).is_file() for name in alternatives(f))]


def target_path(item: WeightsFile, name: str, folder: Path) -> Path:
    to = item.to + Path(name).name if item.to.endswith("/") else item.to
    return folder / Path(to).relative_to("checkpoints")


def stored_folder(name: str) -> str:
    """Where `scripts/fetch_weights.py` put the hub repository `name`, if all its files are there; else `name`."""
    if CHECKPOINTS.is_dir() and not Path(name).exists():
        for entry in load_manifest().values():
            if entry.repo == name and not missing_files(entry, CHECKPOINTS):
                first = entry.files[0]
                if entry.folder is not None:
                    return str(CHECKPOINTS / Path(entry.folder).relative_to("checkpoints"))
                return str(target_path(first, alternatives(first)[0], CHECKPOINTS).parent)
    return name


def fetch_command(name: str) -> str | None:
    """The command that gets the hub repository `name`, None for one that the manifest does not have."""
    known = (key for key, entry in load_manifest().items() if entry.repo == name)
    return f"python scripts/fetch_weights.py {found}" if (found := next(known, None)) else None
