"""Several source images from the data to the scores, through the real commands."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from editar.config import EditConfig, EvalConfig
from editar.data.codes import CodesCache
from editar.data.encode import open_cache
from editar.data.nano.pairs import NanoPairs
from editar.data.sources import open_sources
from editar.edit import edit
from editar.errors import ConfigError
from editar.evaluation.run import evaluate
from editar.runtime.distributed import Ranks
from editar.runtime.entry import load_config
from editar.runtime.files import load_weights, save_weights
from editar.sampling.pipeline import EditPipeline
from editar.tables.scores import load_evaluation
from editar.training.build import build_run
from editar.training.encoders import build_tokenizer
from editar.training.evaluate import own_batches
from editar.training.loop import train
from editar.weights.load import vq_checksum
from tests.helpers.tiny import ROOT, TINY_GPT, TINY_TOKENIZER, train_config


@pytest.fixture(scope="module")
def pairs_run(tiny_tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A GPT of four steps on edits with one and with two pictures; its weights are then made as large as trained ones,
    so that every picture matters."""
    folder = tmp_path_factory.mktemp("pairs") / "run"
    settings = ["data=nano_pairs", "drop.each_image=0.2", "steps=4", "eval_every=4"]
    tiny = [*settings, *TINY_TOKENIZER, *TINY_GPT]
    train(train_config(f"output_dir={folder}", f"tokenizer.weights={tiny_tokenizer}", *tiny))
    weights, random = load_weights(folder / "model.safetensors"), torch.Generator().manual_seed(0)
    large = {k: torch.randn(v.shape, generator=random) * 0.3 if v.ndim > 1 else v for k, v in weights.items()}
    save_weights(large, folder / "model.safetensors", {"step": "4"})
    return folder


@pytest.fixture(scope="module")
def pipeline(pairs_run: Path) -> EditPipeline:
    return EditPipeline.from_pretrained(pairs_run)


def test_cached_rows_hold_the_codes_of_their_pictures(pairs_run: Path, pipeline: EditPipeline) -> None:

    sources = open_sources(pipeline.cfg.data)
    checksum = vq_checksum(build_tokenizer(pipeline.cfg, pipeline.device).state_dict())
    cache: CodesCache = open_cache(pipeline.cfg, sources["nano_pairs"], checksum)
    sample = NanoPairs("train", 24)[3]
    codes = pipeline.encode(np.stack([sample.source, *sample.more])).flatten()
    assert (cache[3].source == codes.numpy()).mean() > 0.99 and len(cache[3].source) == 2 * len(cache[3].target)


def test_rows_with_one_picture_lack_the_second(pipeline: EditPipeline, tiny_tokenizer: Path, tmp_path: Path) -> None:
    """From codes and from pixels: the flag says which image is missing, whatever fills its place."""

    for cache in ([], ["data.cache=null", "data.build_cache=false", "data.cache_features=false"]):
        settings = ["data=nano_pairs", f"output_dir={tmp_path / str(len(cache))}", *cache]
        cfg = train_config(f"tokenizer.weights={tiny_tokenizer}", *settings, *TINY_TOKENIZER, *TINY_GPT)
        run = build_run(cfg, Ranks(0, 1, pipeline.device), tmp_path / str(len(cache)))
        for batch, _ in own_batches(run):
            assert batch.absent is not None
            for task, absent in zip(batch.tasks, batch.absent.tolist(), strict=True):
                assert absent == [False, task not in NanoPairs.tasks]
            assert run.encoders.codes(batch.source).shape == (len(batch), 2 * 64)


def test_the_benchmark_gives_wrong_second_pictures(pairs_run: Path, tmp_path: Path) -> None:
    pictures = {}
    for second in ("given", "none", "other", "swapped"):
        given = [f"checkpoint={pairs_run}", f"output_dir={tmp_path / second}", "samples=20", f"second={second}"]
        evaluate(load_config(EvalConfig, "eval", ["benchmark=nano_pairs", *given]))
        found = load_evaluation(tmp_path / second)
        assert found.protocol == "nano-pairs-v1" and len(found.methods[0].rows) == 20
        assert set(found.methods[0].groups["task"]) == set(NanoPairs.tasks)
        pictures[second] = np.asarray(Image.open(tmp_path / second / "images" / "heldout-000001.png"))
    assert not all(np.array_equal(pictures["given"], pictures[second]) for second in ("none", "other", "swapped"))
    few = [f"checkpoint={pairs_run}", f"output_dir={tmp_path / 'few'}", "samples=3", "second=other"]
    with pytest.raises(ConfigError, match=r"samples=3: no other .* take more samples"):
        evaluate(load_config(EvalConfig, "eval", ["benchmark=nano_pairs", *few]))


def test_the_reference_reads_its_second_picture(tmp_path: Path) -> None:
    """docs/training.md has the table for 480 edits; here are the first 30."""
    found = {}
    for second in ("given", "other"):
        given = [f"checkpoint={ROOT / 'reference/nano_pairs'}", f"output_dir={tmp_path / second}", "samples=30"]
        evaluate(load_config(EvalConfig, "eval", ["benchmark=nano_pairs", "data_seed=2", f"second={second}", *given]))
        found[second] = load_evaluation(tmp_path / second)
    right, wrong = found["given"], found["other"]
    by_task = right.means_by(right.methods[0], "task")
    assert all(by_task[task]["success"].mean >= 40 for task in NanoPairs.tasks), by_task
    assert wrong.means(wrong.methods[0])["success"].mean <= 5


def test_editing_with_two_pictures(pairs_run: Path, pipeline: EditPipeline, tmp_path: Path) -> None:
    sample = NanoPairs("heldout", 3)[0]
    for name, picture in (("a", sample.source), ("b", sample.more[0])):
        Image.fromarray(picture).save(tmp_path / f"{name}.png")
    base = ["instruction=add this at the top", f"checkpoint={pairs_run}"]
    given = [*base, f"images=[{tmp_path / 'a.png'},{tmp_path / 'b.png'}]", f"output={tmp_path / 'o.png'}"]
    files = edit(load_config(EditConfig, "edit", given))
    (expected,) = pipeline(sample.source, "add this at the top", references=[sample.more[0]], output_type="np")
    assert np.abs(np.asarray(Image.open(files[0])).astype(int) - expected).max() <= 1
    (one,) = pipeline(sample.source, "add this at the top", output_type="np")  # the second is missing, not blank
    (blank,) = pipeline(sample.source, "add this at the top", references=[np.zeros_like(one)], output_type="np")
    assert not np.array_equal(one, blank)
    mask = np.zeros((64, 64), bool)
    mask[:16, :16] = True
    (masked,) = pipeline(
        sample.source, "add this", references=[sample.more[0]], mask=mask, mask_dilate=0, output_type="np"
    )
    assert np.array_equal(masked[32:], sample.source[32:])


def test_too_many_pictures_are_named(tiny_run: Path, pipeline: EditPipeline, tmp_path: Path) -> None:
    picture = NanoPairs("heldout", 1)[0].source
    with pytest.raises(ConfigError, match=r"3 pictures for one edit, the model reads 2 \(its data\.images\)"):
        pipeline(picture, "add this", references=[picture] * 2)
    with pytest.raises(ConfigError, match="2 pictures for one edit, the model reads 1"):
        EditPipeline.from_pretrained(tiny_run)(picture, "add this", references=[picture])
    with pytest.raises(ConfigError, match="references need an image"):
        pipeline(None, "add this", references=[picture])
    with pytest.raises(ConfigError, match=r"images=\[a\.png,b\.png\] stands instead of image"):
        load_config(EditConfig, "edit", ["images=[a.png,b.png]", "image=c.png", "instruction=x", "checkpoint=c"])
    with pytest.raises(ConfigError, match=r"edits with two pictures; give data\.images=2"):
        train_config("data=nano_pairs", "data.images=1")
    with pytest.raises(ConfigError, match=r"drop\.each_image is for data\.images=2"):
        train_config("drop.each_image=0.1")


def test_own_pairs_of_two_pictures_are_scored(pairs_run: Path, tmp_path: Path) -> None:
    sample = NanoPairs("heldout", 1)[0]
    for name, picture in (("a", sample.source), ("b", sample.more[0]), ("c", sample.target)):
        Image.fromarray(picture).save(tmp_path / f"{name}.png")
    row = {"source": "a.png", "references": ["b.png"], "target": "c.png", "instruction": sample.instruction}
    (tmp_path / "pairs.jsonl").write_text(json.dumps(row))
    given = [f"root={tmp_path}", f"checkpoint={pairs_run}", f"output_dir={tmp_path / 'out'}", "pairs=all"]
    evaluate(load_config(EvalConfig, "eval", ["benchmark=folder", *given]))
    made = np.asarray(Image.open(tmp_path / "out" / "images" / "0.png")).astype(int)
    (expected,) = EditPipeline.from_pretrained(pairs_run).edit_arrays(
        [np.stack([sample.source, *sample.more])], [sample.instruction], ["0"]
    )
    assert np.abs(made - expected).max() <= 1
