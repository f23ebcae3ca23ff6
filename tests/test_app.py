"""The page to edit in a browser: what its buttons do, and the whole of it in a headless Chromium."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import gradio
import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Page, expect

from editar.app import TEXT_ALONE, Desk, examples, for_mask, serve, strokes_of
from editar.config import AppConfig
from editar.errors import ConfigError
from editar.runtime.entry import load_config
from editar.sampling.pipeline import EditPipeline
from tests.helpers.browser import chromium


def picture(width: int = 90, height: int = 60) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 255, (height, width, 3), np.uint8))


@pytest.fixture(scope="module")
def desk(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Desk:
    folder = tmp_path_factory.mktemp("app")
    picture().save(folder / "photo.png")
    (folder / "page.png").write_text("<html>")
    cfg = load_config(AppConfig, "app", [f"checkpoint={tiny_run}", f"output_dir={folder}"])
    return Desk(cfg, EditPipeline.from_pretrained(tiny_run))


def given(desk: Desk, **changes: Any) -> list[Any]:
    values = {
        "file": f"{desk.cfg.output_dir}/photo.png", "task": "edit", "from_photo": False,
        "instruction": "remove the star", "drawn": None, "cfg_scale": 1.5, "seed": 0.0, "samples": 2.0,
    }  # fmt: skip
    return list((values | changes).values())


def test_results_are_the_pipelines_beside_the_source(desk: Desk) -> None:
    *before, (shown, status) = desk.edits(*given(desk))
    assert [caption for _, caption in shown] == ["source", "result 1", "result 2"]
    expected = desk.pipeline(picture(), "remove the star", cfg_scale=1.5, seed=0, num_samples=2)
    assert [image.tobytes() for image, _ in shown] == [image.tobytes() for image in (picture(), *expected)]
    assert status == "128 codes accepted, seed 0"
    assert before and all(not shown and "of 128 codes accepted" in told for shown, told in before)


def test_tasks_and_masks(desk: Desk) -> None:
    *_, (shown, _) = desk.edits(*given(desk, task="canny", from_photo=True, samples=1.0))
    assert set(np.unique(np.asarray(shown[0][0]))) == {0, 255} and shown[1][0].size == (64, 64)
    *_, (shown, _) = desk.edits(*given(desk, task=TEXT_ALONE, file=None, samples=1.0))
    assert [caption for _, caption in shown] == ["result"]
    layer = Image.new("RGBA", (45, 30))
    layer.paste((255, 255, 255, 255), (20, 10, 25, 15))
    mask = strokes_of({"layers": [layer]}, (90, 60))
    assert mask is not None and mask.shape == (60, 90) and mask[20:30, 40:50].all() and mask.sum() == 100
    *_, (shown, _) = desk.edits(*given(desk, drawn={"layers": [layer]}, samples=1.0))
    assert np.array_equal(np.asarray(shown[1][0])[:, :10], np.asarray(picture())[:, :10])
    assert strokes_of({"layers": [Image.new("RGBA", (9, 9))]}, (90, 60)) is None and strokes_of(None, (9, 9)) is None


def test_mistakes_are_messages(desk: Desk) -> None:
    folder = desk.cfg.output_dir
    for changes, message in (
        ({"file": None}, "upload a picture first"),
        ({"instruction": "  "}, "say in words what to change"),
        ({"instruction": None}, "say in words what to change"),
        ({"seed": None}, "seed: give a number"),
        ({"task": ["edit"]}, "task: choose one of edit, "),
        ({"file": f"{folder}/page.png"}, "page.png: not a readable image"),
        ({"task": "depth", "from_photo": True}, "task=depth from a photograph"),
        ({"cfg_scale": 0.5}, "cfg_scale=0.5 must be at least 1"),
    ):
        with pytest.raises(gradio.Error) as told:
            list(desk.edits(*given(desk, **changes)))
        assert message in told.value.message and "Traceback" not in told.value.message
    assert for_mask(f"{folder}/page.png") is None and for_mask(None) is None


def test_closing_an_edit_ends_it(desk: Desk) -> None:
    """What the stop button and a closed window do: the next edit need not wait."""
    edits = desk.edits(*given(desk, samples=8.0))
    next(edits)
    edits.close()
    *_, (shown, _) = desk.edits(*given(desk, samples=1.0))
    assert len(shown) == 2


def test_examples_are_files_that_can_be_edited(desk: Desk, tmp_path: Path) -> None:
    rows = examples(desk.pipeline, tmp_path)
    assert len(rows) == 5 and all(Image.open(file).size == (64, 64) and words for file, words in rows)


def test_a_port_in_use_is_named(desk: Desk) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        cfg = load_config(
            AppConfig, "app", [f"checkpoint={desk.cfg.checkpoint}", f"output_dir={desk.cfg.output_dir}", f"port={port}"]
        )
        with pytest.raises(ConfigError, match=r"host=no\.such\.invalid: no address of this machine"):
            serve(replace(cfg, host="no.such.invalid"), block=False)
        with pytest.raises(ConfigError, match=f"port={port} of host=127.0.0.1"):
            serve(cfg, block=False)


# --- in a browser ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def page(desk: Desk) -> Iterator[gradio.Blocks]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    settings = [
        f"checkpoint={desk.cfg.checkpoint}",
        f"output_dir={desk.cfg.output_dir}",
        f"port={port}",
        "largest_mb=1",
    ]
    served = serve(load_config(AppConfig, "app", settings), block=False)
    yield served
    served.close()


def visit(browser: Any, page: gradio.Blocks, file: Path | None = None) -> Page:
    """A window with the page, a picture and an instruction."""
    window = browser.new_page()
    window.set_default_timeout(60_000)
    window.goto(page.local_url)
    window.get_by_role("button", name="edit", exact=True).wait_for()
    window.get_by_label("instruction").fill("remove the star")
    if file is not None:
        window.locator("input[type=file]").first.set_input_files(file)
        window.get_by_label("Remove Image").or_(window.get_by_label("Clear")).first.wait_for()
    return window


def press(window: Page, name: str) -> None:
    window.get_by_role("button", name=name, exact=True).click()


@pytest.mark.slow
def test_upload_edit_and_mask(page: gradio.Blocks, desk: Desk) -> None:
    with chromium() as browser:
        window = visit(browser, page, Path(desk.cfg.output_dir) / "photo.png")
        press(window, "edit")
        window.get_by_text("64 codes accepted, seed").wait_for()
        expect(window.locator(".grid-container img, .gallery-item img")).to_have_count(2)
        window.get_by_text("mask: paint what may change").click()
        canvas = window.locator("canvas").first
        canvas.wait_for()
        time.sleep(2)  # the editor fits the picture in without telling
        canvas.scroll_into_view_if_needed()
        box = canvas.bounding_box()
        assert box is not None
        x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
        window.mouse.move(x, y)
        window.mouse.down()
        for step in range(5):
            window.mouse.move(x + 4 * step, y)
        window.mouse.up()
        time.sleep(1)
        press(window, "edit")
        window.get_by_text("0 of 64 codes accepted").or_(window.get_by_text("64 codes accepted, seed")).first.wait_for()
        time.sleep(3)
        source, result = (
            np.asarray(Image.open(file).convert("RGB")).astype(int)
            for file in sorted(Path(desk.cfg.output_dir).rglob("image.png"), key=lambda file: file.stat().st_mtime)[-2:]
        )
        changed = (source != result).any(-1)
        assert changed.any() and not changed[:, :9].any()  # the stroke is in the middle


@pytest.mark.slow
def test_wrong_and_large_files_are_messages(page: gradio.Blocks, desk: Desk, tmp_path: Path) -> None:
    with chromium() as browser:
        window = visit(browser, page, Path(desk.cfg.output_dir) / "page.png")
        press(window, "edit")
        window.get_by_text("page.png: not a readable image").first.wait_for()
        assert "Traceback" not in window.content()
        large = tmp_path / "large.png"
        large.write_bytes(bytes(3 << 20))
        window = visit(browser, page)
        window.locator("input[type=file]").first.set_input_files(large)
        window.get_by_text("maximum allowed size").first.wait_for()


@pytest.mark.slow
def test_two_people_at_once(page: gradio.Blocks, desk: Desk) -> None:
    with chromium() as browser:
        windows = [visit(browser.new_context(), page, Path(desk.cfg.output_dir) / "photo.png") for _ in range(2)]
        for window in windows:
            press(window, "edit")
        for window in windows:
            window.get_by_text("64 codes accepted, seed").wait_for()
            expect(window.locator(".grid-container img, .gallery-item img")).to_have_count(2)
            assert "Traceback" not in window.content()
