"""Configs without Hydra and OmegaConf are those that these two make."""

from __future__ import annotations

import pytest
import yaml

from editar.config import TrainConfig, from_plain, plain_training, to_dataclass
from editar.errors import ConfigError
from editar.runtime.entry import load_config
from tests.helpers.tiny import ROOT


@pytest.mark.parametrize("size", sorted(path.stem for path in (ROOT / "configs/gpt").glob("*.yaml")))
def test_plain_configs_are_the_composed_ones(size: str) -> None:
    """Where plain_training is told nothing, the dataclasses' defaults are those of the paper's experiment."""
    sections = {"rope": "editar", "tokenizer": "vq16", "text": "flan_t5_xl", "teacher": "dinov2", "gpt": size}
    plain = plain_training(sections, output_dir="x", init_from="checkpoints/t2i_XL_stage2_512.pt")
    composed = load_config(TrainConfig, "train", ["experiment=editar_xl", "output_dir=x", f"gpt={size}"])
    plain.data = composed.data  # its file has a list of defaults of its own; no benchmark needs it
    assert plain == composed


def test_a_plain_run_config_is_what_omegaconf_reads() -> None:
    values = yaml.safe_load((ROOT / "reference/nano/config.yaml").read_text())
    assert from_plain(TrainConfig, values) == to_dataclass(TrainConfig, values)


def test_mistakes_in_plain_configs_are_named() -> None:
    with pytest.raises(ConfigError, match=r"unknown key 'gpt.dims'; known there: .*dim, "):
        from_plain(TrainConfig, {"gpt": {"dims": 3}})
    with pytest.raises(ConfigError, match=r"gpt.dim=0 must be at least 1"):
        from_plain(TrainConfig, {"gpt": {"dim": 0}})
    with pytest.raises(ConfigError, match="gpt=xxxl is not one of 3b, b, "):
        plain_training({"gpt": "xxxl"})
