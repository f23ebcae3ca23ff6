"""Own pairs through `editar.eval`, from pairs.jsonl to the report's page."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.models import squeezenet1_1

from editar import eval as eval_entry
from editar.config import EvalConfig, SourceConfig, TrainConfig, from_yaml, to_yaml
from editar.data.nano.world import NanoWorld
from editar.errors import BenchmarkError, ConfigError, DataError
from editar.evaluation.folder.run import OwnPairs
from editar.evaluation.run import evaluate
from editar.runtime.entry import load_config
from tests.helpers.page import Page
from tests.helpers.tiny_networks import write_clip


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three edits of the nano world; the second is wider than high."""
    folder, lines = tmp_path_factory.mktemp("pairs"), []
    for index in range(3):
        sample = NanoWorld("train", 3)[index]
        for name, picture in (("a", sample.source), ("b", sample.target)):
            wide = np.pad(picture, ((0, 0), (16, 16), (0, 0)), "edge") if index == 1 else picture
            Image.fromarray(wide).save(folder / f"{index}{name}.png")
        lines.append({"source": f"{index}a.png", "target": f"{index}b.png", "instruction": sample.instruction})
    (folder / "pairs.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def config(root: Path, out: Path, *more: str) -> EvalConfig:
    return load_config(EvalConfig, "eval", ["benchmark=folder", f"root={root}", f"output_dir={out}", *more])


@pytest.fixture(scope="module")
def networks(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Overrides with random weights in the files of the real ones."""
    folder = tmp_path_factory.mktemp("networks")
    torch.save(squeezenet1_1(weights=None).state_dict(), folder / "squeeze.pth")
    return [f"networks.lpips={folder / 'squeeze.pth'}", f"networks.clip={write_clip(folder / 'clip')}"]


def test_a_checkpoint_is_scored_with_the_networks_that_are_there(
    pairs: Path, tiny_run: Path, networks: list[str], tmp_path: Path
) -> None:
    out, given = tmp_path / "out", [f"checkpoint={tiny_run}"]
    evaluation = evaluate(config(pairs, out, *given))
    assert evaluation is not None and set(evaluation.missing) == {"lpips", "clip"}
    assert [column.name for column in evaluation.columns] == ["l1", "psnr", "ssim"]
    whole = evaluate(config(pairs, out, *given, *networks))
    assert whole is not None and list(whole.networks) == ["lpips", "clip"]
    means = whole.means(whole.methods[0])
    assert list(means) == ["l1", "psnr", "ssim", "lpips", "clip"]
    assert all(np.isfinite(mean.mean) for mean in means.values()) and means["lpips"].mean > 0
    assert means["l1"] == evaluation.means(evaluation.methods[0])["l1"]


def test_a_run_on_own_pairs_needs_no_folder_and_is_scored_on_what_it_held_out(
    pairs: Path, tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The command of a newcomer, whose run says which pairs it has not seen: table and page."""
    run, out = tmp_path / "run", tmp_path / "out"
    shutil.copytree(tiny_run, run)
    trained = (run / "config.yaml").read_text()
    cfg = from_yaml(TrainConfig, run / "config.yaml")
    cfg.data.sources = {"mine": SourceConfig("folder", path=str(pairs))}
    (run / "config.yaml").write_text(to_yaml(cfg))
    monkeypatch.setattr("sys.argv", ["eval", "benchmark=folder", f"checkpoint={run}", f"output_dir={out}"])
    eval_entry.main()
    printed = capsys.readouterr()
    assert "holds 3 pairs" in printed.err and "the last 1, which the training held out" in printed.err
    assert "PSNR (dB)" in printed.out and "report.html" in printed.out
    page = Page(out / "report.html")
    assert "Own pairs" in page.text
    [entry] = page.grids[0]["entries"]
    assert entry["id"] == "2" and entry["pictures"]["target"].startswith("data:")
    everything = config(pairs, tmp_path / "all", f"checkpoint={run}", "pairs=all")
    assert list(OwnPairs(everything).names()) == ["0", "1", "2"]
    (run / "config.yaml").write_text(trained)
    with pytest.raises(ConfigError, match=r"pairs=heldout: .*run was not trained on .*; give pairs=all"):
        evaluate(config(pairs, tmp_path / "no", f"checkpoint={run}", "pairs=heldout"))


def test_the_targets_themselves_are_perfect(pairs: Path, tmp_path: Path) -> None:
    results = tmp_path / "map.json"
    square = {0: pairs / "0b.png", 2: pairs / "2b.png", 1: tmp_path / "1.png"}
    Image.open(pairs / "1b.png").crop((16, 0, 80, 64)).save(square[1])  # the centre, as training crops it
    results.write_text(json.dumps({str(index): str(file) for index, file in square.items()}))
    evaluation = evaluate(config(pairs, tmp_path / "out", f"results={results}"))
    assert evaluation is not None
    for row in evaluation.methods[0].rows:
        assert (row["l1"], row["psnr"]) == (0, np.inf) and row["ssim"] == pytest.approx(100)


def test_what_does_not_fit_is_named(pairs: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"benchmark=folder needs root=FOLDER with pairs\.jsonl; .* trained on none"):
        evaluate(load_config(EvalConfig, "eval", ["benchmark=folder", f"output_dir={tmp_path}", "stage=score"]))
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "pairs.jsonl").write_text('{"source": "a.png", "target": "b.png", "instruction": "x"}\n')
    with pytest.raises(DataError, match=r"pairs.jsonl line 1: no picture .*a.png \(2 of 2 pictures are missing\)"):
        evaluate(config(broken, tmp_path / "out", "stage=score"))
    (broken / "pairs.jsonl").write_text("\n")
    with pytest.raises(BenchmarkError, match=r"pairs.jsonl: no pair in it"):
        evaluate(config(broken, tmp_path / "out", "stage=score"))
