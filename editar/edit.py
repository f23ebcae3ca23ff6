"""Edit a picture: `python -m editar.edit image=photo.jpg instruction="add a red circle at the top left"`.

With task=depth, canny or segmentation the picture is a condition and the instruction a caption; image=null draws from
the text alone.
"""

from __future__ import annotations

from pathlib import Path

from editar.config import EditConfig
from editar.errors import ConfigError
from editar.runtime.entry import run
from editar.runtime.log import say


def edit(cfg: EditConfig) -> list[Path]:
    """Write the picture(s) and, where there are several or a source, all of them in one row. Returns the files."""
    import numpy as np  # these here, because the help text needs none of them, and torch takes over a second
    from tqdm import tqdm

    from editar.images import load_image, picture_format, resize_and_crop, save_image, side_by_side
    from editar.sampling.pipeline import EditPipeline
    from editar.sampling.stats import copy_bandwidth

    output = Path(cfg.output)
    if output.is_dir() or cfg.output.endswith("/"):
        raise ConfigError(f"output={cfg.output} is a folder; give the name of a picture, like {output / 'edit.png'}")
    stem, suffix = output.stem, output.suffix or ".png"
    names = [output.with_name(stem + (f"_{i}" if cfg.num_samples > 1 else "") + suffix) for i in range(cfg.num_samples)]
    comparison, made = (output.with_name(f"{stem}_{what}{suffix}") for what in ("side_by_side", "condition"))
    picture_format(comparison)
    also = [made] * cfg.from_photo + [comparison] * (cfg.image is not None or cfg.num_samples > 1)
    taken = [name for name in (*names, *also) if name.exists()]
    if taken and not cfg.overwrite:
        raise ConfigError(f"{taken[0]} exists; give another output=... or overwrite=true")
    picture = None if cfg.image is None else load_image(cfg.image)
    if cfg.instruction is not None and not cfg.instruction.strip():
        raise ConfigError("instruction is empty; say what to change, or give instruction=null for none")
    pipeline = EditPipeline.from_pretrained(
        cfg.checkpoint, cfg.device, cfg.sampling, cfg.compile, cfg.int8, cfg.dtype, cfg.text.name
    )
    instruction = cfg.instruction
    if cfg.task != "edit":
        from editar.evaluation.translation.conditions import condition_of, sentence  # the scoring networks' code

        instruction = instruction and sentence(cfg.task, pipeline.cfg).replace("{}", instruction)
        if picture is not None and cfg.from_photo:
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
            progress=bar.update,
        )
    say(pipeline.stats.line(tokens, copy_bandwidth(pipeline.device)))
    for name, image in zip(names, edits, strict=True):
        save_image(image, name)
    row = [np.asarray(image) for image in edits]
    if picture is not None:
        row.insert(0, np.asarray(resize_and_crop(picture, pipeline.cfg.image_size)))
    if comparison in also:
        save_image(side_by_side(row), comparison)
    print("\n".join(str(name) for name in (*names, *also)))
    return [*names, *also]


def main() -> None:
    run(EditConfig, "edit", edit)


if __name__ == "__main__":
    main()
