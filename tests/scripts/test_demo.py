"""What `make demo` runs, at toy size, and the checkpoint that it edits with."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from editar.sampling.pipeline import EditPipeline
from editar.tables.scores import load_evaluation
from scripts import demo
from tests.helpers.tiny import ROOT


@pytest.mark.slow
def test_demo_writes_report_grid_and_metrics(tiny_run: Path, tiny_tokenizer: Path, tmp_path: Path) -> None:
    out = tmp_path / "demo"
    arguments = ["--samples", "8", "--gpt-steps", "4", "--pie-samples", "2"]
    demo.main(["--out", str(out), "--reference", str(tiny_run), "--tokenizer", str(tiny_tokenizer), *arguments])
    report = (out / "report.html").read_text()
    assert report.count("<img") >= 8 * 4
    assert "http" not in report.replace("http-equiv", "")  # nothing is fetched when it is opened
    assert Image.open(out / "grid.png").size[0] > 64 and Image.open(out / "learning.png").size[0] > 64
    evaluation, sweep = load_evaluation(out / "scores.json"), load_evaluation(out / "guidance_sweep.json")
    names = [method.method for method in evaluation.methods]
    assert names[:5] == ["reference", "shuffled text", "with the mask", "tokenizer alone", "from scratch"]
    assert evaluation.means(evaluation.methods[0])["success"].count == 8
    assert [method.method for method in sweep.methods] == [f"guidance {scale:g}" for scale in demo.SWEEP]
    scores = json.loads((out / "pie_bench" / "scores" / "scores.json").read_text())
    assert (scores["protocol"], scores["methods"]["ours"]["pictures"]) == ("pnpinversion-current", 2)


def test_the_reference_checkpoint_is_whole_and_small() -> None:
    """The first picture a newcomer sees: it must load, follow its instructions and stay below 15 MB."""
    folder = ROOT / "reference/nano"
    assert sum(file.stat().st_size for file in folder.iterdir()) < 15e6
    bench = demo.Bench(96)
    pipeline = EditPipeline.from_pretrained(folder)
    bench.edit(pipeline, "reference")
    bench.edit(pipeline, "shuffled", shuffle=True)
    edited, shuffled = (bench.evaluation.means(method)["success"].mean for method in bench.methods)
    assert edited > shuffled + 10
