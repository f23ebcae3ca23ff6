"""Pictures, edge maps and prompts. On the CPU in the precision of the data pipeline, whatever was asked."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from PIL import Image

from editar.conditions import CANNY, canny_condition
from editar.config import TextConfig
from editar.data.sources import official_prompt, remove_instruction
from editar.images import flatten_alpha, load_image, preprocess
from editar.parity.checks import Check, Entries, Golden, Skipped

ITEM_FILES = ("input_png", "expected_npy", "canny_npy", "whitened_uint8_npy", "convert_rgb_first_npy")
# The official names of the tasks, and whose template must give the same words.
SOURCES = {
    "canny": "multigen_canny",
    "depth": "multigen_depth",
    "segmentation": "cocostuff",
    "segmentation_detailed": "cocostuff",
    "seedx_unsplash": "seed_unsplash",
}


def files(golden: Golden) -> list[str]:
    named = ["index.json", "pipe_instructions.json", "prompts.json"]
    if (golden.folder / "index.json").is_file():
        for item in golden.json("index.json")["items"]:
            named += [item[key] for key in ITEM_FILES if key in item]
    return named


def run(golden: Golden) -> Iterator[Check | Skipped]:
    index = golden.json("index.json")
    thresholds = [index["low_threshold"], index["high_threshold"]]
    yield golden.identical("canny thresholds", list(CANNY["kornia"]), thresholds)
    for item in index["items"]:
        yield from check_picture(golden, item)
    yield from check_prompts(golden)
    yield from check_removals(golden)


def check_picture(golden: Golden, item: Entries) -> Iterator[Check]:
    name, size, path = item["input_png"], item["target"], golden.path(item["input_png"])
    tensor = preprocess(load_image(path), size)  # (3, size, size)
    yield golden.absolute(f"{name} tensor", tensor, golden.array(item["expected_npy"]), golden.tolerance.pixels)
    with Image.open(path) as image:
        if "whitened_uint8_npy" in item:
            whitened = golden.array(item["whitened_uint8_npy"])
            yield golden.identical(f"{name} blended over white", flatten_alpha(image), whitened)
        if "convert_rgb_first_npy" in item:
            opaque = preprocess(image.convert("RGB"), size)
            expected = golden.array(item["convert_rgb_first_npy"])
            yield golden.absolute(f"{name} alpha discarded", opaque, expected, golden.tolerance.pixels)
    if "canny_npy" in item:
        # From the stored picture, so that a rounding difference above cannot move an edge here. The
        # official data sets discard alpha before they look for edges.
        basis = item.get("convert_rgb_first_npy", item["expected_npy"])
        picture = torch.from_numpy(golden.array(basis))[None]
        yield golden.identical(f"{name} canny", canny_condition(picture)[0], golden.array(item["canny_npy"]))


def check_prompts(golden: Golden) -> Iterator[Check]:
    for row in golden.json("prompts.json"):
        task, length = row["task"], row["tokenizer_kwargs"]["max_length"]
        yield golden.same(f"prompt {task}", official_prompt(SOURCES[task]).format(row["caption"]), row["prompt"])
        yield golden.same(f"prompt {task} tokens", TextConfig().max_tokens, length)


def check_removals(golden: Golden) -> Iterator[Check]:
    for number, row in enumerate(golden.json("pipe_instructions.json")):
        text = row["instruction"]
        for direction, ours in (("forward", text), ("flipped", remove_instruction(text))):
            yield golden.same(f"add/remove instruction {number} {direction}", ours, row[direction]["edit_text"])
