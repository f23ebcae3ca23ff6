"""Getting the files of the manifest `third_party/weights.yaml` here.

Nothing is downloaded unless `scripts/fetch_weights.py` is run or a configuration names a hub id.
"""

from __future__ import annotations

import os
import re
import shutil
import urllib.request
from pathlib import Path
from typing import NamedTuple

from editar.errors import CheckpointError, one_line
from editar.runtime.files import checksum
from editar.runtime.log import say
from editar.runtime.manifest import CHECKPOINTS, WeightsEntry, alternatives, load_manifest, missing_files, target_path

WEIGHT_SUFFIXES = (".pt", ".pth", ".bin", ".safetensors")


class Download(NamedTuple):
    """One file to get. size and sha256 are None where nobody says."""

    entry: WeightsEntry
    file: str
    url: str | None
    target: Path
    size: int | None
    sha256: str | None  # whole, or its first characters


def select(names: list[str], entries: dict[str, WeightsEntry]) -> dict[str, WeightsEntry]:
    """The named entries; `edit`, `train` and `evaluate` stand for all that they use."""
    uses = {use for entry in entries.values() for use in entry.used_by}
    unknown = [name for name in names if name not in entries and name not in uses]
    if unknown:
        raise CheckpointError(f"unknown weights {', '.join(unknown)}; known: {', '.join([*sorted(uses), *entries])}")
    return {k: entry for k, entry in entries.items() if k in names or set(entry.used_by) & set(names)}


# --- fetching -------------------------------------------------------------------------------------


def fetch(names: list[str], folder: Path = CHECKPOINTS) -> list[Path]:
    """Download the named weights into `folder`: space is checked first, then each file's checksum.

    Raises CheckpointError; where the hub cannot be reached its text says which file to put where.
    """
    entries = select(names, load_manifest())
    try:
        downloads = [item for entry in entries.values() for item in plan(entry, folder)]
    except ConnectionError as error:
        lines = [line for entry in entries.values() for line in by_hand(entry, folder)]
        raise CheckpointError("\n".join([f"{error}; where there is no network, do by hand:", *lines])) from None
    wanted = [d for d in downloads if not d.target.is_file() or d.size not in (None, d.target.stat().st_size)]
    say(check_space(wanted, folder) if wanted else "everything is there already")
    for item in wanted:
        say(f"{item.file} -> {item.target}")
        partial = folder / ".partial"
        got = (download_url if item.url else download_hub)(item, partial)
        verify(got, item)
        item.target.parent.mkdir(parents=True, exist_ok=True)
        os.replace(got, item.target)
    shutil.rmtree(folder / ".partial", ignore_errors=True)
    for name, entry in entries.items():
        if entry.use:
            say(f"{name}: {entry.use.replace('checkpoints', str(folder))}")
    if folder.resolve() != CHECKPOINTS.resolve():
        say(f"configurations look for them in {CHECKPOINTS}: ln -s {folder.absolute()} {CHECKPOINTS}")
    return [item.target for item in downloads]


def plan(entry: WeightsEntry, folder: Path) -> list[Download]:
    """What to download for one entry, with size and checksum as the hub states them.

    The hub is not asked when all files are there. Raises ConnectionError when it does not answer.
    """
    listing: dict[str, tuple[int | None, str | None]] = {}
    if entry.repo is not None and missing_files(entry, folder):
        try:
            listing = hub_listing(entry.repo, entry.repo_type or "model")
        except Exception as error:  # offline, missing, private: the hub's client has many types
            raise ConnectionError(f"cannot ask the hub for {entry.repo} ({one_line(error)})") from None
    downloads = []
    for item in entry.files:
        names = alternatives(item)
        here = [name for name in names if target_path(item, name, folder).is_file()]
        name = next((name for name in names if name in listing), [*here, *names][0])
        if listing and name not in listing:
            raise CheckpointError(f"{entry.repo}: has no file {item.file}; third_party/weights.yaml is out of date")
        size, sha = listing.get(name, (None, None))
        target, known = target_path(item, name, folder), item.sha256 or sha or item.sha256_prefix
        downloads.append(Download(entry, name, item.url, target, item.size or size, known))
    return downloads


def by_hand(entry: WeightsEntry, folder: Path) -> list[str]:
    """One line per missing file: which file from where goes where."""
    where = f"of the {entry.repo_type} repository {entry.repo}"
    return [
        f"  put {item.url or f'{item.file} {where}'} at {target_path(item, alternatives(item)[0], folder)}"
        for item in missing_files(entry, folder)
    ]


def check_space(wanted: list[Download], folder: Path) -> str:
    """A line saying what will be downloaded; raises CheckpointError when the disk is too small."""
    needed = sum(item.size or 0 for item in wanted)
    unknown = sum(item.size is None for item in wanted)
    place = next(parent for parent in [folder.absolute(), *folder.absolute().parents] if parent.exists())
    free = shutil.disk_usage(place).free
    text = f"{len(wanted)} files, {needed / 1e9:.2f} GB" + (f" and {unknown} of unknown size" if unknown else "")
    if needed > free:
        raise CheckpointError(f"{text} do not fit: {place} has {free / 1e9:.2f} GB free; choose another --dir")
    return f"{text}; {place} has {free / 1e9:.2f} GB free"


def verify(path: Path, item: Download) -> None:
    """Compare size and SHA-256 with what is known; a wrong file is removed."""
    size = path.stat().st_size
    problem = f"{size} bytes instead of {item.size}" if item.size not in (None, size) else None
    if problem is None and item.sha256 and not (found := checksum(path)).startswith(item.sha256):
        problem = f"SHA-256 {found[:12]}... instead of {item.sha256[:12]}..."
    if problem:
        path.unlink()
        raise CheckpointError(f"{item.file}: wrong content ({problem}); removed, run again to download anew")


# --- the network ----------------------------------------------------------------------------------


def hub_listing(repo: str, repo_type: str) -> dict[str, tuple[int | None, str | None]]:
    """File -> (bytes, SHA-256 of large files) as the hub states them."""
    from huggingface_hub import HfApi

    info = HfApi().repo_info(repo, repo_type=repo_type, files_metadata=True)
    return {s.rfilename: (s.size, s.lfs.sha256 if s.lfs else None) for s in getattr(info, "siblings", None) or []}


def download_hub(item: Download, folder: Path) -> Path:
    """Into `folder`, going on from an interrupted download."""
    from huggingface_hub import hf_hub_download

    entry = item.entry
    try:
        return Path(hf_hub_download(str(entry.repo), item.file, repo_type=entry.repo_type, local_dir=str(folder)))
    except Exception as error:  # the hub's client and its HTTP library have many types, one meaning
        raise CheckpointError(f"{entry.repo}: {item.file} failed ({one_line(error)}); run again to go on") from None


def download_url(item: Download, folder: Path) -> Path:
    from tqdm import tqdm

    folder.mkdir(parents=True, exist_ok=True)
    path = folder / item.file
    try:
        with urllib.request.urlopen(str(item.url), timeout=60) as reply, open(path, "wb") as file:
            total = int(reply.headers.get("Content-Length", 0))
            with tqdm.wrapattr(reply, "read", total or None, desc=item.file[:40]) as body:
                shutil.copyfileobj(body, file)
    except OSError as error:
        raise CheckpointError(f"{item.url}: {error}; or put that file at {item.target} yourself") from None
    if total and (size := path.stat().st_size) != total:
        raise CheckpointError(f"{item.url}: the connection broke after {size} of {total} bytes; run again")
    return path


def hub_file(source: str) -> Path:
    """A hub id as written in a configuration -> its file, where `fetch` put it or in the hub's own cache.

    `owner/name`, `owner/name:file`, `datasets/owner/name:file`, `hf://[datasets/]owner/name/file`.
    Without a file: the one that the manifest knows, else model.safetensors.
    """
    repo, repo_type, file = parse_hub_id(source)
    for item in (item for entry in load_manifest().values() if entry.repo == repo for item in entry.files):
        if file in alternatives(item) and (path := target_path(item, file, CHECKPOINTS)).is_file():
            return path
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(repo, file, repo_type=repo_type))
    except Exception as error:  # offline, missing, private: many types, one meaning
        text = f"not here, and the hub gave no {file} of {repo_type} {repo} ({one_line(error)})"
        raise CheckpointError(f"{source}: {text}") from None


def parse_hub_id(source: str) -> tuple[str, str, str]:
    """-> (owner/name, model | dataset, file). Raises CheckpointError for a path that is just missing."""
    entries = load_manifest()
    found = re.fullmatch(r"(?P<hf>hf://)?(?P<set>datasets/)?(?P<repo>[\w.-]+/[\w.-]+)(?:[:/](?P<file>[^:]+))?", source)
    explicit = source.startswith("hf://") or ":" in source
    local = not explicit and (Path(source).parent.is_dir() or source.endswith(WEIGHT_SUFFIXES))
    if not found or local or (not explicit and found["file"]):
        known = [name for name, entry in entries.items() for f in entry.files if Path(f.to).name == Path(source).name]
        hint = f"; get it with `python scripts/fetch_weights.py {known[0]}`" if known else ""
        raise CheckpointError(f"{source}: no such file or folder{hint}")
    repo = found["repo"]
    same = [entry for entry in entries.values() if entry.repo == repo]
    repo_type = "dataset" if found["set"] else (same[0].repo_type or "model") if same else "model"
    if found["file"]:
        return repo, repo_type, found["file"]
    files = [file.file for entry in same for file in entry.files]
    if len(files) > 1:
        raise CheckpointError(f"{source}: say which file, {repo}:FILE with one of {', '.join(files)}")
    return repo, repo_type, files[0] if files else "model.safetensors"
