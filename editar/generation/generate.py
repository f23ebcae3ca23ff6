"""Edit a benchmark into a results folder: one PNG per picture, restartable, shared by all ranks.

FOLDER/manifest.json    what made it: checksums of weights and sources, sampling settings, instructions
FOLDER/images/NAME.png  written atomically, stamped with the manifest (`editar.generation.manifest`);
                        finished ones are never redone
FOLDER/KIND/NAME.png    what else a benchmark keeps of an output before it is brought to 8 bits
FOLDER/generation.json  passes an image, codes a pass and images/s of every process, where the editor counts them
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from editar.errors import BenchmarkError, ConfigError, one_line
from editar.generation.editors import Editor, Output
from editar.generation.manifest import MANIFEST, ResultManifest, read_result_manifest, save_stamped, spoilt
from editar.images import resize_and_crop, to_uint8
from editar.runtime.distributed import Ranks
from editar.runtime.files import parse_json, write_json
from editar.runtime.log import say

COST = "generation.json"
# Folder -> what it holds of an output (3, S, S) in [-1, 1]; `images` comes last.
Renderings = Mapping[str, Callable[[torch.Tensor], np.ndarray]]
TRUNCATED: Renderings = {"images": lambda output: to_uint8(output[None])[0]}  # as EditAR's scripts


@dataclass(frozen=True)
class EditJob:
    """One edit. `id` chooses its random numbers, `name` its file below images/ (without suffix);
    `source()` opens the picture, or several; `size` is the side of the result, None = the editor's own. `caption`
    describes the wanted picture, for editors that read no instruction."""

    id: str
    name: str
    instruction: str
    caption: str
    source: Callable[[], np.ndarray | list[np.ndarray]]
    size: int | None


def generate_results(
    editor: Editor,
    jobs: list[EditJob],
    folder: Path,
    ranks: Ranks,
    sources_sum: Callable[[], str],
    renderings: Renderings = TRUNCATED,
) -> list[Path]:
    """Edit every job that has no file yet; returns all files in order.

    `sources_sum()` changes with the source pictures. Damaged results are made again. Raises ConfigError
    for a folder of another run, BenchmarkError for pictures of another run in it.
    """
    files = [folder / "images" / f"{job.name}.png" for job in jobs]
    texts = [getattr(job, editor.reads) for job in jobs]
    if ranks.is_main:
        instructions = {job.id: text for job, text in zip(jobs, texts, strict=True)}
        settings = {"image_size": editor.size, "instructions": instructions, "sources_sha256": sources_sum()}
        kept = {} if renderings is TRUNCATED else {"kept": list(renderings)}
        claim(folder, editor.describe() | settings | kept)
        for file in filter(spoilt, files):
            file.unlink()
            say(f"{file}: damaged; made again")
    ranks.barrier()
    made = read_result_manifest(folder)
    assert made is not None
    if ranks.is_main:
        made.check(file for file in files if file.is_file())
    todo = [i for i, file in enumerate(files) if not file.is_file()]
    ranks.barrier()  # every process must have listed the missing files before any is written
    mine = todo[ranks.rank :: ranks.size]
    with tqdm(total=len(mine), desc=f"editing into {folder.name}", unit="image", disable=not ranks.is_main) as bar:
        for start in range(0, len(mine), editor.batch):
            part = mine[start : start + editor.batch]
            sources = [to_size(jobs[i].source(), editor.size) for i in part]
            outputs = editor(sources, [texts[i] for i in part], [jobs[i].id for i in part])
            for i, output in zip(part, outputs, strict=True):
                for kind, picture in rendered(output, jobs[i].size or editor.size, renderings).items():
                    name = f"{kind}/{jobs[i].name}.png"
                    save_stamped(picture, folder / name, f"{made.stamp} {name}")
            bar.update(len(part))
    note_cost(folder, ranks.gather(editor.cost()) if mine or ranks.size > 1 else [], ranks)
    ranks.barrier()
    return files


def rendered(output: Output, size: int, renderings: Renderings) -> dict[str, np.ndarray]:
    """What is saved of an output; only `images`, (size, size, 3) uint8, where it is finished or of another size."""
    if isinstance(output, torch.Tensor) and output.shape[-1] == size:
        return {kind: render(output) for kind, render in renderings.items()}
    picture = TRUNCATED["images"](output) if isinstance(output, torch.Tensor) else output
    return {"images": to_size(picture, size)}


def note_cost(folder: Path, costs: list[dict[str, float]], ranks: Ranks) -> None:
    """Add this start's passes and speed of every process to FOLDER/generation.json."""
    found = [cost for cost in costs if cost]
    if ranks.is_main and found:
        write_json(folder / COST, [*read_cost(folder), *found])


def read_cost(folder: Path) -> list[dict[str, float]]:
    """What `note_cost` wrote: a record for every process of every start; [] if nothing is known."""
    try:
        return parse_json((folder / COST).read_bytes()) if (folder / COST).is_file() else []
    except ValueError as error:
        raise BenchmarkError(f"{folder / COST}: damaged ({one_line(error)}); remove it") from None


def to_size(picture: np.ndarray | list[np.ndarray], size: int) -> np.ndarray:
    """(H, W, 3) uint8 at size x size, as training does it; untouched when it already is. Of several, each."""
    if isinstance(picture, list):
        return np.stack([to_size(one, size) for one in picture])
    return picture if picture.shape[:2] == (size, size) else np.array(resize_and_crop(Image.fromarray(picture), size))


def claim(folder: Path, wanted: dict[str, object]) -> None:
    """Enter a results folder; refuses one with pictures made with other weights, settings or instructions.

    A killed start may have left half a manifest, which counts as none. A damaged one is replaced where
    the pictures' stamps are those of `wanted`; raises BenchmarkError where they are not.
    """
    file, wanted = folder / MANIFEST, json.loads(json.dumps(wanted))
    pictures = list((folder / "images").rglob("*.png"))
    if file.is_file():
        try:
            found = parse_json(file.read_bytes())
            if not isinstance(found, dict):
                raise ValueError("no mapping")
        except ValueError as error:
            ResultManifest(file, wanted).check(path for path in pictures if not spoilt(path))
            say(f"{file}: damaged ({one_line(error)}); written anew, as the pictures are of these settings")
            found = wanted
        other = [key for key in wanted if found.get(key) != wanted[key]]
        if other and pictures:  # a start that failed before its first picture does not keep the folder
            raise ConfigError(
                f"{folder} holds results made with other {', '.join(other)}; choose another output_dir or remove it"
            )
    elif folder.exists() and any(path.name != f".{MANIFEST}.part" for path in folder.iterdir()):
        raise ConfigError(f"{folder} is in use and holds no {MANIFEST}; choose another output_dir")
    write_json(file, wanted)
