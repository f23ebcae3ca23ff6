"""Edit a picture: `python -m editar.edit image=photo.jpg instruction="add a red circle at the top left"`.

A folder as image, or edits=FILE.jsonl, edits many. With task=depth, canny or segmentation the picture is a condition
and the instruction a caption; image=null draws from the text alone.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from editar.config import EditConfig
from editar.errors import ConfigError
from editar.runtime.entry import run
from editar.runtime.log import echo, say

if TYPE_CHECKING:
    from PIL import Image

    from editar.sampling.pipeline import EditPipeline

LONGEST_NAME = 249  # bytes of a file's name: 255 on most disks, and six more while it is written
LARGEST_COMPARED = 1024  # pixels of a picture's longer side in the comparison


def edit(cfg: EditConfig) -> list[Path]:
    """Write the picture(s) and, where there are several or a source, all of them in one row. Returns the files."""
    if cfg.edits is not None or (cfg.image is not None and os.path.isdir(cfg.image)):
        if cfg.images is not None:
            raise ConfigError(f"images={cfg.images} begins with a folder; of several pictures each is a file")
        from editar.generation.edit_list import edit_many

        return edit_many(cfg, load(cfg))
    return edit_one(cfg)


def edit_one(cfg: EditConfig) -> list[Path]:
    from tqdm import tqdm  # these here, because the help text needs none of them, and torch takes over a second

    from editar.images import load_image, save_image

    names, made, comparison = outputs(cfg)
    picture = None if cfg.image is None else load_image(cfg.image)
    for reference in cfg.references:
        load_image(reference)  # a damaged one is named before the checkpoint is read
    pipeline = load(cfg)
    instruction = cfg.instruction
    if cfg.task != "edit":
        from editar.evaluation.translation.conditions import condition_of, prompted  # the scoring networks' code

        instruction = prompted(cfg.task, instruction, pipeline.cfg)
        if picture is not None and made is not None:
            picture = condition_of(cfg.task, picture, pipeline.cfg, cfg.networks, pipeline.device)
            save_image(picture, made)
    tokens = pipeline.gpt.cfg.image_tokens
    with tqdm(total=cfg.num_samples * tokens, desc="editing", unit="token") as bar:
        edits = pipeline(
            picture,
            instruction,
            num_samples=cfg.num_samples,
            mask=cfg.mask,
            mask_dilate=cfg.mask_dilate,
            references=cfg.references,
            fit=cfg.fit if cfg.task == "edit" else "square",
            region=cfg.square(),
            progress=bar.update,
        )
    if cfg.verbose:
        from editar.sampling.stats import copy_bandwidth

        say(pipeline.stats.line(tokens, copy_bandwidth(pipeline.device)))
    for name, image in zip(names, edits, strict=True):
        save_image(image, name)
    if comparison is not None:
        save_image(comparison_row(picture, edits, cfg.square()), comparison)
    say(told_size(picture, edits[0], pipeline.cfg.image_size))
    files = [*names, *(file for file in (made, comparison) if file is not None)]
    echo("\n".join(map(str, files)))
    return files


def outputs(cfg: EditConfig) -> tuple[list[Path], Path | None, Path | None]:
    """Files of the results, of the condition and of the comparison, None for what is not made. Raises ConfigError for
    one that exists, is a folder, or is the source itself."""
    from editar.images import picture_format

    output = Path(cfg.output)
    if output.is_dir() or cfg.output.endswith("/"):
        raise ConfigError(f"output={cfg.output} is a folder; give the name of a picture, like {output / 'edit.png'}")
    stem, suffix = output.stem, output.suffix or ".png"
    names = [output.with_name(stem + (f"_{i}" if cfg.num_samples > 1 else "") + suffix) for i in range(cfg.num_samples)]
    comparison, made = (output.with_name(f"{stem}_{what}{suffix}") for what in ("side_by_side", "condition"))
    picture_format(comparison)
    compared = cfg.image is not None or cfg.num_samples > 1
    files = [*names, *[made] * cfg.from_photo, *[comparison] * compared]
    if too_long := [file for file in files if len(os.fsencode(file.name)) > LONGEST_NAME]:
        raise ConfigError(f"{too_long[0].name} is longer than {LONGEST_NAME} bytes; give a shorter output=...")
    taken = [name for name in (*files, *[output] * (not output.suffix)) if os.path.lexists(name)]
    given = [path for path in (cfg.image, cfg.mask, *cfg.references) if path is not None and os.path.exists(path)]
    if same := [name for name in taken if name.exists() and any(name.samefile(path) for path in given)]:
        raise ConfigError(f"{same[0]} is read, and never replaced; give another output=...")
    if taken and not cfg.overwrite:
        raise ConfigError(f"{taken[0]} exists; give another output=... or overwrite=true")
    return names, made if cfg.from_photo else None, comparison if compared else None


def load(cfg: EditConfig) -> EditPipeline:
    from editar.sampling.pipeline import EditPipeline

    return EditPipeline.from_pretrained(
        cfg.checkpoint, cfg.device, cfg.sampling, cfg.compile, cfg.int8, cfg.dtype, cfg.text.name, lora=cfg.lora
    )


def comparison_row(picture: Image.Image | None, edits: list[Image.Image], region: list[int] | None) -> Image.Image:
    """Source and edits in one row, of at most LARGEST_COMPARED pixels each; beside squares the source's square."""
    import numpy as np
    from PIL import Image

    from editar.images import resize_and_crop, side_by_side

    row = [edit.copy() for edit in edits]
    if picture is not None and picture.size == row[0].size:
        row.insert(0, picture.copy())
    elif picture is not None:
        x, y, side = region or (0, 0, 0)
        seen = picture.crop((x, y, x + side, y + side)) if region else picture
        row.insert(0, resize_and_crop(seen, row[0].width))
    for image in row:
        image.thumbnail((LARGEST_COMPARED, LARGEST_COMPARED), Image.Resampling.LANCZOS)
    return Image.fromarray(side_by_side([np.asarray(image) for image in row]))


def told_size(picture: Image.Image | None, edited: Image.Image, size: int) -> str:
    """What the result is, in a line."""
    width, height = edited.size
    text = f"result: {width}x{height} pixels"
    if picture is None or picture.size == (size, size):
        return text
    if picture.size == edited.size:
        return f"{text}, of which a square was edited at {size}x{size}"
    return f"{text}, cropped from {picture.size[0]}x{picture.size[1]}"


def main() -> None:
    run(EditConfig, "edit", edit)


if __name__ == "__main__":
    main()
