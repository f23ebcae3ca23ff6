"""One dataclass per command: what `python -m editar.NAME key=value ...` understands."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from editar.config.baseline import BaselineConfig
from editar.config.checks import check_gpt, check_lora, check_text, check_tokenizer
from editar.config.compose import override
from editar.config.data import CannyConfig, DataConfig, DropConfig, PicturesConfig
from editar.config.evaluation import NetworkSources
from editar.config.fields import setting
from editar.config.model import DTYPES, GPTConfig, RopeConfig, TeacherConfig, TextConfig, TextPlace, TokenizerConfig
from editar.config.training import LoraConfig, LossConfig, OptimConfig, SamplingConfig, WandbConfig
from editar.errors import ConfigError

MISSING: Any = "???"  # omegaconf.MISSING, without importing it


def may_change(default: Any, **limits: Any) -> Any:
    """A field that may differ when a run goes on: it alters nothing that a step computes, beyond rounding."""
    return setting(default, may_change=True, **limits)


def of_benchmark(default: Any, **limits: Any) -> Any:
    """A field of EvalConfig that only some benchmarks have, `Benchmark.settings`."""
    return setting(default, of_benchmark=True, **limits)


@dataclass
class TrainConfig:
    """`python -m editar.train`: train the GPT on codes.

    `global_batch` holds on any number of processes that divides it; a process handles at most
    `micro_batch` samples at once and accumulates gradients over the rest of its share.
    """

    output_dir: str = may_change(MISSING, recorded=True)
    seed: int = setting(0, least=0)
    image_size: int = setting(512, least=1, most=4096)
    steps: int = may_change(40000, least=1)  # moves the end of a decaying learning rate
    global_batch: int = setting(64, least=1)
    micro_batch: int = may_change(8, least=1)
    precision: str = setting("bf16", choices=("bf16", "fp32"))  # bf16: autocast over float32 weights
    compile: bool = may_change(False)  # each block
    # fsdp shards weights, gradients and moments; for the larger sizes
    parallel: str = may_change("ddp", choices=("ddp", "fsdp"))
    activation_checkpointing: bool = may_change(False)  # keep each block's input only: less memory, a third more work
    num_workers: int = may_change(4, least=0)
    log_every: int = may_change(10, least=1)
    eval_every: int = may_change(1000, least=1)
    save_every: int = may_change(1000, least=1)
    keep_checkpoints: int = may_change(2, least=1)  # the newest ones
    keep_every: int = may_change(0, least=0)  # and every step that is a multiple of this; 0 = none
    async_checkpoints: bool = may_change(True)  # write them while training goes on
    resume: str = setting("auto", choices=("auto", "never"))
    init_from: str | None = None
    # Steps with a non-finite loss or gradient that may be skipped; one more stops.
    skip_nonfinite: int = may_change(0, least=0)
    timeout_s: int = may_change(1800, least=1)  # a process that waits longer than this for the others gives up
    dry_run: bool = may_change(False)  # build everything without weights, print what the run would need, check, stop
    profile: bool = may_change(False)  # write a torch profiler trace of three early steps to OUTPUT_DIR/profile
    device: str = may_change("auto")
    gpt: GPTConfig = field(default_factory=GPTConfig)
    rope: RopeConfig = field(default_factory=RopeConfig)
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    text: TextConfig = field(default_factory=TextConfig)
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    data: DataConfig = field(default_factory=DataConfig)
    drop: DropConfig = field(default_factory=DropConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    lora: LoraConfig = field(default_factory=LoraConfig)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    wandb: WandbConfig = field(default_factory=WandbConfig, metadata={"may_change": True})

    def resolve(self) -> None:
        """Fill the GPT's shapes from the sections that own them, then check the whole."""
        check_tokenizer(self.tokenizer, self.image_size)
        self._fill_gpt()
        check_gpt(self.gpt)
        self.data.check()
        check_text(self.text)
        check_lora(self.lora, self.init_from, self.parallel, self.precision)
        if self.parallel == "fsdp" and self.optim.name == "muon":
            raise ConfigError("optim.name=muon needs whole matrices, parallel=fsdp shards them; take adamw or ddp")
        if self.drop.each_image > 0 and self.data.images == 1:
            raise ConfigError("drop.each_image is for data.images=2 or more; with one image it is drop.image")
        total = self.drop.text + self.drop.image + self.drop.both
        if total > 1:
            raise ConfigError(f"drop.* must sum to at most 1, found a sum of {total:g}")

    def _fill_gpt(self) -> None:
        """What the GPT takes from the other sections. Raises ConfigError for a gpt.* that contradicts them."""
        has_teacher = self.teacher.name != "none"
        if has_teacher and self.image_size < 2 * self.tokenizer.downsample:
            raise ConfigError(
                f"image_size={self.image_size} makes a single code, a teacher needs at least 2x2; set teacher=none"
            )
        owners: dict[str, tuple[str, Any]] = {
            "vocab_size": ("tokenizer.codebook_size", self.tokenizer.codebook_size),
            "images": ("data.images", self.data.images),
            "grid": ("image_size and the tokenizer's downsampling", self.image_size // self.tokenizer.downsample),
            "text_tokens": ("text.max_tokens", self.text.max_tokens),
            "text_dim": ("text.dim", self.text.dim),
            "null_text_rows": ("text.max_tokens", self.text.max_tokens),
            "teacher_dim": ("teacher.dim", self.teacher.dim if has_teacher else None),
            "teacher_grid": ("teacher.grid", self.teacher.grid if has_teacher else None),
            "rope": ("rope", self.rope),
        }
        unset = GPTConfig()
        for key, (owner, value) in owners.items():
            found = getattr(self.gpt, key)
            if found not in (getattr(unset, key), value):
                raise ConfigError(f"gpt.{key}={found} contradicts {owner}, which makes it {value}; set that instead")
            setattr(self.gpt, key, value)


@dataclass
class TokenizerTrainConfig:
    """`python -m editar.train_tokenizer`: train a VQ tokenizer, on the nano world or on pictures of your own.

    `batch_size` holds on any number of processes that divides it.
    """

    output_dir: str = may_change(MISSING, recorded=True)
    seed: int = setting(0, least=0)
    image_size: int = setting(64, least=1, most=4096)
    steps: int = may_change(1500, least=1)  # moves the end of a decaying learning rate, and of the restarts
    batch_size: int = setting(32, least=1)
    num_workers: int = may_change(2, least=0)
    log_every: int = may_change(20, least=1)
    eval_every: int = may_change(1000, least=1)  # steps between measurements on held-out pictures
    save_every: int = may_change(1000, least=1)
    keep_checkpoints: int = may_change(2, least=1)  # the newest ones
    timeout_s: int = may_change(1800, least=1)  # a process that waits longer than this for the others gives up
    l1_weight: float = setting(1.0, least=0)
    l2_weight: float = setting(1.0, least=0)
    edge_weight: float = setting(0.0, least=0)  # extra weight of pixels beside edges, 0 = plain mean
    consistency_weight: float = setting(0.0, least=0)  # the same codes where the edit changes nothing
    edit_consistency_weight: float = setting(0.0, least=0)  # few other codes where it changes something
    freeze_codes: bool = False  # train the decoder alone: every picture keeps its codes
    lpips_weight: float = setting(0.0, least=0)  # needs the LPIPS weights
    lpips_weights: str | None = None
    gan_weight: float = setting(0.0, least=0)  # of a PatchGAN's hinge loss
    gan_adaptive: bool = False  # scale it to the last layer's gradient from the other losses (VQGAN)
    gan_start: int = setting(20000, least=0)
    # Steps as plain autoencoder before the codebook is set by k-means; -1 = never.
    kmeans_at: int = setting(200, least=-1)
    kmeans_rounds: int = setting(1, least=1)  # few = even cover of the latents, many = follow their density
    restart_every: int = setting(50, least=0)  # steps between dead-code restarts, 0 = never
    device: str = may_change("auto")
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    data: PicturesConfig = field(default_factory=PicturesConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)

    def resolve(self) -> None:
        check_tokenizer(self.tokenizer, self.image_size)
        if self.lpips_weight > 0 and not self.lpips_weights:
            raise ConfigError("lpips_weight > 0 needs lpips_weights=FILE (the VGG backbone as a .pth); it is null")
        if self.data.path is not None and (self.consistency_weight or self.edit_consistency_weight):
            raise ConfigError(
                "consistency_weight and edit_consistency_weight are about the nano world's pairs; with data.path set "
                "both to 0, or give recipe=llamagen"
            )
        if self.data.path is None and self.image_size != 64:
            raise ConfigError(f"image_size={self.image_size}: the nano world's pictures have 64 pixels; give data.path")
        if self.gan_weight > 0 and self.image_size < 24:
            raise ConfigError(f"image_size={self.image_size}: the discriminator of gan_weight needs at least 24 pixels")
        if self.freeze_codes and (self.tokenizer.weights is None or self.kmeans_at >= 0 or self.restart_every > 0):
            raise ConfigError("freeze_codes needs tokenizer.weights=RUN, kmeans_at=-1 and restart_every=0")


@dataclass
class EvalConfig:
    """`python -m editar.eval`: edit a benchmark with a checkpoint or a baseline and score it, or score
    anybody's pictures.

    benchmark  one of configs/benchmark, whose files say what it is
    root       the benchmark's folder; nano has none, and folder takes the one that the checkpoint was trained on
    stage      `generate` edits into output_dir/images (restartable, shared by the ranks of torchrun),
               `score` scores what is there, `all` does both
    results    score these pictures instead: a folder with ID.png or the benchmark's names, a JSON map {id: file}, or
               several as '{name: FOLDER, other: FILE.json}'
    baseline   another system instead of a checkpoint, one of configs/baseline
    method     what the tables call the result; empty: the baseline's name, else `ours`
    """

    checkpoint: str | None = None
    lora: str | None = None  # an adapter trained on the checkpoint, as in editar.edit
    output_dir: str = setting(MISSING, recorded=True)
    benchmark: str = setting("nano", text=False)
    root: str | None = of_benchmark(None)
    stage: str = setting("all", choices=("all", "generate", "score"))
    results: Any = field(default=None, metadata={"text": True})
    method: str = setting("", recorded=True)
    samples: int = of_benchmark(240, least=1)  # nano
    data_seed: int | None = of_benchmark(None, least=0)  # nano: of the held-out samples; null: the checkpoint's, else 0
    shuffle_instructions: bool = of_benchmark(False)  # nano
    second: str = of_benchmark("given", choices=("given", "none", "other", "swapped"))  # nano_pairs: the second picture
    protocol: str = of_benchmark("editar", choices=("editar", "editar-aligned", "controlnet++"))  # Table 2
    canny: CannyConfig = field(default_factory=CannyConfig, metadata={"of_benchmark": True})  # Table 2
    # PIE-Bench: libraries of EditAR, of PnPInversion
    evaluator: str = of_benchmark("current", choices=("current", "2023"))
    prompt: str | None = of_benchmark(None)  # Table 2: the instruction with {} for the caption; null: EditAR's
    rows: int | None = of_benchmark(None, least=1)  # Table 2 and folder: only the first rows
    # folder: the pairs that the checkpoint's training held out, or all; auto: the former where it was trained on them
    pairs: str = of_benchmark("auto", choices=("auto", "heldout", "all"))
    report: bool = False  # also write output_dir/report.html
    fid_statistics: str | None = of_benchmark(None)  # Table 2: cache of the real pictures' statistics; null: in root
    dtype: str = setting("auto", choices=("auto", *DTYPES))  # of the GPT, as in editar.edit
    score_batch: int = setting(16, least=1)
    num_workers: int = setting(2, least=0)
    device: str = "auto"
    networks: NetworkSources = field(default_factory=NetworkSources)
    baseline: BaselineConfig = field(default_factory=BaselineConfig)
    text: TextPlace = field(default_factory=TextPlace)
    sampling: dict[str, Any] = field(default_factory=dict)

    def resolve(self) -> None:
        self.method = self.method or self.baseline.method or "ours"
        override(SamplingConfig(), self.sampling, "sampling")
        if self.prompt is not None and self.prompt.count("{}") != 1:
            raise ConfigError(f"prompt={self.prompt!r} must hold one {{}} for the caption")
        if self.results and self.stage == "generate":
            raise ConfigError(f"results={self.results} is scored, not generated: leave out stage=generate")
        if self.results:
            self.stage = "score"
        self.baseline.check(self.benchmark, self.stage)
        if self.baseline.given and (self.checkpoint or self.lora or self.sampling):
            raise ConfigError(
                "baseline takes neither checkpoint nor lora nor sampling; its settings are baseline.steps=... etc."
            )
        if self.stage != "score" and not self.checkpoint and not self.baseline.given:
            raise ConfigError(f"stage={self.stage} needs checkpoint=FOLDER or baseline=NAME")
        self.named_results()

    def named_results(self) -> dict[str, str]:
        """Method -> folder or JSON map to score. Raises ConfigError."""
        if self.results is None:
            return {self.method: f"{self.output_dir}/images"}
        if isinstance(self.results, str):
            return {self.method: self.results}
        texts = isinstance(self.results, dict) and [isinstance(value, str) for value in self.results.values()]
        if texts and all(texts):
            return {str(name): value for name, value in self.results.items()}
        raise ConfigError(f"results={self.results} must be a path or {{name: path, ...}}")
