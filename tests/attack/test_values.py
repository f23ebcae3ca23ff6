"""Every field of every config refuses what it cannot mean; the cases are made from the fields themselves."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
from omegaconf import OmegaConf

from editar.config import (
    EditConfig,
    EvalConfig,
    SamplingConfig,
    SourceConfig,
    TokenizerTrainConfig,
    TrainConfig,
    override,
    to_dataclass,
    to_yaml,
)
from editar.config.fields import LARGEST
from editar.edit import edit
from editar.errors import ConfigError
from editar.evaluation.registry import benchmark_class, benchmarks
from editar.runtime.entry import load_config
from editar.sampling.pipeline import EditPipeline

ENTRIES: dict[str, tuple[type, list[str]]] = {
    "train": (TrainConfig, ["output_dir=x"]),
    "train_tokenizer": (TokenizerTrainConfig, ["output_dir=x"]),
    "edit": (EditConfig, ["image=a", "instruction=b", "checkpoint=c"]),
    "eval": (EvalConfig, ["checkpoint=a", "output_dir=b"]),
}


def bad_values(spec: Any, kind: Any) -> list[Any]:
    """Values of the field's type, or near it, that it must not take."""
    kinds, limits = {kind, *get_args(kind)}, spec.metadata
    if kinds & {bool, Any} or is_dataclass(kind):
        return [[1], "perhaps"] if bool in kinds else []
    if kinds & {int, float}:
        found: list[Any] = [math.nan, math.inf, -math.inf, "many"]
        whole = float not in kinds
        found += [limits["least"] - 1, -1e-6 + limits["least"]] if "least" in limits else [-LARGEST - 1] * whole
        found += [limits["most"] + 1] if "most" in limits else [LARGEST + 1, 10**30] * whole
        found += [limits["above"], -1] if "above" in limits else []
        return [*found, limits["below"]] if "below" in limits else found
    if "choices" in limits:
        return ["nonsense", " ", limits["choices"][-1].upper() + "x"]
    if str in kinds:
        return [] if spec.default == "" else ["", "  "]
    return []


def cases(cls: Any, prefix: str = "") -> list[tuple[str, Any]]:
    found = []
    for spec in fields(cls):
        kind, key = get_type_hints(cls)[spec.name], prefix + spec.name
        if is_dataclass(kind):
            found += cases(kind, f"{key}.")
        else:
            lists = {list[int]: int, list[str]: str}
            wrapped = [[value] for value in bad_values(spec, lists[kind])] if kind in lists else bad_values(spec, kind)
            found += [(key, value) for value in wrapped]
            found += [(key, [])] if kind in lists and spec.metadata else []
    return found


def refused(plain: dict[str, Any], cls: type, key: str, value: Any) -> None:
    changed = OmegaConf.create(plain)
    OmegaConf.update(changed, key, value, force_add=True)
    with pytest.raises(ConfigError) as error:
        to_dataclass(cls, changed)
    assert "\n" not in str(error.value) and key.rsplit(".", 1)[-1] in str(error.value), (key, value, str(error.value))


@pytest.mark.parametrize("override", ["=3", "+=3", "~=3"])
def test_a_value_needs_a_key(override: str) -> None:
    with pytest.raises(ConfigError, match="a setting is KEY=VALUE"):
        load_config(EditConfig, "edit", ["image=a", "instruction=b", "checkpoint=c", override])


@pytest.mark.parametrize(
    ("script", "arguments", "message"),
    [
        ("plan_gpus", ["gpt=zzz"], "plan_gpus: "),
        ("inspect_speed", ["checkpoint=x", "--batch", "0"], "argument --batch: 0 is less than 1"),
        ("report", ["x", "--pictures", "-1"], "argument --pictures: -1 is less than 0"),
        ("figure_examples", ["x", "--draws", "0"], "argument --draws: 0 is less than 1"),
        ("score_tokenizer", ["run", "pictures", "--size", "1000000"], "1000000 is more than 4096"),
        ("inspect_data", ["--draws", "1000000"], "1000000 is more than 256"),
        (
            "inspect_data",
            ["--source", "nano", "--rows", "0:300", "experiment=nano"],
            "a sheet shows at most 256",
        ),
        ("score_tokenizer", ["run", "pictures", "--out", "config.yaml"], "--out config.yaml: give the name of a .json"),
        ("demo", ["--tokenizer", "nowhere"], "--tokenizer nowhere: give the folder of a tokenizer's training"),
        ("report", ["=scores"], "=scores: give a name before the equals sign"),
        ("push_to_hub", ["run", "o/n\n---\nx", "--save", "x"], "give the repository as owner/name"),
        ("prepare_data", ["webdataset", "a", "out", "--allow-truncated"], "--allow-truncated is of seed_unsplash"),
        ("prepare_data", ["seed_unsplash", "a", "out", "--split", "test"], "seed_unsplash has no splits"),
        ("ablate", ["out", "output_dir=a,b"], "output_dir is chosen for every run, below out"),
        ("ablate", ["out", "seed=0,1", "--eval", "checkpoint=mine"], "checkpoint is chosen for every run"),
    ],
)
def test_a_script_names_what_it_cannot_do(
    script: str,
    arguments: list[str],
    message: str,
    refusal: Callable[..., str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert message in refusal(f"scripts/{script}.py", *arguments)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("gpt=null", "gpt is one of 3b, b, l, nano"),
        ("rope=1", "rope is one of "),
        ("+source@data.sources.x=[1]", "source is one of "),
        ("data.sources={}", r"changes nothing; ~data\.sources\.NAME leaves an entry out"),
        ("+source@data.sources.a b=folder", "not readable as KEY=VALUE"),
        ("optim.lr='1", "not readable as KEY=VALUE"),
    ],
)
def test_an_override_that_hydra_cannot_read_is_named(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as told:
        load_config(TrainConfig, "train", ["output_dir=x", override])
    assert str(told.value).startswith(override)


def test_a_region_needs_a_picture() -> None:
    with pytest.raises(ConfigError, match="image is null, and region needs one"):
        load_config(EditConfig, "edit", ["checkpoint=x", "image=null", "instruction=x", "region=0,0,64"])


def test_values_that_mean_nothing() -> None:
    for changes, message in (
        ({"cfg_scale": 1e308}, r"sampling\.cfg_scale=1e\+308 must be at most"),
        ({"greedy": 7}, r"sampling\.greedy=7 is neither true nor false"),
    ):
        with pytest.raises(ConfigError, match=message):
            override(SamplingConfig(), changes, "sampling")
    with pytest.raises(ConfigError, match="text=null: text is one of flan_t5_xl, nano"):
        load_config(EditConfig, "edit", ["text=null"])
    for value in ("int8=2", "compile=1", "overwrite=yes", "sampling.greedy=7"):
        with pytest.raises(ConfigError, match=f"{value}.* neither true nor false"):
            load_config(EditConfig, "edit", ["checkpoint=x", "image=x", "instruction=x", value])
    with pytest.raises(ConfigError) as told:
        load_config(EditConfig, "edit", ["k" * 3000 + "=1"])
    assert len(str(told.value)) < 400


@pytest.mark.parametrize("key", ["steps", "seed", "precision", "gpt.dim", "optim.lr", "init_from", "compile"])
def test_three_question_marks_are_no_value(key: str) -> None:
    for value in ("???", "'???'"):
        with pytest.raises(ConfigError, match=r"=\?\?\? stands for a value that is missing"):
            load_config(TrainConfig, "train", ["output_dir=x", f"{key}={value}"])


def test_a_benchmark_refuses_settings_of_others() -> None:
    values = {"samples": "3", "rows": "3", "data_seed": "1", "shuffle_instructions": "true", "second": "none"}
    values |= {"prompt": "a {}", "pairs": "all", "protocol": "controlnet++", "evaluator": "2023", "root": "nowhere"}
    values |= {"fid_statistics": "x.npz", "canny.operator": "cv2"}
    for name, cls in benchmarks().items():
        for key, value in values.items():
            if key.split(".")[0] not in cls.settings:
                cfg = load_config(
                    EvalConfig, "eval", ["checkpoint=x", "output_dir=x", f"benchmark={name}", f"{key}={value}"]
                )
                with pytest.raises(ConfigError, match=f"benchmark={name} has no {key.split('.')[0]}, found"):
                    benchmark_class(name)(cfg)


def test_settings_without_effect_are_refused(refusal: Callable[..., str]) -> None:
    with pytest.raises(ConfigError, match="the nano world's pictures have 64 pixels"):
        load_config(TokenizerTrainConfig, "train_tokenizer", ["output_dir=x", "image_size=128"])
    small = ["data.path=x", "recipe=llamagen", "lpips_weight=0", "gan_weight=0.5", "image_size=16"]
    with pytest.raises(ConfigError, match="image_size=16: the discriminator of gan_weight needs at least 24 pixels"):
        load_config(TokenizerTrainConfig, "train_tokenizer", ["output_dir=x", *small])
    with pytest.raises(ConfigError, match=r"baseline\.\* are given, but no baseline=NAME"):
        load_config(EvalConfig, "eval", ["checkpoint=x", "output_dir=x", "baseline.size=256"])
    with pytest.raises(ConfigError, match=r"wandb\.project=a/b must not have / in it"):
        load_config(TrainConfig, "train", ["output_dir=x", "wandb.project=a/b"])
    with pytest.raises(ConfigError, match=r"text\.extra_words: .* is not one word"):
        load_config(TrainConfig, "train", ["output_dir=x", "text.extra_words=[[a]]"])
    with pytest.raises(ConfigError, match=r"gpt\.n_layer=100000000 must be at most 1000"):
        load_config(TrainConfig, "train", ["output_dir=x", "gpt.n_layer=100000000"])
    for hydra in ("hydra.run.dir=/tmp/x", "hydra/launcher=joblib", "+hydra.verbose=true"):
        with pytest.raises(ConfigError, match=r"Hydra's own settings have no effect here; give output_dir"):
            load_config(EvalConfig, "eval", ["checkpoint=x", "output_dir=x", hydra])
    with pytest.raises(ConfigError, match=r"-m: a setting is KEY=VALUE"):
        load_config(TrainConfig, "train", ["-m"])
    assert "--rows 1:2 needs --source NAME" in refusal("scripts/inspect_data.py", "--rows", "1:2")


@pytest.mark.slow
@pytest.mark.parametrize("entry", ENTRIES)
def test_bad_values_of_every_field(entry: str) -> None:
    cls, given = ENTRIES[entry]
    plain = OmegaConf.to_container(OmegaConf.create(to_yaml(load_config(cls, entry, given))))
    assert isinstance(plain, dict)
    made = cases(cls)
    if cls is TrainConfig:
        made += cases(SourceConfig, "data.sources.nano.")
        made += [(f"data.sources.nano.{name}", value) for name, value in (("weight", 0), ("prompt", "no place"))]
    for key, value in made:
        refused(plain, cls, key, value)
    print(f"{entry}: {len(made)} bad values of {len({key for key, _ in made})} fields refused")


def test_every_number_declares_what_it_may_be() -> None:
    """Only weights of losses and the like need no bound of their own; there is none left without one."""
    classes = [cls for cls, _ in ENTRIES.values()]
    without = []
    for cls in (*classes, SourceConfig, SamplingConfig):
        for spec in fields(cls):
            kinds = {get_type_hints(cls)[spec.name], *get_args(get_type_hints(cls)[spec.name])}
            if kinds & {int, float} and not {"least", "above"} & spec.metadata.keys() and spec.default is not MISSING:
                without.append(f"{cls.__name__}.{spec.name}")
    assert without == ["SourceConfig.weight"]  # whose message says how to drop the source


@pytest.mark.parametrize("value", ["nan", "inf", "-1", "0.5", "many"])
@pytest.mark.parametrize("entry", ["edit", "eval"])
def test_sampling_settings_are_judged_before_anything_is_loaded(entry: str, value: str) -> None:
    cls, given = ENTRIES[entry]
    with pytest.raises(ConfigError, match=r"sampling.*cfg_scale"):
        load_config(cls, entry, [*given, f"+sampling.cfg_scale={value}"])
    with pytest.raises(ConfigError, match="unknown key 'scale'"):
        load_config(cls, entry, [*given, "+sampling.scale=2"])


@pytest.mark.parametrize("key", ["+optim.foo", "+gpt.foo", "+foo", "+data.foo", "+tokenizer.foo", "++optim.foo"])
@pytest.mark.parametrize("entry", ["train", "train_tokenizer"])
def test_keys_added_with_a_plus_must_exist(entry: str, key: str) -> None:
    cls, given = ENTRIES[entry]
    with pytest.raises(ConfigError, match="unknown key"):
        load_config(cls, entry, [*given, f"{key}=3"])


def test_overrides_of_a_section_are_judged_too() -> None:
    for value in (math.nan, math.inf, 0.5, -1):
        with pytest.raises(ConfigError, match=r"sampling\.cfg_scale"):
            override(SamplingConfig(), {"cfg_scale": value}, "sampling")


def test_int8_takes_no_half_precision(tiny_run: Path) -> None:
    with pytest.raises(ConfigError, match="int8=true needs a float32 model on a CPU"):
        EditPipeline.from_pretrained(tiny_run, "cpu", int8=True, dtype="bfloat16")


def test_a_picture_of_one_code_has_no_teacher() -> None:
    with pytest.raises(ConfigError, match="image_size=8 makes a single code"):
        load_config(TrainConfig, "train", ["output_dir=x", "image_size=8"])


def test_a_folder_takes_no_second_picture(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="begins with a folder; of several pictures each is a file"):
        edit(load_config(EditConfig, "edit", ["checkpoint=x", f"images=[{tmp_path},b.png]", "instruction=x"]))
