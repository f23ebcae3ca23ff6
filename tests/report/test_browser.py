"""The report's page in a real browser: narrow windows, and filters in the address."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from editar.config import EvalConfig
from editar.data.nano.world import NanoWorld
from editar.evaluation.run import evaluate
from editar.images import save_image
from editar.report.demo_page import task_bars, write_demo_page
from editar.report.plots import picture_uri
from editar.runtime.entry import load_config
from scripts import report
from tests.helpers.browser import chromium
from tests.helpers.pie import GOLDEN, RESULTS, config

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A page with two methods on six pictures of PIE-Bench."""
    folder = tmp_path_factory.mktemp("page")
    both = f"results={{tiny: {RESULTS}, untouched: {GOLDEN / 'data' / 'annotation_images'}}}"
    evaluate(config(folder / "scored", "stage=score", both))
    report.main([str(folder / "scored"), "--out", str(folder / "report.html")])
    return f"file://{folder / 'report.html'}"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as opened:
        yield opened


def texts(page: Any) -> list[str]:
    return [text.partition(" · ")[0] for text in page.locator(".entry p small").all_inner_texts()]


def write_demo(folder: Path) -> str:
    """The demo's page, with the sources as edits."""
    folder.mkdir()
    samples = [NanoWorld("heldout", 8)[i] for i in range(8)]
    for sample in samples:
        save_image(sample.source, folder / "untouched" / f"{sample.id}.png")
    given = ["samples=8", f"results={folder / 'untouched'}", f"output_dir={folder / 'scored'}", "method=untouched"]
    evaluation = evaluate(load_config(EvalConfig, "eval", given))
    assert evaluation is not None
    pictures = [sample.source for sample in samples]
    strip, plots = picture_uri(np.zeros((64, 800, 3), np.uint8)), [task_bars(evaluation, ("untouched",))]
    outputs, drawn = {"untouched": pictures}, [("a red circle", pictures[0])] * 3
    write_demo_page(folder / "report.html", "Demo", "words " * 40, evaluation, samples, outputs, drawn, strip, plots)
    return f"file://{folder / 'report.html'}"


CUT = """(all) => all.filter((one) => one.getBoundingClientRect().right > innerWidth || (
    one.className === "wide" && one.scrollWidth > one.clientWidth)).map((one) => one.outerHTML.slice(0, 200))"""


@pytest.mark.parametrize("name", ["comparison", "demo"])
def test_nothing_is_cut_off_in_a_narrow_window(browser: Any, address: str, tmp_path: Path, name: str) -> None:
    page = browser.new_page(viewport={"width": 400, "height": 800})
    page.goto(address if name == "comparison" else write_demo(tmp_path / "demo"))
    page.evaluate("document.querySelectorAll('details').forEach((part) => { part.open = true; })")
    assert page.evaluate("document.documentElement.scrollWidth") <= 400
    assert page.locator(".wide").count() >= 2 and page.locator("table").count() == page.locator(".wide > table").count()
    assert page.eval_on_selector_all("body *:not(.frame *)", CUT) == []
    cell = page.locator("td[data-label]").last
    label = "(cell) => getComputedStyle(cell, '::before').content"
    assert cell.evaluate(label) == f'"{cell.get_attribute("data-label")}"'
    page.set_viewport_size({"width": 1200, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") <= 1200 and cell.evaluate(label) == "none"
    page.close()


def test_filters_are_kept_in_the_address(browser: Any, address: str) -> None:
    page = browser.new_page()
    page.goto(address)
    everything = texts(page)
    assert len(everything) == 6 and "#" not in page.url
    page.fill("input.search", "cat")
    page.select_option(".controls label:has-text('sort by') select", label="Background PSNR, untouched")
    page.select_option(".controls label:not(:has-text(' by')) select >> nth=-1", label="worst first")
    found = texts(page)
    assert 0 < len(found) < 6
    copy = browser.new_page()
    copy.goto(page.url)
    assert texts(copy) == found and copy.input_value("input.search") == "cat"
    copy.fill("input.search", "")
    assert len(texts(copy)) == 6 and "search" not in copy.url
    copy.goto(f"{address}#pie_bench.edit+type=add+object")
    assert len(texts(copy)) == 1 and copy.input_value("input.search") == ""
    copy.goto(f"{address}#pie_bench.edit+type=no+such&other=1")  # nonsense is no error
    assert texts(copy) == everything
    for opened in (page, copy):
        opened.close()
