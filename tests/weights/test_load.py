"""Weights into a module: the differences that are normal, and what is said of all others."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from editar.errors import CheckpointError
from editar.models.gpt import GPT
from editar.models.vq import VQModel
from editar.weights.load import load_gpt, load_vq
from editar.weights.read import OFFICIAL_SIZES, read_checkpoint
from tests.helpers.official import GOLDEN, RELEASE, T2I, VQ, config, fake_gpt, gpt, official, same


def loaded_and_kept(model: GPT, source: Path) -> list[str]:
    """Load; check that kept entries did not move and all others are the file's. Returns the kept."""
    before = {key: value.clone() for key, value in model.state_dict().items()}
    report = load_gpt(model, source)
    file = read_checkpoint(source)[0]
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key] if key in report.kept else file[key]), key
    return report.kept


@pytest.mark.parametrize("teacher", ["dinov2", "clip", "None"])
def test_t2i_start_keeps_what_the_official_load_keeps(teacher: str) -> None:
    golden = json.loads((GOLDEN / "keys.json").read_text())[f"load_into_edit_model_distill_{teacher}"]
    kept = loaded_and_kept(gpt(f"teacher={teacher.lower()}"), T2I)
    assert kept == golden["missing_keys"]


def test_release_loads_whole() -> None:
    model = gpt()
    assert loaded_and_kept(model, RELEASE) == []
    report = load_gpt(model, RELEASE, strict=True)
    assert (report.kept, report.ignored, report.warnings) == ([], [], [])
    assert str(report) == f"loaded gpt_editar from {RELEASE}"


def test_release_alignment_is_ignored_without_a_teacher() -> None:
    report = load_gpt(gpt("teacher=none"), RELEASE, strict=True)
    assert report.ignored == ["alignment.weight", "alignment.bias"]
    assert "ignored alignment.weight, alignment.bias (this configuration has no teacher)" in str(report)


def test_release_without_alignment_keeps_it_initial(tmp_path: Path) -> None:
    state = {key: value for key, value in official(RELEASE)["model"].items() if "alignment" not in key}
    torch.save({"model": state}, tmp_path / "w.pt")
    assert loaded_and_kept(gpt(), tmp_path / "w.pt") == ["alignment.weight", "alignment.bias"]
    with pytest.raises(CheckpointError, match=r"missing alignment.weight; missing alignment.bias$"):
        load_gpt(gpt(), tmp_path / "w.pt", strict=True)


def test_learned_positions_start_fresh_and_other_rope_is_said() -> None:
    model = gpt("rope.learned=true", "rope=shared")
    report = load_gpt(model, RELEASE)
    assert report.kept == ["pos_embeddings.grid.weight", "pos_embeddings.text.weight", "pos_embeddings.segment.weight"]
    assert "trained with rope layout=quadrants" in str(report) and "used with layout=shared" in str(report)


def test_undeclared_differences_change_nothing(tmp_path: Path) -> None:
    state = official(RELEASE)["model"]
    del state["norm.weight"]
    state["layers.7.extra"] = torch.zeros(1)
    torch.save(state, tmp_path / "w.pt")
    model = gpt()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(CheckpointError, match=r"missing norm.weight.*unexpected layers.7.extra"):
        load_gpt(model, tmp_path / "w.pt")
    assert same(dict(model.state_dict()), before)


def test_saved_key_value_caches_are_ignored(tmp_path: Path) -> None:
    state = official(RELEASE)["model"] | {"layers.0.attention.kv_cache.k_cache": torch.zeros(2)}
    torch.save({"model": state}, tmp_path / "w.pt")
    assert load_gpt(gpt(), tmp_path / "w.pt").ignored == ["layers.0.attention.kv_cache.k_cache"]


def test_vq_with_and_without_usage_history(tmp_path: Path) -> None:
    state = official(VQ)["model"]
    vq = VQModel(config().tokenizer)
    assert load_vq(vq, VQ).kept == []
    assert same(dict(vq.state_dict()), {key: state[key] for key in vq.state_dict()})
    torch.save({key: value for key, value in state.items() if key != "quantize.codebook_used"}, tmp_path / "w.pt")
    assert load_vq(vq, tmp_path / "w.pt").kept == ["quantize.codebook_used"]


# --- what does not fit ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", list(OFFICIAL_SIZES))
def test_wrong_size_names_the_config_that_fits(tmp_path: Path, name: str) -> None:
    dim, layers, heads = OFFICIAL_SIZES[name]
    path = fake_gpt(replace(config().gpt, dim=dim, n_layer=layers, n_head=heads), tmp_path / "w.pt")
    assert read_checkpoint(path)[1].sizes["n_head"] == heads
    with pytest.raises(CheckpointError, match=f"and [0-9]+ more; these weights need gpt={name}$"):
        load_gpt(gpt(), path)


def test_wrong_settings_are_named() -> None:
    for change, words in (
        ("text.max_tokens=77", "text.max_tokens=120"),
        ("text.dim=32", "text.dim=24"),
        ("tokenizer.codebook_size=128", "tokenizer.codebook_size=64"),
        ("image_size=16", "an image_size of 4 times the tokenizer's downsampling"),
        ("teacher.dim=11", "teacher.dim=768"),
        ("gpt.n_layer=3", "gpt.dim=16 gpt.n_layer=2"),
    ):
        with pytest.raises(CheckpointError, match=f"these weights need {words}$") as error:
            load_gpt(gpt(change), RELEASE)
        assert "\n" not in str(error.value)
    vq = VQModel(config("tokenizer.z_channels=32", "tokenizer.encoder_ch_mult=[1,2]").tokenizer)
    with pytest.raises(CheckpointError, match=r"need tokenizer.encoder_ch_mult=\[1,1\] tokenizer.z_channels=16$"):
        load_vq(vq, VQ)


def test_wrong_head_count_is_found_although_every_shape_fits(tmp_path: Path) -> None:
    dim, layers, _ = OFFICIAL_SIZES["b"]
    right = replace(config().gpt, dim=dim, n_layer=layers, n_head=12)
    path = fake_gpt(right, tmp_path / "w.pt")
    with torch.device("meta"):
        wrong = GPT(replace(right, n_head=6))
    with pytest.raises(CheckpointError, match=r"the weights have 12 attention heads, the config gpt.n_head=6"):
        load_gpt(wrong, path)


def test_gpt_and_vq_are_not_mixed_up() -> None:
    with pytest.raises(CheckpointError, match="a VQ tokenizer, where a GPT is wanted"):
        load_gpt(gpt(), VQ)
    with pytest.raises(CheckpointError, match="a GPT, where a VQ tokenizer is wanted"):
        load_vq(VQModel(config().tokenizer), RELEASE)
