"""Weights into a module: every key that is missing, unexpected or mis-shaped is judged before anything changes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from editar.config import GPTConfig, RopeConfig, TokenizerConfig, TrainConfig
from editar.errors import CheckpointError, one_line
from editar.models.gpt import GPT
from editar.runtime.files import check_state, parse_json, save_weights, some, weights_header
from editar.weights.read import State, WeightsInfo, official_name, read_checkpoint


class Expected(NamedTuple):
    """A difference between file and model that is normal, and what happens to it."""

    what: str  # missing: the model keeps its initial values | unexpected: the file's entry is ignored
    pattern: str
    kinds: tuple[str, ...]
    reason: str


EXPECTED = (
    Expected("missing", "img_uncond_embedding", ("gpt_t2i",), "LlamaGen t2i has no null image"),
    Expected("missing", "alignment.*", ("gpt_t2i", "gpt_editar"), "made for this training's teacher"),
    Expected("missing", "pos_embeddings.*", ("gpt_t2i", "gpt_editar"), "rope.learned is not official"),
    Expected("missing", "quantize.codebook_used", ("vq",), "usage statistics of a training, not a weight"),
    Expected("unexpected", "alignment.*", ("gpt_editar",), "this configuration has no teacher"),
    Expected("unexpected", "layers.*.attention.kv_cache.?_cache", ("gpt_t2i", "gpt_editar"), "saved after sampling"),
)


# In the header of a GPT's weights, the first also of an adapter's.
TOKENIZER = "tokenizer"  # `vq_checksum` of the one it was trained on
SETTINGS = "settings"  # `model_settings` that it was trained with


@dataclass
class LoadReport:
    """What a load did besides copying; `str()` is one line for the log."""

    info: WeightsInfo
    kept: list[str]  # stayed at their initial values
    ignored: list[str]  # only in the file
    warnings: list[str] = field(default_factory=list)
    added_images: int = 0  # source images whose learned position the file does not have

    def __str__(self) -> str:
        parts = [f"loaded {self.info.kind} from {self.info.source}"]
        for label, keys, what in (("kept initial", self.kept, "missing"), ("ignored", self.ignored, "unexpected")):
            reasons = sorted({rule.reason for key in keys if (rule := declared(what, key, self.info.kind))})
            if keys:
                parts.append(f"{label} {some(keys, 3)} ({'; '.join(reasons)})")
        if self.added_images:
            parts.append(f"{self.added_images} more source image(s) begin with the position of the first")
        return "; ".join(parts + [f"warning: {warning}" for warning in self.warnings])


def load_gpt(gpt: GPT, source: str | Path, strict: bool = False) -> LoadReport:
    """Put weights into `gpt`. With `strict` (to use a model as it is) nothing may be missing; without it
    (to start a training) the differences declared in EXPECTED keep their initial values, and the weights may be
    those of fewer source images."""
    state, info = read_checkpoint(source)
    if not info.kind.startswith("gpt"):
        raise CheckpointError(f"{source}: a VQ tokenizer, where a GPT is wanted")
    more = 0 if strict else add_source_images(gpt, state)
    problems = []
    if (heads := info.sizes["n_head"]) not in (None, gpt.cfg.n_head):
        problems.append(f"the weights have {heads} attention heads, the config gpt.n_head={gpt.cfg.n_head}")
    report = copy_into(gpt, state, info, strict, gpt_advice(info.sizes, gpt.cfg), problems)
    report.added_images = more
    if info.rope is not None and _rope_text(info.rope) != _rope_text(gpt.cfg.rope):
        report.warnings.append(f"trained with rope {_rope_text(info.rope)}, used with {_rope_text(gpt.cfg.rope)}")
    return report


def add_source_images(gpt: GPT, state: State) -> int:
    """Give the learned positions in `state` the rows of the source images that only `gpt` has, as copies of the first
    image's -> how many. All else is the same for any number of images."""
    key = "pos_embeddings.segment.weight"
    if not gpt.cfg.rope.learned or key not in state or state[key].dim() != 2:
        return 0
    more = gpt.cfg.images + 2 - len(state[key])
    if more > 0:
        state[key] = torch.cat([state[key], state[key][:1].expand(more, -1)])
    return max(more, 0)


def load_vq(vq: nn.Module, source: str | Path) -> LoadReport:
    """Put weights into `vq`, a models.vq.VQModel."""
    state, info = read_tokenizer(source)
    cfg: TokenizerConfig = vq.cfg  # type: ignore[assignment]
    return copy_into(vq, state, info, False, vq_advice(info.sizes, cfg), [])


def read_tokenizer(source: str | Path) -> tuple[State, WeightsInfo]:
    """`read_checkpoint` of a VQ tokenizer; of a GPT's run folder, its tokenizer.safetensors."""
    if (Path(source) / "tokenizer.safetensors").is_file():
        source = Path(source) / "tokenizer.safetensors"
    state, info = read_checkpoint(source)
    if info.kind != "vq":
        raise CheckpointError(f"{source}: a GPT, where a VQ tokenizer is wanted")
    return state, info


def copy_into(
    module: nn.Module, state: State, info: WeightsInfo, strict: bool, advice: str, problems: list[str]
) -> LoadReport:
    """Judge every key, then copy all or nothing."""
    report = judge(module, state, info, strict, advice, problems)
    check_values(state, info.source)
    module.load_state_dict({key: value for key, value in state.items() if key not in report.ignored}, strict=False)
    return report


def check_values(state: State, source: str) -> None:
    """Raises CheckpointError for weights that are no real numbers, or not finite."""
    if unfit := [key for key, value in state.items() if not value.is_floating_point()]:
        raise CheckpointError(f"{source}: no floating-point weights: {some(unfit)}")
    if unfit := [key for key, value in state.items() if not torch.isfinite(value).all()]:
        raise CheckpointError(f"{source}: not finite: {some(unfit)}; the training that made it went wrong")


def judge(
    module: nn.Module, state: State, info: WeightsInfo, strict: bool, advice: str, problems: Sequence[str] = ()
) -> LoadReport:
    """Raise CheckpointError unless `state` fits `module` but for the differences declared in EXPECTED; its text
    names `problems` (found before), those of the keys, and `advice`. With `strict` a GPT may lack nothing."""
    own = module.state_dict()
    missing = [key for key in own if key not in state and declared("missing", key, info.kind)]
    kept = [] if strict and info.kind != "vq" else missing
    ignored = [key for key in state if key not in own and declared("unexpected", key, info.kind)]
    check_state(module, state, info.source, {*kept, *ignored}, problems, advice)
    return LoadReport(info, kept, ignored)


def tensor_checksum(state: Mapping[str, torch.Tensor]) -> str:
    """16 hex digits over the values in float32, in the order of their names."""
    digest = hashlib.sha256()
    for _, value in sorted(state.items()):
        digest.update(value.detach().cpu().float().numpy().tobytes())
    return digest.hexdigest()[:16]


def vq_checksum(state: Mapping[str, torch.Tensor]) -> str:
    """16 hex digits over a VQModel's weights, whatever file they came from."""
    # That entry is a statistic of the tokenizer's own training.
    return tensor_checksum({key: value for key, value in state.items() if key != "quantize.codebook_used"})


def model_settings(cfg: TrainConfig) -> str:
    """As JSON, the settings that change what a model computes and that the shapes of its weights do not show."""
    found = {"gpt.n_head": cfg.gpt.n_head, "gpt.n_kv_head": cfg.gpt.n_kv_head, "gpt.norm_eps": cfg.gpt.norm_eps}
    found |= {f"rope.{key}": value for key, value in asdict(cfg.gpt.rope).items()}
    found |= {f"tokenizer.{key}": getattr(cfg.tokenizer, key) for key in ("norm_groups", "codebook_l2_norm")}
    if cfg.text.name == "nano":
        own = ("nano_layers", "nano_heads", "nano_seed", "extra_words")
        found |= {f"text.{key}": getattr(cfg.text, key) for key in own}
    return json.dumps(found)


def save_pair(folder: Path, gpt: State, vq: State, header: Mapping[str, str]) -> None:
    """model.safetensors and tokenizer.safetensors of a run folder; the header of the first names the second."""
    save_weights(vq, folder / "tokenizer.safetensors")
    save_weights(gpt, folder / "model.safetensors", {**header, TOKENIZER: vq_checksum(vq)})


def check_header(folder: Path, cfg: TrainConfig, vq: State) -> None:
    """Raises CheckpointError where the GPT's weights in `folder` name another tokenizer or other settings than
    `cfg`'s; older files name none."""
    header = weights_header(folder / "model.safetensors")
    stored = header.get(TOKENIZER)
    if stored is not None and stored != (found := vq_checksum(vq)):
        raise CheckpointError(
            f"{folder}: the GPT was trained on the codes of a tokenizer with checksum {stored}, tokenizer.safetensors "
            f"has {found}; copy the folder anew (a decoder trained further comes in by scripts/export_run.py --decoder)"
        )
    try:
        ours, trained = (dict(parse_json(text)) for text in (model_settings(cfg), header.get(SETTINGS, "{}")))
    except (ValueError, TypeError) as error:
        raise CheckpointError(f"{folder}: model.safetensors has a damaged header ({one_line(error)})") from None
    changed = [f"{key}={ours.get(key)}, was {value}" for key, value in trained.items() if ours.get(key) != value]
    if changed:
        raise CheckpointError(
            f"{folder}: config.yaml has other settings than the GPT was trained with ({some(changed, 3)}); copy it "
            f"anew (scripts/convert_weights.py --config makes a folder of the same weights with others)"
        )


def declared(what: str, key: str, kind: str) -> Expected | None:
    """The rule of EXPECTED that covers this difference."""
    return next((e for e in EXPECTED if e.what == what and kind in e.kinds and fnmatch(key, e.pattern)), None)


def gpt_advice(sizes: Mapping[str, Any], cfg: GPTConfig) -> str:
    """Which settings would fit a GPT of these sizes, '' when they do already."""
    settings = []
    if (sizes["dim"], sizes["n_layer"]) != (cfg.dim, cfg.n_layer):
        name = official_name(sizes)
        settings.append(f"gpt={name}" if name else f"gpt.dim={sizes['dim']} gpt.n_layer={sizes['n_layer']}")
    for size, key in (
        ("vocab_size", "tokenizer.codebook_size"),
        ("text_dim", "text.dim"),
        ("null_text_rows", "text.max_tokens"),
        ("teacher_dim", "teacher.dim"),
    ):
        if getattr(cfg, size) is not None and sizes[size] not in (None, getattr(cfg, size)):
            settings.append(f"{key}={sizes[size]}")
    if (sizes["images"] or 0) > cfg.images:
        settings.append(f"data.images={sizes['images']}")
    if sizes["grid"] not in (None, cfg.grid):
        settings.append(f"an image_size of {sizes['grid']} times the tokenizer's downsampling")
    return f"; these weights need {' '.join(settings)}" if settings else ""


def vq_advice(sizes: Mapping[str, Any], cfg: TokenizerConfig) -> str:
    official = TokenizerConfig()
    wrong = [key for key, value in sizes.items() if value != getattr(cfg, key)]
    if wrong and all(value == getattr(official, key) for key, value in sizes.items()):
        return "; these weights need tokenizer=vq16"
    settings = " ".join(f"tokenizer.{key}={sizes[key]}".replace(", ", ",") for key in wrong)
    return f"; these weights need {settings}" if settings else ""


def _rope_text(rope: RopeConfig) -> str:
    return f"layout={rope.layout} text={rope.text} query={rope.query} base={rope.base:g}"
