"""Baselines: every entry composes and says its route; the runners edit through tiny pipelines in the real format."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    AutoencoderKL,
    ControlNetModel,
    DDPMScheduler,
    PNDMScheduler,
    StableDiffusionInstructPix2PixPipeline,
    StableDiffusionPipeline,
    T2IAdapter,
    UNet2DConditionModel,
)
from omegaconf import OmegaConf
from PIL import Image
from safetensors.torch import load_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from editar.config import BaselineConfig, EvalConfig, TrainConfig
from editar.data.loader import Batch
from editar.errors import CheckpointError, ConfigError
from editar.evaluation.run import evaluate
from editar.generation.diffusers_baselines import load_pipeline
from editar.generation.editors import Editor, open_editor
from editar.runtime.entry import load_config
from editar.tables.paper_rows import paper_tables
from scripts import train_instruct_pix2pix
from tests.helpers import tiny
from tests.helpers.tiny import ROOT

DATA = tiny.GOLDEN / "pie" / "data"
CPU = torch.device("cpu")
NAMES = sorted(path.stem for path in (ROOT / "configs" / "baseline").glob("*.yaml") if path.stem != "none")
WORDS = [
    "<|startoftext|>",
    "<|endoftext|>",
    *"abcdefghijklmnopqrstuvwxyz",
    *(f"{c}</w>" for c in "abcdefghijklmnopqrstuvwxyz"),
]
UNET: dict[str, Any] = {
    "block_out_channels": (16, 32),
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "layers_per_block": 1,
    "cross_attention_dim": 16,
    "attention_head_dim": 8,
    "norm_num_groups": 8,
}


def write_base(folder: Path, channels: int = 4) -> Path:
    """A Stable Diffusion of 64 px with random weights, and an index that names a safety checker which is not there."""
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=8,
        in_channels=channels,
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        **UNET,
    )
    vae = AutoencoderKL(
        block_out_channels=(8, 8, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        norm_num_groups=4,
        sample_size=64,
    )
    text = CLIPTextConfig(
        vocab_size=len(WORDS),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        bos_token_id=0,
        eos_token_id=1,
    )
    tokenizer = CLIPTokenizer({word: i for i, word in enumerate(WORDS)}, [], model_max_length=77)
    pipeline = StableDiffusionInstructPix2PixPipeline if channels == 8 else StableDiffusionPipeline
    pipeline(
        vae=vae,
        text_encoder=CLIPTextModel(text),
        tokenizer=tokenizer,
        unet=unet,
        scheduler=PNDMScheduler(beta_schedule="scaled_linear", skip_prk_steps=True, steps_offset=1),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)
    index = json.loads((folder / "model_index.json").read_text())
    index["safety_checker"] = ["stable_diffusion", "StableDiffusionSafetyChecker"]
    index["feature_extractor"] = ["transformers", "CLIPImageProcessor"]
    index["requires_safety_checker"] = True
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """FOLDER/{edit,draw} pipelines, FOLDER/adapter, FOLDER/controlnets/checkpoints/canny/controlnet."""
    folder = tmp_path_factory.mktemp("weights")
    write_base(folder / "edit", channels=8)
    write_base(folder / "draw")
    torch.manual_seed(1)
    controlnet = ControlNetModel(conditioning_embedding_out_channels=(8, 8, 8, 8), **UNET)
    for name, tensor in controlnet.state_dict().items():  # fresh ones end in zeros and would change nothing
        if name.startswith(("controlnet_down_blocks", "controlnet_mid_block")):
            tensor.normal_(std=0.2)
        if name.startswith("controlnet_cond_embedding"):  # and so few channels hardly feel the picture
            tensor.normal_(std=0.2)
    controlnet.save_pretrained(folder / "controlnets" / "checkpoints" / "canny" / "controlnet")
    T2IAdapter(in_channels=1, channels=[16, 32], num_res_blocks=1, downscale_factor=8).save_pretrained(
        folder / "adapter"
    )
    return folder


def config(out: Path, *overrides: str) -> EvalConfig:
    judges = ["networks.structure=null", "networks.lpips=null", "networks.clip=null", "num_workers=0", "device=cpu"]
    return load_config(EvalConfig, "eval", [f"output_dir={out}", f"root={DATA}", *judges, *overrides])


def pix2pix(out: Path, weights: Path, *overrides: str) -> EvalConfig:
    small = [f"baseline.base_model={weights / 'edit'}", "baseline.size=64", "baseline.steps=2"]
    return config(out, "baseline=instruct_pix2pix", "benchmark=pie_bench", *small, *overrides)


def controlled(out: Path, weights: Path, name: str) -> EvalConfig:
    """A baseline that reads conditions, on canny."""
    parts = {
        "t2i_adapter": weights / "adapter",
        "controlnet_plus_plus": f"{weights}/controlnets:checkpoints/canny/controlnet",
    }
    small = [f"baseline.base_model={weights / 'draw'}", "baseline.size=64", "baseline.steps=3"]
    return config(
        out, f"baseline={name}", "benchmark=canny", f"baseline.condition_models.canny='{parts[name]}'", *small
    )


@pytest.mark.parametrize("name", NAMES)
def test_every_baseline_composes_and_names_its_route(name: str, tmp_path: Path) -> None:
    written: Any = OmegaConf.to_container(OmegaConf.load(ROOT / "configs" / "baseline" / f"{name}.yaml"))
    benchmark = written["benchmarks"][0]
    cfg = config(tmp_path, f"baseline={name}", f"benchmark={benchmark}", "stage=score")
    assert {key: getattr(cfg.baseline, key) for key in written} == written
    assert cfg.method == cfg.baseline.method
    rows = {row.method: row for table in paper_tables().values() for row in table.rows}
    assert cfg.method in rows
    assert "https://" in cfg.baseline.how and "\n" not in cfg.baseline.how and cfg.baseline.licence
    assert set(cfg.baseline.condition_models) <= set(cfg.baseline.benchmarks)
    if cfg.baseline.kind == "folder":
        with pytest.raises(ConfigError, match=r"is not run here: .*https://.*stage=score results=FOLDER"):
            config(tmp_path, f"baseline={name}", f"benchmark={benchmark}")
    else:
        assert config(tmp_path, f"baseline={name}", f"benchmark={benchmark}").baseline.precision == "fp16"


def test_every_method_of_the_tables_has_an_entry() -> None:
    ours = {str(OmegaConf.load(ROOT / "configs" / "baseline" / f"{name}.yaml").method).lower() for name in NAMES}
    paper = {row.method.lower() for table in paper_tables().values() for row in table.rows}
    assert {name for name in paper if not name.startswith("editar")} - {"pnpinversion"} == ours


def test_pie_bench_is_edited_scored_and_gone_on_with(weights: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    evaluate(pix2pix(out, weights))
    method = json.loads((out / "scores.json").read_text())["methods"]["InstructPix2Pix"]
    assert method["why_not"][1] == "edited at 64 px, enlarged to 512"
    made_with = method["generated_with"]
    assert made_with["image_size"] == 64 and len(made_with["weights_sha256"]) == 64
    assert made_with["baseline"] == {
        "method": "InstructPix2Pix",
        "pipeline": "instruct_pix2pix",
        "base_model": str(weights / "edit"),
        "condition_model": "",
        "steps": 2,
        "guidance": 7.5,
        "image_guidance": 1.5,
        "scheduler": "euler_ancestral",
        "negative_prompt": "",
        "precision": "fp32",
        "seed": 1234,
        "safety_checker": "off",
    }
    mapping = json.loads((DATA / "mapping_file.json").read_text())
    instructions = json.loads((out / "manifest.json").read_text())["instructions"]
    assert instructions == {id: entry["editing_instruction"] for id, entry in mapping.items()}
    files = sorted((out / "images").rglob("*.png"))
    before = {file: file.read_bytes() for file in files}
    assert len(files) == 6 and len(set(before.values())) == 6
    files[3].unlink()
    evaluate(pix2pix(out, weights, "stage=generate", "baseline.batch_size=1"))
    again = np.asarray(Image.open(files[3])).astype(int)
    assert {file: file.read_bytes() for file in files if file != files[3]} == {
        file: content for file, content in before.items() if file != files[3]
    }
    assert again.std() > 1
    with pytest.raises(ConfigError, match="holds results made with other baseline"):
        evaluate(pix2pix(out, weights, "stage=generate", "baseline.seed=7"))


def pictures(editor: Editor, count: int) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (editor.size, editor.size, 3), np.uint8) for _ in range(count)]


@pytest.mark.parametrize("name", ["instruct_pix2pix", "t2i_adapter", "controlnet_plus_plus"])
def test_a_picture_depends_on_its_id_alone(name: str, weights: Path, tmp_path: Path) -> None:
    """Not on batch or order; another id, text or source gives another picture."""
    cfg = pix2pix(tmp_path, weights) if name == "instruct_pix2pix" else controlled(tmp_path, weights, name)
    editor = open_editor(cfg, CPU)
    assert editor.reads == ("instruction" if name == "instruct_pix2pix" else "caption")
    a, b = pictures(editor, 2)
    together = editor([a, b], ["a dog", "cats"], ["1", "2"])
    alone = [*editor([b], ["cats"], ["2"]), *editor([a], ["a dog"], ["1"])][::-1]
    for one, other in zip(together, alone, strict=True):
        assert one.shape == (64, 64, 3) and one.dtype == np.uint8 and one.std() > 1
        assert np.abs(one.astype(int) - other).max() <= 1  # a matrix product may round with its batch
    for changed in (([a], ["a dog"], ["3"]), ([a], ["cats"], ["1"]), ([b], ["a dog"], ["1"])):
        assert np.abs(editor(*changed)[0].astype(int) - together[0]).max() > 1


def test_the_papers_schedulers_are_used(weights: Path, tmp_path: Path) -> None:
    found = {}
    for name in ("t2i_adapter", "controlnet_plus_plus"):
        editor: Any = open_editor(controlled(tmp_path, weights, name), CPU)
        found[name] = type(editor.pipe.scheduler).__name__
        assert editor.pipe.safety_checker is None
    editor = open_editor(pix2pix(tmp_path, weights), CPU)
    found["instruct_pix2pix"] = type(editor.pipe.scheduler).__name__
    editor.pipe.scheduler.set_timesteps(50)
    assert editor.pipe.scheduler.timesteps[[0, -1]].tolist() == [999, 0]
    assert found == {
        "instruct_pix2pix": "EulerAncestralDiscreteScheduler",
        "t2i_adapter": "PNDMScheduler",
        "controlnet_plus_plus": "UniPCMultistepScheduler",
    }


def test_weights_that_do_not_fit_are_named(weights: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="its UNet takes 4 channels, instruct_pix2pix needs 8"):
        open_editor(pix2pix(tmp_path, weights, f"baseline.base_model={weights / 'draw'}"), CPU)
    with pytest.raises(ConfigError, match=f"cannot load {tmp_path}: .*no file named model_index.json") as caught:
        open_editor(pix2pix(tmp_path, weights, f"baseline.base_model={tmp_path}"), CPU)
    assert "\n" not in str(caught.value)


def test_without_diffusers_the_extra_is_named(weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "diffusers", None)  # importing it now fails, as where it is not installed
    with pytest.raises(ConfigError, match=r"needs diffusers: pip install -e \"\.\[baselines\]\""):
        open_editor(pix2pix(tmp_path, weights), CPU)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["baseline=controlnet", "benchmark=pie_bench"],
            "ControlNet is for depth, canny, cocostuff, not benchmark=pie",
        ),
        (["baseline=magicbrush", "benchmark=canny"], "MagicBrush is for pie_bench, not benchmark=canny"),
        (["baseline=magicbrush", "benchmark=nano"], "MagicBrush is for pie_bench, not benchmark=nano"),
        (
            ["baseline=magicbrush", "benchmark=pie_bench", "checkpoint=x"],
            "baseline takes neither checkpoint nor lora nor sampling",
        ),
        (
            ["baseline=magicbrush", "benchmark=pie_bench", "+sampling.top_k=1"],
            "neither checkpoint nor lora nor sampling",
        ),
        (["benchmark=pie_bench"], "stage=all needs checkpoint=FOLDER or baseline=NAME"),
        (["baseline=magicbrush", "benchmark=pie_bench", "baseline.steps=0"], "baseline.steps=0 must be at least 1"),
        (
            ["baseline=magicbrush", "benchmark=pie_bench", "baseline.size=100"],
            "baseline.size=100 is not divisible by 8",
        ),
        (["baseline=magicbrush", "benchmark=pie_bench", "baseline.scheduler=x"], "is not one of own, euler_ancestral"),
        (
            ["baseline=t2i_adapter", "benchmark=depth", "~baseline.condition_models.depth"],
            "condition_models has no depth",
        ),
    ],
)
def test_settings_that_cannot_work(tmp_path: Path, overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        config(tmp_path, *overrides)
    assert "\n" not in str(caught.value)


def fine_tuned(folder: Path, weights: Path, *more: str) -> dict[str, torch.Tensor]:
    small = [
        "image_size=64",
        "data.train_samples=16",
        "num_workers=0",
        "global_batch=4",
        "micro_batch=2",
        "log_every=1",
    ]
    arguments = ["--base", str(weights / "edit"), f"output_dir={folder}", "optim.lr=1e-3", *small, *more]
    train_instruct_pix2pix.main(arguments)
    return load_file(folder / "pipeline" / "unet" / "diffusion_pytorch_model.safetensors")


@pytest.mark.slow
def test_instruct_pix2pix_is_fine_tuned_on_our_data(weights: Path, tmp_path: Path) -> None:
    """A resumed training equals the uninterrupted one, and what it leaves is a baseline like any other."""
    whole = fine_tuned(tmp_path / "whole", weights, "steps=3")
    fine_tuned(tmp_path / "parts", weights, "steps=2")
    parts = fine_tuned(tmp_path / "parts", weights, "steps=3")
    assert whole.keys() == parts.keys() and all(torch.equal(whole[key], parts[key]) for key in whole)
    before = load_file(weights / "edit" / "unet" / "diffusion_pytorch_model.safetensors")
    assert any(not torch.equal(before[key], whole[key]) for key in before)
    for part in ("vae", "text_encoder"):
        files = [
            next((folder / part).glob("*.safetensors")) for folder in (weights / "edit", tmp_path / "whole/pipeline")
        ]
        first, second = (load_file(file) for file in files)
        assert all(torch.equal(first[key], second[key]) for key in first)
    rows = [json.loads(line) for line in (tmp_path / "parts" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3]
    cfg = pix2pix(tmp_path / "out", weights, f"baseline.base_model={tmp_path / 'whole' / 'pipeline'}")
    source = np.zeros((64, 64, 3), np.uint8)
    assert open_editor(cfg, CPU)([source], ["make it red"], ["a"])[0].shape == (64, 64, 3)


def test_dropped_conditions_of_the_fine_tuning(weights: Path) -> None:
    """With both dropped in every sample the loss knows neither text nor source."""
    cfg = load_config(TrainConfig, "train", ["output_dir=x", "drop.both=1", "drop.text=0", "drop.image=0"])
    origin = BaselineConfig(method="x", pipeline="instruct_pix2pix", base_model=str(weights / "edit"))
    pipe = load_pipeline(origin, "", torch.float32)
    noise = DDPMScheduler.from_config(pipe.scheduler.config)
    pictures = torch.randint(0, 255, (3, 64, 64, 3), dtype=torch.uint8)

    def loss(text: str, source: torch.Tensor) -> float:
        torch.manual_seed(3)
        batch = Batch(
            np.arange(1, dtype=np.uint64), ["t"], ["i"], [text], source[None], pictures[:1], None, None, None, []
        )
        return float(train_instruct_pix2pix.noise_loss(pipe, pipe.unet, noise, batch, cfg).detach())

    dropped = loss("make it red", pictures[1:2])
    assert loss("nothing", pictures[2:]) == dropped
    cfg.drop.both = 0
    assert len({dropped, loss("make it red", pictures[1:2]), loss("make it red", pictures[2:])}) == 3
