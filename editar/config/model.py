"""Settings of the networks: VQ tokenizer, text encoder, GPT and its positions, teacher."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import PurePath

from editar.config.fields import setting

USUAL_TEACHERS = {
    "dinov2": "facebook/dinov2-base",
    "clip": "openai/clip-vit-base-patch16",
    "clipseg": "CIDAS/clipseg-rd64-refined",
    "timm": "timm",
}
DTYPES = ("float32", "bfloat16", "float16")


@dataclass
class TokenizerConfig:
    """VQ tokenizer in LlamaGen's architecture (vq_ds16_t2i is `configs/tokenizer/vq16.yaml`)."""

    weights: str | None = None  # run folder, safetensors or official .pt; None = random
    ch: int = setting(128, least=1)
    encoder_ch_mult: list[int] = field(default_factory=lambda: [1, 1, 2, 2, 4], metadata={"least": 1})
    decoder_ch_mult: list[int] = field(default_factory=lambda: [1, 1, 2, 2, 4], metadata={"least": 1})
    num_res_blocks: int = setting(2, least=1, most=100)
    norm_groups: int = setting(32, least=1)
    local_encoder: bool = False  # a code depends on the pixels near its patch alone (docs/log.md)
    z_channels: int = setting(256, least=1)
    codebook_size: int = setting(16384, least=1, most=65535)  # uint16 in the codes cache
    codebook_dim: int = setting(8, least=1)
    codebook_l2_norm: bool = True
    commit_loss_beta: float = setting(0.25, least=0)
    entropy_loss_ratio: float = setting(0.0, least=0)
    dropout: float = setting(0.0, least=0, below=1)

    @property
    def downsample(self) -> int:
        """Pixels per code along one side."""
        return 2 ** (len(self.encoder_ch_mult) - 1)


@dataclass
class TextConfig:
    """Frozen T5 encoder. `name` is a hub id or local folder, or `nano` for the seeded random one.

    extra_words  of `nano`: words that its list lacks, each with a row of its own, random and frozen like the others'
    """

    name: str = "google/flan-t5-xl"
    dim: int = setting(2048, least=1)
    max_tokens: int = setting(120, least=1)
    dtype: str = setting("bfloat16", choices=DTYPES)
    # Shape of the `nano` encoder only.
    nano_layers: int = setting(2, least=1, most=100)
    nano_heads: int = setting(4, least=1)
    nano_seed: int = setting(0, least=0)
    extra_words: list[str] = field(default_factory=list)


@dataclass
class TextPlace:
    """Where a checkpoint's text encoder lies on this machine, hub id or folder; null: where its config.yaml says."""

    name: str | None = None


@dataclass
class RopeConfig:
    """Where each position of [source | text | target] sits in the 2-D rotary table.

    layout  `quadrants`: EditAR. Source top-left, target bottom-right of a doubled grid; further source images
            to the right of the first.
            `shared`:    all images on the same grid (a copied token is at distance zero).
    text    `zero`:      EditAR. A zero row makes q and k vanish, text is averaged, never selected.
            `identity`:  no rotation, text is attended by content.
    query   `input`:     EditAR. A target row carries the place of the code it *reads*.
            `output`:    the place of the code it *predicts*, one step ahead.
    learned adds a trained table of absolute positions (not in official checkpoints).
    """

    layout: str = setting("quadrants", choices=("quadrants", "shared"))
    text: str = setting("zero", choices=("zero", "identity"))
    query: str = setting("input", choices=("input", "output"))
    learned: bool = False
    base: float = setting(10000.0, above=0)


@dataclass
class GPTConfig:
    """LlamaGen transformer with EditAR's prefix.

    The fields of the second block follow from other sections, so that each is written once in YAML:
    `TrainConfig.resolve` fills them in, and refuses a value that says something else. 0 or null = not filled in.
    """

    dim: int = setting(1280, least=1)
    n_layer: int = setting(36, least=1, most=1000)
    n_head: int = setting(20, least=1)
    n_kv_head: int | None = setting(None, least=1)
    multiple_of: int = setting(256, least=1)
    ffn_dim_multiplier: float | None = setting(None, above=0, most=1000)
    norm_eps: float = setting(1e-5, above=0)
    initializer_range: float = setting(0.02, least=0)
    token_dropout: float = setting(0.1, least=0, below=1)
    attn_dropout: float = setting(0.0, least=0, below=1)
    resid_dropout: float = setting(0.1, least=0, below=1)
    ffn_dropout: float = setting(0.1, least=0, below=1)
    vocab_size: int = setting(0, least=0)  # tokenizer.codebook_size
    images: int = setting(1, least=1)  # data.images
    grid: int = setting(0, least=0)  # image_size / tokenizer.downsample
    text_tokens: int = setting(0, least=0)  # text.max_tokens
    text_dim: int = setting(0, least=0)  # text.dim
    null_text_rows: int = setting(0, least=0)  # text.max_tokens
    teacher_dim: int | None = setting(None, least=1)  # teacher.dim
    teacher_grid: int | None = setting(None, least=1)  # teacher.grid
    rope: RopeConfig = field(default_factory=RopeConfig)  # rope

    @property
    def image_tokens(self) -> int:
        return self.grid * self.grid

    @property
    def source_tokens(self) -> int:
        """Of all source images."""
        return self.images * self.image_tokens

    @property
    def prefix_tokens(self) -> int:
        return self.source_tokens + self.text_tokens

    @property
    def sequence_tokens(self) -> int:
        return self.prefix_tokens + self.image_tokens

    @property
    def head_dim(self) -> int:
        return self.dim // self.n_head

    @property
    def ffn_dim(self) -> int:
        """int(2/3 * 4 * dim), scaled, rounded up to a multiple (LlamaGen gpt.py)."""
        hidden = int(2 * 4 * self.dim / 3)
        if self.ffn_dim_multiplier is not None:
            hidden = int(self.ffn_dim_multiplier * hidden)
        return -(-hidden // self.multiple_of) * self.multiple_of


@dataclass
class TeacherConfig:
    """Frozen feature encoder of the distillation loss (paper eq. 3).

    weights  hub id or folder; of `timm` a file of the model's weights, or `timm`, which downloads them
    model    `timm` only: the model's name there, for instance resnet50
    """

    name: str = setting("dinov2", choices=("none", "dinov2", "clip", "clipseg", "timm", "hog"))
    weights: str = "facebook/dinov2-base"
    model: str = ""
    dim: int = setting(768, least=1)
    grid: int | None = setting(None, least=1)  # resize the student's map to grid x grid; None keeps it
    dtype: str = setting("float32", choices=DTYPES)

    @property
    def identity(self) -> str:
        """What stored features are of, fit for a file's name: other weights than the usual ones are named."""
        weights = "" if self.weights == USUAL_TEACHERS.get(self.name, self.weights) else PurePath(self.weights).name
        return "-".join(part for part in (self.name, self.model, weights) if part)
