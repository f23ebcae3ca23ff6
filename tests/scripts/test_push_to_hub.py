"""What goes to the hub: the folder and its card. The upload itself is huggingface_hub's."""

from __future__ import annotations

from pathlib import Path

from editar.data.nano.world import NanoWorld
from editar.evaluation.nano.scoring import in_memory, score_method
from editar.sampling.pipeline import EditPipeline
from editar.tables.scores import write_evaluation
from tests.helpers.tiny import run_module


def test_the_card_has_the_scores(tiny_run: Path, tmp_path: Path) -> None:
    world = NanoWorld("heldout", 8)
    plans = [world.plan(i) for i in range(8)]
    write_evaluation(in_memory([score_method("ours", plans, [world[i].target for i in range(8)])]), [], tmp_path)
    given = [str(tiny_run), "me/nano", "--scores", str(tmp_path / "scores.json"), "--save", str(tmp_path / "out")]
    done = run_module("scripts/push_to_hub.py", *given)
    assert done.returncode == 0, done.stderr
    card = (tmp_path / "out" / "README.md").read_text()
    assert 'from_pretrained("me/nano")' in card and "protocol `nano-v1`, 8 pictures" in card
    assert "Success (%)" in card and "100.0" in card and "pipeline_tag: image-to-image" in card
    assert EditPipeline.from_pretrained(tmp_path / "out").cfg.image_size == 64
    done = run_module("scripts/push_to_hub.py", *given)
    assert done.returncode == 2 and "out exists; give another --save FOLDER" in done.stderr
