"""Settings of the training data: sources, their shares, and how a row becomes text."""

from __future__ import annotations

from dataclasses import dataclass, field

from editar.config.fields import setting
from editar.errors import ConfigError

NANO_KINDS = ("nano", "nano_pairs")  # drawn, from no files
KINDS = (
    *NANO_KINDS,
    *("pipe", "seed_unsplash", "multigen_depth", "multigen_canny", "cocostuff", "folder"),
    *("magicbrush", "ultraedit", "omniedit", "webdataset"),
)
CONDITION_SOURCES = {"depth": "multigen_depth", "canny": "multigen_canny", "segmentation": "cocostuff"}  # task -> kind
SHAPE_COUNTS = (1, 2, 2, 3)


@dataclass
class CannyConfig:
    """Which Canny: `kornia` at 0.1 / 0.2 (EditAR's and ControlNet++'s scripts), or `cv2`, OpenCV's at 100 / 200
    (the thresholds of EditAR's text). `editar.conditions.canny`."""

    operator: str = setting("kornia", choices=("kornia", "cv2"))


@dataclass
class SourceConfig:
    """One data set of the mixture; `configs/source/*.yaml` has the paper's five and other public ones.

    path    folder that scripts/prepare_data.py made (any parquet or `save_to_disk` folder works too)
    weight  share of the draws, relative to the other sources' weights
    prompt  instruction as a function of the row's text (`{}`)
    wording    PIPE: `editar` reads Instruction_VLM-LLM, `official` any non-empty column, a quarter of
               the time with the object's place
    empty      what to do when that text is empty: `other` column, `drop` the row, `keep` it (EditAR)
    backward   chance that a pair is used target -> source (PIPE's removals)
    removal    `guarded` uses only texts that begin with "Add" backwards; `editar` cuts four characters
               off any text
    condition  COCO-Stuff: the `control_seg` picture, or `labels` coloured by a fixed palette
    canny      multigen_canny: the operator
    images     `official`: only converted to RGB, so alpha is dropped and EXIF not read, as the official
               loaders do; `upright`: turned by EXIF, alpha over white, 16-bit scaled
    """

    kind: str = setting("folder", choices=KINDS)
    weight: float = 1.0
    path: str | None = None
    prompt: str = "{}"
    wording: str = setting("editar", choices=("editar", "official"))
    empty: str = setting("other", choices=("other", "drop", "keep"))
    backward: float = setting(0.0, least=0, most=1)
    removal: str = setting("guarded", choices=("guarded", "editar"))
    condition: str = setting("control_seg", choices=("control_seg", "labels"))
    canny: CannyConfig = field(default_factory=CannyConfig)
    images: str = setting("upright", choices=("upright", "official"))

    def check(self, name: str) -> None:
        key = f"data.sources.{name}"
        if self.weight <= 0:
            raise ConfigError(f"{key}.weight={self.weight:g} must be positive; drop a source with ~{key}")
        if self.prompt.count("{}") != 1:
            raise ConfigError(f"{key}.prompt={self.prompt!r} needs the place of the row's text, {{}}, exactly once")
        if self.kind not in NANO_KINDS and not self.path:
            raise ConfigError(
                f"{key}.path is null; give the folder that scripts/prepare_data.py made, or drop the source with ~{key}"
            )


@dataclass
class NanoDataConfig:
    """The procedural world (`editar.data.nano.world`)."""

    train_samples: int = setting(20000, least=1)
    heldout_samples: int = setting(256, least=1)
    seed: int = setting(0, least=0)
    # How many shapes a training scene has before an edit: each drawn equally often, but the more there are the
    # likelier they overlap and are drawn again. Held-out scenes always have the default.
    shape_counts: list[int] = field(default_factory=lambda: list(SHAPE_COUNTS), metadata={"least": 1, "most": 3})


@dataclass
class PicturesConfig(NanoDataConfig):
    """What a tokenizer is trained on: the nano world's pairs, or with `path` any pictures, of which the last
    `heldout_samples`, at most half, are held out."""

    path: str | None = None  # folder of picture files, of parquet or arrow files (or save_to_disk), or of tars
    column: str = "image"  # of parquet: the column that holds pictures
    max_bad_share: float = setting(0.01, least=0, most=1)  # more unreadable pictures than this stop the run


@dataclass
class DataConfig(NanoDataConfig):
    """What the GPT is trained on. `train_samples` and `seed` belong to nano; `heldout_samples` are
    shared evenly between the sources: the last rows of each, at most a tenth and at least one of them (nano has its
    own held-out scenes)."""

    sources: dict[str, SourceConfig] = field(default_factory=dict)
    images: int = setting(1, least=1, most=8)  # source images an edit may have; a row with fewer lacks the last ones
    cache: str | None = None  # folder of codes; null reads pixels and encodes them in the loop
    build_cache: bool = False  # make what the cache lacks before training (else scripts/cache_codes.py does)
    cache_features: bool = False  # also keep this teacher's features of the target (small teachers only)
    # What a cache keeps for the teacher: `exact` its own input (80 KB a picture), for that teacher alone, or `jpeg`
    # (35 KB) for any that resizes, which sees JPEG noise and resizes a second time.
    cache_pictures: str = setting("jpeg", choices=("jpeg", "exact"))
    max_bad_share: float = setting(0.01, least=0, most=1)  # more unreadable rows than this stop the run

    def check(self) -> None:
        for name, source in self.sources.items():
            source.check(name)
            if source.kind == "nano_pairs" and self.images < 2:
                raise ConfigError(f"data.sources.{name} edits with two pictures; give data.images=2")
        if self.build_cache and self.cache is None:
            raise ConfigError("data.build_cache=true needs data.cache=FOLDER; it is null")


@dataclass
class DropConfig:
    """Condition dropout per training sample (paper sec. 3.3): three disjoint cases. With several source images
    `image` and `both` drop all of them, and `each_image` each one by itself, in the other samples."""

    text: float = setting(0.05, least=0)
    image: float = setting(0.05, least=0)
    both: float = setting(0.05, least=0)
    each_image: float = setting(0.0, least=0, most=1)
