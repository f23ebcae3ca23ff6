"""What `python -m editar.edit` and the page of `python -m editar.app` understand."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

from editar.config.compose import override
from editar.config.data import CONDITION_SOURCES
from editar.config.entries import MISSING
from editar.config.evaluation import ConditionNetworks
from editar.config.fields import setting
from editar.config.model import DTYPES, TextPlace
from editar.config.training import SamplingConfig
from editar.errors import ConfigError

FITS = ("restore", "square")


@dataclass
class EditConfig:
    """`python -m editar.edit`: edit a picture file or many of them, or draw one.

    image        a file; a folder, of which every picture gets the instruction; null: from the text alone
                 (text-to-image), and with instruction=null from nothing
    instruction  null: from the image alone
    images       instead of image, for a checkpoint that edits with several: [a.png,b.png], of which the first is edited
    edits        instead of both: a file of lines {"image": FILE, "instruction": TEXT, "mask": FILE or left out},
                 with paths relative to the file
    output       a picture's name; with many edits a folder, which a second start goes on with
    task         `edit`, or what the image is: the instruction then is a caption, to which the sentence that the
                 checkpoint was trained with is added
    from_photo   image is a photograph, from which the task's condition is made first (also written, beside the result)
    fit          restore: the square that the model edits goes back into the picture, at its full size;
                 square: that square alone. Tasks other than edit give squares
    region       x,y,side of that square in the picture's pixels; null: about the mask, or else in the middle
    """

    image: str | None = ""
    instruction: str | None = ""
    images: str | None = None
    edits: str | None = None
    checkpoint: str = MISSING
    lora: str | None = None  # run folder or hub id of an adapter that was trained on this checkpoint
    task: str = setting("edit", choices=("edit", *CONDITION_SOURCES))
    from_photo: bool = False
    output: str = "outputs/edit.png"
    num_samples: int = setting(1, least=1, most=1024)
    fit: str = setting("restore", choices=FITS)
    region: str | None = None
    mask: str | None = None  # a picture of the image's size, white where the edit may change something
    mask_dilate: int = setting(1, least=0)  # codes by which the mask grows
    overwrite: bool = False
    verbose: bool = False  # tell passes, codes a second and the share of the memory's bandwidth
    device: str = "auto"
    # Of the GPT; auto: bfloat16 on a GPU, as officially, float32 on a CPU.
    dtype: str = setting("auto", choices=("auto", *DTYPES))
    compile: bool | None = None  # the sampling step; null = on a GPU
    int8: bool = False  # 8-bit weights on a CPU: faster, slightly different results
    sampling: dict[str, Any] = field(default_factory=dict)  # overrides of the checkpoint's own defaults
    text: TextPlace = field(default_factory=TextPlace)
    networks: ConditionNetworks = field(default_factory=ConditionNetworks)  # with from_photo=true

    def resolve(self) -> None:
        override(SamplingConfig(), self.sampling, "sampling")
        self.square()
        if self.images is not None:
            if self.image or self.edits or self.task != "edit":
                raise ConfigError("images=[a.png,b.png] stands instead of image=... or edits=..., with task=edit")
            if not all(self._listed() or [""]):
                raise ConfigError(f"images={self.images} lacks a name; give images=[a.png,b.png]")
            self.image = self._listed()[0]
        if self.edits is not None and (self.image or self.instruction or self.mask):
            raise ConfigError("edits names pictures, instructions and masks in its lines; leave out image=... etc.")
        if self.edits is None and self.image == "":
            raise ConfigError("image is missing; give image=FILE, a folder, image=null, or edits=FILE.jsonl")
        if self.edits is None and (self.instruction is not None and not self.instruction.strip()):
            raise ConfigError("instruction is empty; say what to change, or give instruction=null for none")
        if self.edits is not None and self.task != "edit":
            raise ConfigError(f"task={self.task} takes one image=..., not edits={self.edits}")
        if self.image is None and (self.task != "edit" or self.mask or self.region):
            needs = "mask" if self.mask else "region" if self.region else f"task={self.task}"
            raise ConfigError(f"image is null, and {needs} needs one")
        if self.mask and self.task != "edit":
            raise ConfigError(
                f"mask keeps parts of the picture, which with task={self.task} is a condition; leave it out"
            )
        if self.from_photo and self.task == "edit":
            tasks = ", ".join(CONDITION_SOURCES)
            raise ConfigError(f"from_photo=true makes a condition, and task=edit has none; give task as one of {tasks}")

    def _listed(self) -> list[str]:
        """The names in `images`, with or without quotes, which a name with a comma needs."""
        text = self.images or ""
        text = text[1:-1] if text[:1] == "[" and text[-1:] == "]" else text
        parts = re.findall(r"""\s*('[^']*'|"[^"]*"|[^,]*?)\s*(?:,|\Z)""", text)[:-1]  # the last match is empty
        return [part[1:-1] if len(part) > 1 and part[0] == part[-1] and part[0] in "'\"" else part for part in parts]

    @property
    def references(self) -> list[str]:
        """Of `images` all but the first."""
        return self._listed()[1:]

    def square(self) -> list[int] | None:
        """`region` as numbers. Raises ConfigError."""
        if self.region is None:
            return None
        try:
            x, y, side = (int(part) for part in self.region.strip("[]()").split(","))
        except ValueError:
            raise ConfigError(f"region={self.region} is not x,y,side in whole pixels") from None
        return [x, y, side]


@dataclass
class AppConfig:
    """`python -m editar.app`: a page to edit in a browser.

    host           127.0.0.1: this machine alone; 0.0.0.0: everybody who can reach it, who may then use its processor
    output_dir     uploads and results of a day lie here, and nothing is written elsewhere
    largest_mb     of an upload
    most_waiting   people in the queue; one edit runs at a time
    """

    checkpoint: str = MISSING
    lora: str | None = None  # an adapter trained on the checkpoint, as in editar.edit
    host: str = "127.0.0.1"
    port: int = setting(7860, least=0, most=65535)  # 0: any free one
    output_dir: str = "outputs/app"
    largest_mb: int = setting(20, least=1)
    most_waiting: int = setting(16, least=1)
    most_samples: int = setting(8, least=1)  # of one edit
    device: str = "auto"
    dtype: str = setting("auto", choices=("auto", *DTYPES))  # of the GPT, as in editar.edit
    compile: bool | None = None
    int8: bool = False
    sampling: dict[str, Any] = field(default_factory=dict)
    text: TextPlace = field(default_factory=TextPlace)
    networks: ConditionNetworks = field(default_factory=ConditionNetworks)  # depth and labels of photographs

    def resolve(self) -> None:
        override(SamplingConfig(), self.sampling, "sampling")
