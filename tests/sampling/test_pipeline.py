"""From a run folder to edited pictures: the pipeline, `editar.edit` and `editar.eval`."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from editar.config import EditConfig, TrainConfig, override
from editar.data.nano.world import NanoWorld
from editar.edit import edit
from editar.errors import CheckpointError, ConfigError, UserError
from editar.evaluation.translation.conditions import sentence
from editar.images import to_uint8
from editar.runtime.entry import load_config
from editar.sampling.decode import SampleSeeds, generate
from editar.sampling.pipeline import EditPipeline
from tests.helpers.tiny import ROOT, run_module
from tests.helpers.tiny_networks import write_depth_network, write_hub_segmenter


@pytest.fixture(scope="module")
def pipeline(tiny_run: Path) -> EditPipeline:
    return EditPipeline.from_pretrained(tiny_run)


def picture() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 255, (50, 90, 3), np.uint8))


def test_python_interface(pipeline: EditPipeline) -> None:
    edits = pipeline(picture(), "make the red circle blue", cfg_scale=2.0, seed=0, num_samples=3)
    assert [image.size for image in edits] == [(90, 50)] * 3
    assert len({image.tobytes() for image in edits}) == 3
    again = pipeline(picture(), "make the red circle blue", cfg_scale=2.0, seed=0, num_samples=3)
    assert [a.tobytes() for a in edits] == [b.tobytes() for b in again]
    assert pipeline(picture(), "make the red circle blue", cfg_scale=2.0, seed=1)[0].tobytes() != edits[0].tobytes()


def test_sampling_mistakes_are_named(pipeline: EditPipeline) -> None:
    with pytest.raises(ConfigError, match="unknown key 'cfgscale'"):
        pipeline(picture(), "remove the star", cfgscale=2)
    with pytest.raises(ConfigError, match=r"cfg_scale=0\.2 must be at least 1"):
        pipeline(picture(), "remove the star", cfg_scale=0.2)
    for window in (0, -4, "wide"):
        with pytest.raises(ConfigError, match=f"window={window} (must be at least 1|is not one of auto)"):
            pipeline(picture(), "remove the star", window=window)
    with pytest.raises(ConfigError, match="is empty"):
        pipeline(picture(), "   ")
    with pytest.raises(ConfigError, match="a mask needs an image"):
        pipeline(None, "a star", mask=np.ones((64, 64), bool))
    with pytest.raises(ConfigError, match="num_samples=0 must be at least 1"):
        pipeline(picture(), "remove the star", num_samples=0)
    with pytest.raises(ConfigError, match="fit=crop is not one of restore, square"):
        pipeline(picture(), "remove the star", fit="crop")
    with pytest.raises(ConfigError, match=r"lists must be of one length, not empty; found .*'image': 2.*: 1"):
        pipeline([picture()] * 2, ["remove the star"])


def test_lists_are_the_single_calls(pipeline: EditPipeline) -> None:
    other = Image.fromarray(np.random.default_rng(1).integers(0, 255, (70, 70, 3), np.uint8))
    mask = np.zeros((70, 70), bool)
    mask[:30, :30] = True
    texts = ["remove the star", "add a red circle"]
    together = pipeline([picture(), np.asarray(other)], texts, mask=[None, mask], num_samples=2, output_type="np")
    alone = [
        *pipeline(picture(), texts[0], num_samples=2, output_type="np"),
        *pipeline(other, texts[1], mask=mask, num_samples=2, output_type="np"),
    ]
    assert [a.shape for a in together] == [(50, 90, 3)] * 2 + [(70, 70, 3)] * 2
    for one, two in zip(together, alone, strict=True):
        assert np.abs(one.astype(int) - two).max() <= 1
    (tensor, _) = pipeline([picture()] * 2, texts[0], output_type="pt")  # one instruction for both
    assert tensor.shape == (3, 50, 90) and tensor.min() >= -1 and tensor.max() > 0.9


def test_generators_seed_and_progress_counts(pipeline: EditPipeline) -> None:
    told: list[int] = []
    first = pipeline(picture(), "x y", generator=torch.Generator().manual_seed(3), num_samples=2, progress=told.append)
    again = pipeline(picture(), "x y", generator=torch.Generator().manual_seed(3), num_samples=2)
    other = pipeline(picture(), "x y", generator=torch.Generator().manual_seed(4), num_samples=2)
    assert sum(told) == 2 * 64 and len(told) > 1
    assert [a.tobytes() for a in first] == [a.tobytes() for a in again] != [a.tobytes() for a in other]

    def stop(count: int) -> None:
        raise InterruptedError

    with pytest.raises(InterruptedError):
        pipeline(picture(), "x y", progress=stop)
    assert pipeline(picture(), "x y", seed=1)[0].tobytes() == pipeline(picture(), "x y", seed=1)[0].tobytes()


def test_saved_pipelines_are_the_same(pipeline: EditPipeline, tmp_path: Path) -> None:
    pipeline.save_pretrained(tmp_path / "saved", model_card_kwargs={"results": "| success |", "repo_id": "me/nano"})
    assert sorted(file.name for file in (tmp_path / "saved").iterdir()) == [
        "README.md", "config.yaml", "model.safetensors", "tokenizer.safetensors",
    ]  # fmt: skip
    card = (tmp_path / "saved/README.md").read_text()
    assert "library_name: editar" in card and "| success |" in card and 'from_pretrained("me/nano")' in card
    loaded = EditPipeline.from_pretrained(tmp_path / "saved").to("cpu")
    assert loaded(picture(), "a b", seed=2)[0].tobytes() == pipeline(picture(), "a b", seed=2)[0].tobytes()


def test_a_hub_name_is_downloaded(tiny_run: Path, tmp_path: Path) -> None:
    """From the hub's cache, laid out as huggingface_hub does it; and one line without network."""
    snapshot = tmp_path / "models--me--nano" / "snapshots" / ("a" * 40)
    shutil.copytree(tiny_run, snapshot, ignore=shutil.ignore_patterns("checkpoints"))
    (tmp_path / "models--me--nano" / "refs").mkdir()
    (tmp_path / "models--me--nano" / "refs" / "main").write_text("a" * 40)
    code = (
        "import sys; from editar import EditPipeline\n"
        "try: print(EditPipeline.from_pretrained(sys.argv[1]).cfg.image_size)\n"
        "except Exception as error: print(type(error).__name__, error)"
    )
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(tmp_path)}
    for name, expected in (
        ("me/nano", "64\n"),
        ("me/other", "CheckpointError me/other: no folder here, and the hub did"),
    ):
        done = subprocess.run(
            [sys.executable, "-c", code, name], env=environment, cwd=ROOT, capture_output=True, text=True, check=False
        )
        assert done.stdout.startswith(expected) and len(done.stdout.splitlines()) == 1, done.stderr
    with pytest.raises(CheckpointError, match="nowhere: no such folder; give the folder"):
        EditPipeline.from_pretrained("nowhere")


def test_dropped_conditions_are_those_of_training(pipeline: EditPipeline) -> None:
    """None is the null table, for image, text and both: the engine's codes are the plain loop's."""
    source = np.array(picture().resize((64, 64)))
    cfg = override(pipeline.cfg.sampling, {"cfg_scale": 2.0}, "sampling")
    for image, text in ((None, "a red star"), (source, None), (None, None)):
        (drawn,) = pipeline.edit_arrays([image], [text], ["a"], cfg)
        absent = torch.tensor([image is None]), torch.tensor([text is None])
        codes = pipeline.encode(np.zeros_like(source)[None] if image is None else image[None])
        embedded = pipeline.text([text or "anything at all"])
        if text is None:  # the plain loop drops a text for its second branch only
            embedded = pipeline.gpt.cls_embedding.uncond_embedding[None, : embedded.shape[1]].clone()
        plain = generate(pipeline.gpt, codes, embedded, cfg, SampleSeeds(cfg.seed, ["a"]), absent[0])
        assert np.abs(drawn.astype(int) - to_uint8(pipeline.decode(plain))[0]).max() <= 1
        logits = pipeline.gpt(codes, pipeline.text([text or "x"]), plain, *absent).logits
        torch.testing.assert_close(logits, pipeline.gpt(codes, embedded, plain, absent[0]).logits)


def test_dropped_conditions_in_one_batch_with_others(pipeline: EditPipeline) -> None:
    sources, texts = [None, np.array(picture().resize((64, 64))), None], ["a red star", None, None]
    together = pipeline.edit_arrays(sources, texts, list("abc"))
    for i, id in enumerate("abc"):
        (alone,) = pipeline.edit_arrays(sources[i : i + 1], texts[i : i + 1], [id])
        assert np.abs(alone.astype(int) - together[i]).max() <= 1
    assert [image.size for image in pipeline()] == [(64, 64)]


def test_the_text_encoder_may_lie_elsewhere(tiny_run: Path) -> None:
    with pytest.raises(ConfigError, match="cannot load /elsewhere/flan-t5"):
        EditPipeline.from_pretrained(tiny_run, text_name="/elsewhere/flan-t5")


def test_long_instructions_are_cut_with_a_warning(pipeline: EditPipeline, capsys: pytest.CaptureFixture[str]) -> None:
    pipeline(picture(), "make the red circle blue " * 12)
    pipeline(picture(), "make the red circle blue " * 12)
    assert capsys.readouterr().err.count("has more than 24 tokens; the rest is ignored") == 1


def test_results_do_not_depend_on_the_batch_size(pipeline: EditPipeline) -> None:
    samples = [NanoWorld("heldout", 8)[i] for i in range(5)]
    arguments = [s.source for s in samples], [s.instruction for s in samples], [s.id for s in samples]
    pipeline.cfg.sampling.batch_size = 5
    whole = pipeline.edit_arrays(*arguments)
    pipeline.cfg.sampling.batch_size = 2
    parts = pipeline.edit_arrays(*arguments)
    for a, b in zip(whole, parts, strict=True):  # a rounding of the decoder may cross a truncation
        assert np.abs(a.astype(int) - b).max() <= 1


def test_a_bfloat16_gpt_edits_too(tiny_run: Path) -> None:
    """What a GPU does by default; text embeddings and GPT may come in different precisions."""
    half = EditPipeline.from_pretrained(tiny_run)
    half.gpt.to(torch.bfloat16)
    (result,) = half(picture(), "remove the red star", fit="square")
    assert result.size == (64, 64)
    assert EditPipeline.from_pretrained(tiny_run, dtype="auto").gpt.output.weight.dtype == torch.float32  # a CPU
    with pytest.raises(ConfigError, match="dtype=half is not one of float32, bfloat16, float16"):
        EditPipeline.from_pretrained(tiny_run, dtype="half")


def test_more_pictures_than_the_tokenizer_takes_at_once(pipeline: EditPipeline) -> None:
    pictures = [NanoWorld("heldout", 16)[i].source for i in range(11)]
    together = pipeline.decode(pipeline.encode(np.stack(pictures)))
    assert together.shape == (11, 3, 64, 64)
    alone = pipeline.decode(pipeline.encode(pictures[10][None]))
    torch.testing.assert_close(together[10:], alone, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ["config.yaml", "model.safetensors", "tokenizer.safetensors"])
def test_incomplete_checkpoints_are_named(tiny_run: Path, tmp_path: Path, name: str) -> None:
    folder = shutil.copytree(tiny_run, tmp_path / "run", ignore=shutil.ignore_patterns("checkpoints"))
    (folder / name).unlink()
    with pytest.raises(CheckpointError, match=f"{name} not found"):
        EditPipeline.from_pretrained(folder)


def test_damaged_and_unfit_checkpoints_are_named(tiny_run: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_run, tmp_path / "run", ignore=shutil.ignore_patterns("checkpoints"))
    config = (folder / "config.yaml").read_text()
    (folder / "config.yaml").write_text(config.replace("n_layer: 2", "n_layer: 3"))
    with pytest.raises(CheckpointError, match=r"missing layers\.2\."):
        EditPipeline.from_pretrained(folder)
    (folder / "config.yaml").write_text(config)
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match="not a readable safetensors file"):
        EditPipeline.from_pretrained(folder)


def edit_config(tiny_run: Path, folder: Path, *more: str) -> EditConfig:
    picture().save(folder / "photo.png")
    base = [f"image={folder / 'photo.png'}", "instruction=remove the star", f"checkpoint={tiny_run}"]
    return load_config(EditConfig, "edit", [*base, f"output={folder / 'out.png'}", *more])


def test_edit_writes_picture_and_comparison(tiny_run: Path, tmp_path: Path) -> None:
    files = edit(edit_config(tiny_run, tmp_path, "num_samples=2", "+sampling.cfg_scale=1.5", "+sampling.window=auto"))
    assert [file.name for file in files] == ["out_0.png", "out_1.png", "out_side_by_side.png"]
    assert Image.open(files[0]).size == (90, 50)
    assert Image.open(files[2]).size == (3 * 90 + 2 * 4, 50)
    squares = edit(edit_config(tiny_run, tmp_path, "fit=square", "region=10,0,40", "overwrite=true"))
    assert Image.open(squares[0]).size == (64, 64) and Image.open(squares[1]).size == (2 * 64 + 4, 64)
    with pytest.raises(ConfigError, match=r"photo\.png is read, and never replaced"):
        edit(edit_config(tiny_run, tmp_path, f"output={tmp_path / 'photo.png'}", "overwrite=true"))
    with pytest.raises(ConfigError, match="region=1,2 is not x,y,side"):
        edit_config(tiny_run, tmp_path, "region=1,2")
    with pytest.raises(ConfigError, match=r"exists; give another output=\.\.\. or overwrite=true"):
        edit(edit_config(tiny_run, tmp_path, "num_samples=2"))
    edit(edit_config(tiny_run, tmp_path, "num_samples=2", "overwrite=true"))


def test_edit_without_image(tiny_run: Path, tmp_path: Path) -> None:
    files = edit(edit_config(tiny_run, tmp_path, "image=null", "instruction=null"))
    assert [file.name for file in files] == ["out.png"]  # nothing to show beside it
    files = edit(edit_config(tiny_run, tmp_path, "image=null", "num_samples=2", "overwrite=true"))
    assert Image.open(files[2]).size == (2 * 64 + 4, 64)
    for wrong in (["mask=m.png"], ["task=canny"]):
        with pytest.raises(ConfigError, match=r"image is null, and .* needs one"):
            edit_config(tiny_run, tmp_path, "image=null", *wrong)
    with pytest.raises(ConfigError, match="with task=canny is a condition; leave it out"):
        edit_config(tiny_run, tmp_path, "task=canny", "mask=m.png")
    with pytest.raises(ConfigError, match="task=edit has none; give task as one of depth, canny, segmentation"):
        edit_config(tiny_run, tmp_path, "from_photo=true")


def test_edit_makes_conditions_of_photographs(tiny_run: Path, tmp_path: Path) -> None:
    canny = edit(edit_config(tiny_run, tmp_path, "task=canny", "from_photo=true"))[1]
    assert canny.name == "out_condition.png"
    assert set(np.unique(np.asarray(Image.open(canny)))) == {0, 255}
    for name, key, write in (
        ("depth", "depth", write_depth_network),
        ("segmentation", "segmenter", write_hub_segmenter),
    ):
        given = [f"task={name}", "from_photo=true", f"output={tmp_path / name}.png"]
        with pytest.raises(ConfigError, match=f"task={name} from a photograph: networks.{key} is null; or give the"):
            edit(edit_config(tiny_run, tmp_path, *given, f"networks.{key}=null"))
        made = edit(edit_config(tiny_run, tmp_path, *given, f"networks.{key}={write(tmp_path / key)}"))[1]
        values = np.asarray(Image.open(made))
        assert values.shape == (64, 64, 3) and values.std() > 0
        assert ((values == values[..., :1]).all() and np.ptp(values) > 200) == (name == "depth")


def test_sentences_are_those_of_the_checkpoints_training(tiny_run: Path) -> None:
    xl = load_config(TrainConfig, "train", ["experiment=editar_xl", "output_dir=x"])
    assert sentence("depth", xl) == "Given the depth image, generate an image following the description: {}"
    assert sentence("edit", xl) == "{}"
    xl.data.sources["cocostuff"].prompt = "from labels: {}"
    assert sentence("segmentation", xl) == "from labels: {}"
    assert sentence("canny", EditPipeline.from_pretrained(tiny_run).cfg) == "given the canny edges, generate {}"
    xl.data.sources.clear()
    assert sentence("canny", xl).startswith("Given the canny edge image, ")


@pytest.mark.parametrize(
    ("name", "message"),
    [("", r"is a folder; give the name of a picture, like .*edit\.png"), ("a.nonsense", r"use a name that ends in")],
)
def test_an_output_that_cannot_be_written_is_named_first(tmp_path: Path, name: str, message: str) -> None:
    """Before the checkpoint, which is not there, is looked for."""
    with pytest.raises(UserError, match=message):
        edit(edit_config(tmp_path / "no checkpoint", tmp_path, f"output={tmp_path / name}"))
    assert [path.name for path in tmp_path.iterdir()] == ["photo.png"]


def test_edit_entry_names_a_bad_image(tiny_run: Path, tmp_path: Path) -> None:
    (tmp_path / "page.png").write_text("<html>")
    done = run_module(
        "editar.edit",
        f"image={tmp_path / 'page.png'}",
        "instruction=x",
        f"checkpoint={tiny_run}",
        f"output={tmp_path / 'o.png'}",
    )
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 1
    assert "page.png: not a readable image" in done.stderr
