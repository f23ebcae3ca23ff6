"""Configs: every experiment composes, every mistake is one line that names the key."""

from __future__ import annotations

import pytest
from omegaconf import OmegaConf

from editar.config import EditConfig, EvalConfig, SamplingConfig, TokenizerTrainConfig, override
from editar.errors import ConfigError
from editar.runtime.entry import load_config
from tests.helpers.tiny import ROOT, run_module, train_config


@pytest.mark.parametrize("name", sorted(p.stem for p in (ROOT / "configs/experiment").glob("*.yaml")))
def test_every_experiment_composes(name: str) -> None:
    own = ["data.sources.folder.path=x"] if name.endswith("_lora") else []  # there is no default for own pairs
    cfg = train_config(f"experiment={name}", *own)
    assert cfg.gpt.grid == cfg.image_size // cfg.tokenizer.downsample
    assert cfg.gpt.vocab_size == cfg.tokenizer.codebook_size


@pytest.mark.parametrize("group", ["gpt", "rope", "text", "teacher"])
def test_every_choice_composes(group: str) -> None:
    for file in sorted((ROOT / "configs" / group).glob("*.yaml")):
        chosen = getattr(train_config("experiment=editar_xl", f"{group}={file.stem}"), group)
        written = OmegaConf.to_container(OmegaConf.load(file))
        assert {key: getattr(chosen, key) for key in written} == written, file


def test_editar_xl_is_the_paper() -> None:
    cfg = train_config("experiment=editar_xl")
    assert (cfg.gpt.n_layer, cfg.gpt.dim, cfg.gpt.n_head, cfg.gpt.ffn_dim) == (36, 1280, 20, 3584)
    assert (cfg.tokenizer.codebook_size, cfg.tokenizer.codebook_dim, cfg.gpt.grid) == (16384, 8, 32)
    assert (cfg.text.name, cfg.text.dim, cfg.text.max_tokens) == ("google/flan-t5-xl", 2048, 120)
    assert (cfg.steps, cfg.global_batch, cfg.image_size, cfg.loss.distill_weight) == (40000, 64, 512, 0.5)
    optim = cfg.optim
    assert (optim.name, optim.lr, optim.beta1, optim.beta2, optim.weight_decay) == ("adamw", 1e-4, 0.9, 0.95, 0.05)
    assert (optim.clip, optim.schedule) == (1.0, "constant")
    assert (cfg.sampling.cfg_scale, cfg.sampling.top_k, cfg.sampling.temperature) == (3.0, 1000, 1.0)
    assert (cfg.drop.text, cfg.drop.image, cfg.drop.both) == (0.05, 0.05, 0.05)
    assert (cfg.rope.layout, cfg.rope.text, cfg.rope.query, cfg.rope.learned) == ("quadrants", "zero", "input", False)
    assert cfg.gpt.sequence_tokens == 2168
    assert (cfg.gpt.token_dropout, cfg.gpt.resid_dropout, cfg.gpt.ffn_dropout) == (0.1, 0.1, 0.1)


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["stepz=3"], "unknown key 'stepz'; known there: "),
        (["gpt.layers=3"], "unknown key 'gpt.layers'; known there: attn_dropout"),
        (["steps=many"], "steps: Value 'many' of type 'str' could not be converted to Integer"),
        (["steps=0"], "steps=0 must be at least 1"),
        (["image_size=63"], "image_size=63 is not divisible by the tokenizer's downsampling 8"),
        (["gpt.n_head=7"], "gpt.dim=160 is not divisible by gpt.n_head=7"),
        (["tokenizer.ch=12"], "tokenizer.norm_groups=8"),
        (["rope.text=none"], "rope.text=none is not one of zero, identity"),
        (["teacher.name=sam"], "teacher.name=sam is not one of none, dinov2, clip, clipseg, timm, hog"),
        (["optim.schedule=step"], "optim.schedule=step is not one of constant, cosine, linear"),
        (["precision=fp8"], "precision=fp8 is not one of bf16, fp32"),
        (["drop.text=0.9", "drop.both=0.9"], "drop.* must sum to at most 1"),
        (["sampling.cfg_scale=0.5"], "sampling.cfg_scale=0.5 must be at least 1"),
        (["gpt=huge"], "gpt=huge: gpt is one of 3b, b, l, nano"),
    ],
)
def test_mistakes_are_one_line(overrides: list[str], expected: str) -> None:
    with pytest.raises(ConfigError) as caught:
        train_config(*overrides)
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


def test_output_dir_is_mandatory() -> None:
    with pytest.raises(ConfigError, match=r"missing: give output_dir=\.\.\. on the command line"):
        load_config(TokenizerTrainConfig, "train_tokenizer", [])


@pytest.mark.parametrize("plus", ["", "+", "++"])
def test_sampling_overrides_need_no_plus(plus: str) -> None:
    cfg = load_config(EvalConfig, "eval", ["checkpoint=a", "output_dir=b", f"{plus}sampling.cfg_scale=2"])
    assert cfg.sampling == {"cfg_scale": 2}
    edit = ["checkpoint=a", "image=b", "instruction=c", "sampling.seed=1", f"{plus}sampling.top_k=5"]
    assert load_config(EditConfig, "edit", edit).sampling == {"seed": 1, "top_k": 5}
    with pytest.raises(ConfigError, match="unknown key 'cfg_scal'"):
        load_config(EvalConfig, "eval", ["checkpoint=a", "output_dir=b", f"{plus}sampling.cfg_scal=2"])


def test_override_checks_keys_and_types() -> None:
    assert override(SamplingConfig(), {"cfg_scale": 2}, "sampling").cfg_scale == 2.0
    with pytest.raises(ConfigError, match=r"sampling: unknown key 'cfg'; known there: .*cfg_scale"):
        override(SamplingConfig(), {"cfg": 2}, "sampling")
    with pytest.raises(ConfigError, match="sampling: top_k: Value 'lots'"):
        override(SamplingConfig(), {"top_k": "lots"}, "sampling")


def test_entry_prints_one_line_and_exits_2() -> None:
    done = run_module("editar.train", "output_dir=x", "stepz=1")
    assert done.returncode == 2
    assert done.stderr.startswith("editar.train: unknown key 'stepz'")
    assert len(done.stderr.strip().splitlines()) == 1
