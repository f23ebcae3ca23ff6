"""Edit a picture: `python -m editar.edit image=photo.jpg instruction="add a red circle at the top left"`."""

from __future__ import annotations

from pathlib import Path

from editar.config import EditConfig
from editar.errors import ConfigError
from editar.runtime.entry import run
from editar.runtime.log import say


def edit(cfg: EditConfig) -> list[Path]:
    """Write the edited picture(s) and, beside them, source and edits in one row. Returns the files."""
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
    comparison = output.with_name(f"{stem}_side_by_side{suffix}")
    picture_format(comparison)
    taken = [name for name in (*names, comparison) if name.exists()]
    if taken and not cfg.overwrite:
        raise ConfigError(f"{taken[0]} exists; give another output=... or overwrite=true")
    picture = load_image(cfg.image)
    if not cfg.instruction.strip():
        raise ConfigError("instruction is empty; say what to change")
    pipeline = EditPipeline.from_pretrained(cfg.checkpoint, cfg.device, cfg.sampling, cfg.compile, cfg.int8, cfg.dtype)
    tokens = pipeline.gpt.cfg.image_tokens
    with tqdm(total=cfg.num_samples * tokens, desc="editing", unit="token") as bar:
        edits = pipeline(
            picture,
            cfg.instruction,
            num_samples=cfg.num_samples,
            mask=cfg.mask,
            mask_dilate=cfg.mask_dilate,
            progress=bar.update,
        )
    say(pipeline.stats.line(tokens, copy_bandwidth(pipeline.device)))
    for name, image in zip(names, edits, strict=True):
        save_image(image, name)
    source = np.asarray(resize_and_crop(picture, pipeline.cfg.image_size))
    save_image(side_by_side([source, *(np.asarray(image) for image in edits)]), comparison)
    print("\n".join(str(name) for name in (*names, comparison)))
    return [*names, comparison]


def main() -> None:
    run(EditConfig, "edit", edit)


if __name__ == "__main__":
    main()
