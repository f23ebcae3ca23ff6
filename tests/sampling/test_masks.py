"""Mask edits, batches and samples through the pipeline and `editar.edit`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from editar.config import EditConfig, GPTConfig
from editar.edit import edit
from editar.errors import ConfigError, out_of_memory
from editar.images import batch_to_tensor
from editar.runtime.entry import load_config
from editar.sampling.batching import automatic_batch, in_batches, result_bytes
from editar.sampling.masks import crop_mask, known_codes_outside, load_mask
from editar.sampling.pipeline import EditPipeline


@pytest.fixture(scope="module")
def pipeline(tiny_run: Path) -> EditPipeline:
    return EditPipeline.from_pretrained(tiny_run)


def picture(width: int = 64, height: int = 64) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 255, (height, width, 3), np.uint8))


def rectangle(width: int = 64, height: int = 64) -> np.ndarray:
    mask = np.zeros((height, width), bool)
    mask[height // 4 : height // 2, width // 4 : width // 2] = True
    return mask


def test_codes_outside_the_mask_are_the_sources(pipeline: EditPipeline) -> None:
    source = np.asarray(picture())
    codes = pipeline.tokenizer.encode(batch_to_tensor(source[None]))
    known_codes = known_codes_outside(codes, [rectangle()], dilate=0)
    assert (known_codes < 0).sum() == 4  # 16 x 16 pixels are 2 x 2 codes of 8 pixels
    edited = pipeline.edit_codes(codes, ["remove the star"], ["a"], pipeline.cfg.sampling, known_codes)
    outside = known_codes >= 0
    assert torch.equal(edited[outside], codes[outside])
    assert not torch.equal(edited, codes)


def test_a_mask_grows_by_codes_and_touches_generously() -> None:
    codes = torch.arange(64)[None]
    mask = np.zeros((64, 64), bool)
    mask[31, 31] = True  # one pixel in code (3, 3)
    for dilate, side in ((0, 1), (1, 3), (2, 5)):
        free = known_codes_outside(codes, [mask], dilate)[0].view(8, 8) < 0
        assert free.sum() == side**2
        assert free[3 - dilate : 4 + dilate, 3 - dilate : 4 + dilate].all()


def test_a_mask_is_cropped_as_its_picture() -> None:
    """A wide picture loses its sides, a tall one top and bottom; the mask must lose the same."""
    mask = np.zeros((50, 100), bool)
    mask[:, 25:50] = True  # after the crop to the middle 50 columns: the left half
    for given in (mask, Image.fromarray(mask), mask.astype(np.uint8) * 255):
        small = crop_mask(load_mask(given, (100, 50), 64), 64, (25, 0, 75, 50))
        assert small.shape == (64, 64)
        assert small[:, :32].all() and not small[:, 33:].any()


def test_unfit_masks_are_named(pipeline: EditPipeline) -> None:
    with pytest.raises(ConfigError, match="the mask is 30x20, the picture 64x64; they must match"):
        pipeline(picture(), "remove the star", mask=np.ones((20, 30), bool))
    with pytest.raises(ConfigError, match="the mask is empty"):
        pipeline(picture(), "remove the star", mask=np.zeros((64, 64), bool))
    with pytest.raises(ConfigError, match=r"a mask is \(height, width\), found \(64, 64, 3\)"):
        pipeline(picture(), "remove the star", mask=np.zeros((64, 64, 3), np.uint8))


def test_samples_are_those_of_separate_calls(pipeline: EditPipeline) -> None:
    """The shared prefix and the cut into batches change nothing."""
    source = np.asarray(picture())
    arguments = [source], ["remove the star"], ["a", "b", "c"]
    together = pipeline.edit_arrays(*arguments, samples=3)
    small = replace(pipeline.cfg.sampling, batch_size=2)
    cut = pipeline.edit_arrays(*arguments, small, samples=3)
    alone = [pipeline.edit_arrays([source], ["remove the star"], [id])[0] for id in "abc"]
    for one, two, three in zip(together, cut, alone, strict=True):  # rounding may cross a truncation
        assert np.abs(one.astype(int) - two).max() <= 1
        assert np.abs(one.astype(int) - three).max() <= 1
    assert np.abs(together[0].astype(int) - together[1]).max() > 1


def test_ids_belong_to_results(pipeline: EditPipeline) -> None:
    with pytest.raises(ConfigError, match="1 pictures of 3 samples need as many ids, found 1"):
        pipeline.edit_arrays([np.asarray(picture())], ["remove the star"], ["a"], samples=3)


def test_edit_with_a_mask_reports_its_cost(tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture(90, 60).save(tmp_path / "photo.png")
    Image.fromarray(rectangle(90, 60)).save(tmp_path / "mask.png")
    overrides = [f"image={tmp_path / 'photo.png'}", f"mask={tmp_path / 'mask.png'}", "instruction=remove the star"]
    files = edit(
        load_config(
            EditConfig, "edit", [*overrides, f"checkpoint={tiny_run}", f"output={tmp_path / 'o.png'}", "verbose=true"]
        )
    )
    assert Image.open(files[0]).size == (90, 60)
    assert files[0].is_file()
    told = capsys.readouterr().err
    assert "of which a square was edited at 64x64" in told
    assert "64/64" in told  # the progress bar ends on all tokens
    assert "passes an image" in told and "of the copy bandwidth" in told


def test_automatic_batches_fill_the_memory(pipeline: EditPipeline) -> None:
    paper = GPTConfig(vocab_size=16384, grid=32, text_tokens=120, text_dim=2048, null_text_rows=120)
    needed = result_bytes(paper, 2, branches=2)
    assert 0.6e9 < needed < 1.5e9  # keys and values alone are 0.61 GB
    assert result_bytes(paper, 2, branches=1) < needed
    place = torch.device("cpu")
    assert 1 <= automatic_batch(paper, place, torch.float32, 2) <= 16
    # Buffers of the call before count as free, or a second call would take a smaller batch.
    assert automatic_batch(paper, place, torch.float32, 2, held=10**12) == 16
    automatic = replace(pipeline.cfg.sampling, batch_size=0)
    assert len(pipeline.edit_arrays([np.asarray(picture())] * 2, ["x y"] * 2, ["a", "b"], automatic)) == 2


def test_out_of_memory_halves_the_batch_and_goes_on(capsys: pytest.CaptureFixture[str]) -> None:
    tried, recovered = [], []

    def work(part: slice) -> list[int]:
        tried.append(part.stop - part.start)
        if tried[-1] > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return list(range(part.start, part.stop))

    results = [i for batch in in_batches(10, 8, work, lambda: recovered.append(1)) for i in batch]
    assert results == list(range(10))
    assert tried == [8, 4, 2, 2, 2, 2, 2]
    assert len(recovered) == 2
    assert capsys.readouterr().err.count("going on with a batch of") == 2


@pytest.mark.parametrize(
    "text",
    [
        "CUDA error: out of memory",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "[enforce fail at alloc_cpu.cpp:114] . DefaultCPUAllocator: can't allocate memory: you tried ...",
        "could not create a primitive",
    ],
)
def test_every_librarys_words_for_it_are_known(text: str) -> None:
    assert out_of_memory(RuntimeError(text))
    for other in ("CUDA error: an illegal memory access was encountered", "could not create a primitive descriptor"):
        assert not out_of_memory(RuntimeError(other))


def test_other_errors_and_too_little_memory_for_one_stand() -> None:
    def fail(part: slice) -> None:
        raise RuntimeError("shapes differ")

    with pytest.raises(RuntimeError, match="shapes differ"):
        list(in_batches(4, 4, fail, lambda: None))

    def exhausted(part: slice) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(torch.OutOfMemoryError):
        list(in_batches(4, 4, exhausted, lambda: None))
