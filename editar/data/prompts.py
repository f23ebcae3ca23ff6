"""The wording EditAR was trained with: one template per task, and the rule that turns Add into Remove.

Released weights expect these words exactly (TokenAR `dataset/`, derived from EditAR's training
code). Instructions of photo edits and SEED-X captions are used raw.
"""

from __future__ import annotations

PROMPTS = {
    "canny": "Given the canny edge image, generate an image following the description: {}",
    "depth": "Given the depth image, generate an image following the description: {}",
    "segmentation": "Given the segmentation mask, generate an image following the description: {}",
    "segmentation_detailed": "Given the segmentation mask, generate an image following the description: {}",
    "seedx_unsplash": "{}",
}


def prompt(task: str, caption: str) -> str:
    """What the text encoder reads for one of `PROMPTS`' tasks."""
    if task not in PROMPTS:
        raise ValueError(f"no prompt for task {task}; known: {', '.join(PROMPTS)}")
    return PROMPTS[task].format(caption)


def remove_instruction(text: str) -> str:
    """The instruction of a PIPE pair used backwards, target -> source.

    Quirk kept from the official code: the first four characters are cut whatever they are, so
    "Add a cat" becomes "Remove a cat" but "Insert 2 birds" becomes "Remove rt 2 birds".
    """
    return "Remove " + text[4:]
