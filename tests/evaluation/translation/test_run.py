"""Table 2 through `editar.eval`: make pictures, score them with networks of toy size, print the row."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from editar.config import EvalConfig
from editar.errors import BenchmarkError, DataError, ImageError
from editar.evaluation.nano.export import PROMPTS, export_translation
from editar.evaluation.registry import benchmark_class
from editar.evaluation.run import evaluate, score
from editar.evaluation.translation.networks import HubSegmenter
from editar.evaluation.translation.protocol import PROTOCOLS, depth_map, depth_rmse
from editar.evaluation.translation.run import Translation
from editar.generation.generate import generate_results
from editar.metrics.fid import FidStatistics
from editar.runtime.distributed import Ranks
from editar.runtime.entry import load_config
from editar.runtime.files import checksum
from editar.tables.scores import load_evaluation
from tests.helpers.tiny_networks import write_depth_network, write_hub_segmenter, write_inception

ROWS = 3


@pytest.fixture(scope="module")
def roots(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("sets")
    return {name: export_translation(name, folder / name, ROWS) for name in PROMPTS}


@pytest.fixture(scope="module")
def networks(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("networks")
    torch.manual_seed(0)
    return [
        f"networks.depth={write_depth_network(folder / 'depth')}",
        f"networks.segmenter={write_hub_segmenter(folder / 'segmenter')}",
        f"networks.inception={write_inception(folder)}",
    ]


def config(root: Path, out: Path, *overrides: str) -> EvalConfig:
    base = [f"output_dir={out}", f"benchmark={root.stem}", f"root={root}", "num_workers=0"]
    return load_config(EvalConfig, "eval", [*base, *overrides])


def opened(cfg: EvalConfig) -> Translation:
    benchmark = benchmark_class(cfg.benchmark)(cfg)
    assert isinstance(benchmark, Translation)
    return benchmark


def photographs(root: Path, out: Path, protocol: str = "editar") -> Path:
    """The real pictures as somebody's results: the best there can be."""
    cases = opened(config(root, out, "stage=score", f"protocol={protocol}"))
    for group in cases.groups():
        for index, name in enumerate(group):
            (out / name).parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(cases.case(index).image).save(out / f"{name}.png")
    return out


def test_edges_of_the_photographs_themselves_are_perfect(
    roots: dict[str, Path], networks: list[str], tmp_path: Path
) -> None:
    results = photographs(roots["canny"], tmp_path / "photos")
    options = ["stage=score", f"results={results}", "method=photographs", *networks]
    evaluate(config(roots["canny"], tmp_path / "out", *options))
    scores = load_evaluation(tmp_path / "out")
    means = scores.means(scores.methods[0])
    assert means["canny_ms_ssim"].mean == pytest.approx(100)
    assert means["canny_f1"].mean == pytest.approx(100)
    assert means["canny_fid"].mean == pytest.approx(0, abs=1e-3)
    assert np.isnan(means["canny_fid"].low)  # one number of all pictures has no interval
    assert FidStatistics.load(roots["canny"] / "fid_canny_crop_3.npz").count == ROWS
    assert scores.methods[0].why_not == [
        "3 prompts instead of 5000",
        "pictures of canny_eval, editar takes those of depth_eval",
        "canny scored on 8-bit pictures, the paper's on the output before rounding",
    ]
    text = (tmp_path / "out" / "table2.txt").read_text()
    assert "photographs *" in text and "EditAR without distillation" not in text
    thumbnail = Path(scores.methods[0].rows[0]["source"])
    assert Image.open(thumbnail).size == (192, 192)
    drawn = thumbnail.read_bytes()
    Image.new("RGB", (192, 192)).save(thumbnail)  # as another root would have left it
    evaluate(config(roots["canny"], tmp_path / "out", *options))
    assert thumbnail.read_bytes() == drawn


def test_a_table_in_one_file_keeps_its_statistics_beside_it(
    roots: dict[str, Path], networks: list[str], tmp_path: Path
) -> None:
    results, file = photographs(roots["canny"], tmp_path / "photos"), tmp_path / "set" / "canny.parquet"
    file.parent.mkdir()
    shutil.copy(next(roots["canny"].rglob("*.parquet")), file)
    options = ["benchmark=canny", f"results={results}", networks[2], "stage=score"]
    evaluate(config(file, tmp_path / "out", *options))
    cache = file.with_name("canny_fid_canny_crop_3.npz")
    assert FidStatistics.load(cache).count == ROWS
    cache.write_bytes(b"damaged")
    with pytest.raises(BenchmarkError, match="not a file of FID statistics"):  # before any picture is scored
        evaluate(config(file, tmp_path / "late", *options))
    assert not (tmp_path / "late").exists()


def test_depth_rows_are_the_judges(roots: dict[str, Path], networks: list[str], tmp_path: Path) -> None:
    from editar.evaluation.translation.networks import DepthNetwork

    results = photographs(roots["depth"], tmp_path / "photos")
    options = ["stage=score", f"results={results}", "networks.inception=null", networks[0], "score_batch=2"]
    evaluate(config(roots["depth"], tmp_path / "out", *options))
    scores = load_evaluation(tmp_path / "out")
    network = DepthNetwork.load(networks[0].partition("=")[2], torch.device("cpu"))
    cases = opened(config(roots["depth"], tmp_path / "x", "stage=score"))
    for index, row in enumerate(scores.methods[0].rows):
        predicted = depth_map(network(cases.case(index).image[None])[0], PROTOCOLS["editar"].depth)
        assert row["depth_rmse"] == pytest.approx(
            depth_rmse(predicted[None], cases.case(index).label[None])[0], rel=1e-4
        )
        assert row["instruction"] == cases.case(index).caption
    assert scores.missing == {"depth_fid": "networks.inception is null"}
    folder = Path(networks[0].partition("=")[2])
    assert scores.networks == {"depth": {"source": str(folder), "sha256": checksum(folder / "model.safetensors")}}


def test_a_segmenter_that_agrees_scores_all(
    roots: dict[str, Path], networks: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Labels come from the segmenter itself, so mIoU must be 1 whatever the network says."""
    results = photographs(roots["cocostuff"], tmp_path / "photos")
    options = ["stage=score", f"results={results}", "networks.inception=null", networks[1]]
    segmenter = HubSegmenter.load(networks[1].partition("=")[2], torch.device("cpu"))
    read = Translation.case

    def agreed(cases: Translation, index: int) -> Any:
        case = read(cases, index)
        object.__setattr__(case, "label", segmenter(case.image[None])[0])
        return case

    monkeypatch.setattr(Translation, "case", agreed)
    evaluate(config(roots["cocostuff"], tmp_path / "out", *options))
    scores = load_evaluation(tmp_path / "out")
    means = scores.means(scores.methods[0])
    assert means["cocostuff_miou"].mean == pytest.approx(100)
    assert means["cocostuff_accuracy"].mean == pytest.approx(100)
    assert "networks.segmenter is not deeplabv3" in "; ".join(scores.methods[0].why_not)


def test_four_pictures_of_each_prompt(
    roots: dict[str, Path], networks: list[str], tiny_run: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    options = [
        "protocol=controlnet++",
        "rows=2",
        f"checkpoint={tiny_run}",
        networks[2],
        "fid_statistics=" + str(tmp_path / "f.npz"),
    ]
    evaluate(config(roots["canny"], out, *options))
    files = sorted(str(file.relative_to(out / "images")) for file in (out / "images").rglob("*.png"))
    assert files == sorted(f"group_{group}/{row}.png" for group in range(4) for row in range(2))
    draws = [np.asarray(Image.open(out / "images" / f"group_{group}" / "0.png")) for group in range(4)]
    assert not np.array_equal(draws[0], draws[1])  # each draw has random numbers of its own
    instructions = json.loads((out / "manifest.json").read_text())["instructions"]
    wording = "Given the canny edge image, generate an image following the description: a "
    assert instructions["group_3/1"].startswith(wording)
    scores = load_evaluation(out)
    assert len(scores.methods[0].rows) == 2
    reasons = scores.methods[0].why_not
    assert reasons[0] == "2 prompts instead of 5000" and "canny_eval" not in "; ".join(reasons)
    assert not (out / "edges").exists()
    assert scores.methods[0].whole["canny_fid"] > 0
    assert FidStatistics.load(tmp_path / "f.npz").count == 2


def test_edges_belong_to_the_output_before_rounding(
    roots: dict[str, Path], networks: list[str], tmp_path: Path
) -> None:
    """An editor of 512 px, whose outputs lie between two grey levels; canny on the pictures of the depth set."""

    class Flat:
        size, batch, reads = 512, 2, "instruction"

        def describe(self) -> dict[str, object]:
            return {}

        def cost(self) -> dict[str, float]:
            return {}

        def __call__(self, sources: list[np.ndarray], texts: list[str], ids: list[str]) -> list[torch.Tensor]:
            outputs = torch.full((len(ids), 3, 512, 512), 100.6 / 255 * 2 - 1)
            outputs[..., 256:] = 200.4 / 255 * 2 - 1
            return list(outputs)

    out = tmp_path / "out"
    benchmark = opened(config(roots["depth"], out, "benchmark=canny", "stage=score", networks[2]))
    arguments = (benchmark.jobs(), out, Ranks(0, 1, torch.device("cpu")), benchmark.sources_sum)
    generate_results(Flat(), *arguments, benchmark.renderings())
    assert np.unique(Image.open(out / "images" / "0.png")).tolist() == [101, 200]
    assert (np.asarray(Image.open(out / "edges" / "0.png")) == 255).any(0).nonzero()[0].tolist() in ([255], [256])
    assert score(benchmark).methods[0].why_not == ["3 prompts instead of 5000"]
    Image.new("L", (512, 512)).save(out / "edges" / "1.png")
    with pytest.raises(BenchmarkError, match=r"edges/1.png, which carries no stamp"):
        score(benchmark)
    cv2 = opened(config(roots["depth"], out, "benchmark=canny", "stage=score", "canny.operator=cv2"))
    assert cv2.protocol == "editar cv2" and cv2.sources_sum() != benchmark.sources_sum()


def test_what_cannot_be_scored(roots: dict[str, Path], tmp_path: Path) -> None:
    results = photographs(roots["canny"], tmp_path / "photos")
    options = ["stage=score", f"results={results}", "networks.inception=null"]
    with pytest.raises(DataError, match="no column control_depth"):
        evaluate(config(roots["canny"], tmp_path / "a", *options, "benchmark=depth"))
    with pytest.raises(BenchmarkError, match=r"12 of 12 results are missing, first group_0/0.png"):
        evaluate(config(roots["canny"], tmp_path / "b", *options, "protocol=controlnet++"))
    Image.new("RGB", (256, 256)).save(results / "1.png")
    with pytest.raises(BenchmarkError, match="256x256, this benchmark is scored at 512x512"):
        evaluate(config(roots["canny"], tmp_path / "c", *options))
    whole = (results / "0.png").read_bytes()
    (results / "1.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ImageError, match=r"1.png: not a readable image .*") as caught:
        evaluate(config(roots["canny"], tmp_path / "c", *options, "num_workers=1"))
    assert "\n" not in str(caught.value)
    (results / "1.png").unlink()
    with pytest.raises(BenchmarkError, match=r"1 of 3 results are missing, first 1.png"):
        evaluate(config(roots["canny"], tmp_path / "d", *options))
