"""Settings of the networks: VQ tokenizer, text encoder, GPT and its positions, teacher."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class TokenizerConfig:
    """VQ tokenizer in LlamaGen's architecture (vq_ds16_t2i is `configs/tokenizer/vq16.yaml`)."""

    weights: str | None = None  # run folder, safetensors or official .pt; None = random
    ch: int = 128
    encoder_ch_mult: list[int] = field(default_factory=lambda: [1, 1, 2, 2, 4])
    decoder_ch_mult: list[int] = field(default_factory=lambda: [1, 1, 2, 2, 4])
    num_res_blocks: int = 2
    norm_groups: int = 32
    z_channels: int = 256
    codebook_size: int = 16384
    codebook_dim: int = 8
    codebook_l2_norm: bool = True
    commit_loss_beta: float = 0.25
    entropy_loss_ratio: float = 0.0
    dropout: float = 0.0

    @property
    def downsample(self) -> int:
        """Pixels per code along one side."""
        return 2 ** (len(self.encoder_ch_mult) - 1)


@dataclass
class TextConfig:
    """Frozen T5 encoder. `name` is a hub id or local folder, or `nano` for the seeded random one."""

    name: str = "google/flan-t5-xl"
    dim: int = 2048
    max_tokens: int = 120
    dtype: str = "bfloat16"
    # Shape of the `nano` encoder only.
    nano_layers: int = 2
    nano_heads: int = 4
    nano_seed: int = 0


@dataclass
class RopeConfig:
    """Where each position of [source | text | target] sits in the 2-D rotary table.

    layout  `quadrants`: EditAR. Source top-left, target bottom-right of a doubled grid.
            `shared`:    source and target on the same grid (a copied token is at distance zero).
    text    `zero`:      EditAR. A zero row makes q and k vanish, text is averaged, never selected.
            `identity`:  no rotation, text is attended by content.
    query   `input`:     EditAR. A target row carries the place of the code it *reads*.
            `output`:    the place of the code it *predicts*, one step ahead.
    learned adds a trained (2N+L, D) table of absolute positions (not in official checkpoints).
    """

    layout: str = "quadrants"
    text: str = "zero"
    query: str = "input"
    learned: bool = False
    base: float = 10000.0


@dataclass
class GPTConfig:
    """LlamaGen transformer with EditAR's prefix.

    The fields of the second block follow from other sections, so that each is written once in YAML:
    `TrainConfig.resolve` fills them in, and refuses a value that says something else. 0 or null = not filled in.
    """

    dim: int = 1280
    n_layer: int = 36
    n_head: int = 20
    n_kv_head: int | None = None
    multiple_of: int = 256
    ffn_dim_multiplier: float | None = None
    norm_eps: float = 1e-5
    initializer_range: float = 0.02
    token_dropout: float = 0.1
    attn_dropout: float = 0.0
    resid_dropout: float = 0.1
    ffn_dropout: float = 0.1
    vocab_size: int = 0  # tokenizer.codebook_size
    grid: int = 0  # image_size / tokenizer.downsample
    text_tokens: int = 0  # text.max_tokens
    text_dim: int = 0  # text.dim
    null_text_rows: int = 0  # text.max_tokens
    teacher_dim: int | None = None  # teacher.dim
    teacher_grid: int | None = None  # teacher.grid
    rope: RopeConfig = field(default_factory=RopeConfig)  # rope

    @property
    def image_tokens(self) -> int:
        return self.grid * self.grid

    @property
    def prefix_tokens(self) -> int:
        return self.image_tokens + self.text_tokens

    @property
    def sequence_tokens(self) -> int:
        return 2 * self.image_tokens + self.text_tokens

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
    """Frozen feature encoder of the distillation loss (paper eq. 3)."""

    name: str = "dinov2"  # none | dinov2 | clip | hog
    weights: str = "facebook/dinov2-base"
    dim: int = 768
    grid: int | None = None  # resize the student's map to grid x grid; None keeps it
    dtype: str = "float32"
