"""The report of scored folders: every part is there, says what is missing, and runs nothing that a file brought in."""

from __future__ import annotations

import csv
import json
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from editar.errors import BenchmarkError
from editar.evaluation.run import evaluate
from editar.report.examples import pictures_of
from editar.report.figures import ablations, distributions, group_bars, guidance_sweeps
from editar.report.gallery import evenly, outline_uri, thumbnail_uri
from editar.report.merge import ScoredFolder, load_scored, merge, table_rows
from editar.runtime.files import write_json
from editar.tables.scores import Column, Evaluation, MethodScores, load_evaluation
from scripts import figure_examples, report
from tests.helpers.page import Page
from tests.helpers.pie import GOLDEN, RESULTS, config

EVIL = "</script><script>alert('x')</script><b>$\\frac"


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two methods in one folder; the second is the source itself, untouched."""
    out = tmp_path_factory.mktemp("report") / "both"
    sources = GOLDEN / "data" / "annotation_images"
    evaluate(config(out, "stage=score", f"results={{tiny: {RESULTS}, untouched: {sources}}}"))
    return out


def changed(scored: Path, out: Path, method: str, **fields: Any) -> str:
    """A copy of the first method's scores under another name; returns the folder."""
    raw = json.loads((scored / "scores.json").read_text())
    protocol = fields.pop("protocol", raw["protocol"])
    entry = raw["methods"]["tiny"] | fields
    write_json(out / "scores.json", raw | {"methods": {method: entry}, "protocol": protocol})
    return str(out)


def made(scale: float, weights: str = "a" * 64) -> dict[str, Any]:
    return {"weights_sha256": weights, "sampling": {"cfg_scale": scale, "seed": 0}, "image_size": 512}


def test_the_page_holds_every_part(scored: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "page" / "report.html"
    other = changed(scored, tmp_path / "other", "third")
    report.main([str(scored), other, "--out", str(out), "--pictures", "4"])
    page = Page(out)
    assert "Guidance sweep" not in page.text and "Ablation" not in page.text
    assert all(title in page.text for title in ("Table 1 (main text)", "Table 3 (supplement A)", "PIE-Bench"))
    assert all(name in page.classes for name in ("paper", "means", "paired", "plot bars", "plot histograms"))
    assert "minus the paper's EditAR" not in page.text  # of six pictures
    assert any(
        text.startswith("* tiny, untouched, third: not comparable") and "6 pictures" in text for text in page.text
    )
    assert "Without structure: networks.structure is null" in page.text
    assert any(text.endswith("MB") for text in page.text)
    [grid] = page.grids
    assert grid["methods"] == ["tiny", "untouched", "third"]
    assert [column["title"] for column in grid["columns"]] == ["Background PSNR", "Background MSE", "Background SSIM"]
    assert [group["title"] for group in grid["groups"]] == ["edit type", "category"]
    entries = grid["entries"]
    assert len(entries) == 6 and sum(entry["pictures"] is not None for entry in entries) == 4
    assert "Pictures of 4 of 6 entries; --pictures embeds more." in page.text
    shown = next(entry["pictures"] for entry in entries if entry["pictures"])
    assert shown["source"].startswith("data:image/webp") and shown["outline"].startswith("data:image/png")
    assert len(shown["results"]) == 3
    scores = json.loads((scored / "scores.json").read_text())["methods"]["tiny"]["rows"]
    assert [entry["text"] for entry in entries] == [row["instruction"] for row in scores]
    assert entries[0]["scores"][0][0] == pytest.approx(scores[0]["psnr"], abs=1e-3)
    assert entries[0]["scores"][1][:2] == ["inf", 0.0]  # an untouched picture
    assert any(entry["scores"][0][0] is None for entry in entries)  # a mask that covers everything
    printed = capsys.readouterr().out
    assert "Table 1 (main text)" in printed and "picture by picture against tiny" in printed
    rows = list(csv.DictReader((out.parent / "report_table1.csv").open()))
    assert [row["method"] for row in rows][-3:] == ["tiny", "untouched", "third"]


def test_nothing_from_a_file_is_run_or_fetched(scored: Path, tmp_path: Path) -> None:
    folder = tmp_path / "evil"
    changed(scored, folder, EVIL, why_not=[EVIL])
    raw = json.loads((folder / "scores.json").read_text())
    for row in raw["methods"][EVIL]["rows"]:
        row["instruction"] = EVIL
    raw["methods"][EVIL]["groups"]["edit type"][0] = EVIL
    raw["missing_columns"]["lpips"] = EVIL
    write_json(folder / "scores.json", raw)
    out = tmp_path / "report.html"
    report.main([str(folder), "--out", str(out), "--title", EVIL])
    page = Page(out)
    assert page.tags.count("script") == 2  # the grid's data and the page's own
    assert EVIL in page.text and page.grids[0]["entries"][0]["text"] == EVIL
    assert all(address.startswith("data:image/") for address in page.addresses)
    assert not re.search(r"https?:", out.read_text())
    assert "default-src 'none'" in out.read_text()


def test_table_2_is_one_row_over_three_folders() -> None:
    def part(task: str, values: dict[str, float], name: str = "ours", **fields: Any) -> ScoredFolder:
        columns = [Column(f"{task}_{key}", key, "x", "lower") for key in (*values, "fid")]
        rows = [
            {"id": str(i), "instruction": "a cat", "source": "", "result": ""}
            | {f"{task}_{key}": value + i for key, value in values.items()}
            for i in range(2)
        ]
        method = MethodScores(name, "folder", rows, {}, {f"{task}_fid": 20.0}, **fields)
        return ScoredFolder(f"{task}-{name}", Evaluation(task, "editar", "root", columns, [method]))

    short = {"why_not": ["2 prompts instead of 5000"], "generated_with": made(3)}
    parts = [
        part("depth", {"rmse": 30.0}, **short),
        part("canny", {"ms_ssim": 50.0}, **short),
        part("cocostuff", {}, **short),
    ]
    rows = table_rows(merge([*parts, part("depth", {"rmse": 40.0}, "other")]))
    assert set(rows) == {"table2", "supplement_c"}
    ours, other = rows["table2"]
    assert ours.values["depth_rmse"] == 30.5 and ours.values["canny_ms_ssim"] == 50.5
    assert {f"{task}_fid" for task in ("depth", "canny", "cocostuff")} <= set(ours.values)
    assert ours.incomparable == "; ".join(
        f"{task}: 2 prompts instead of 5000" for task in ("depth", "canny", "cocostuff")
    )
    assert other.method == "other" and set(other.values) == {"depth_rmse", "depth_fid"} and not other.incomparable
    mixed = [part("depth", {"rmse": 30.0}, generated_with=made(3)), part("canny", {}, generated_with=made(3, "b" * 64))]
    assert table_rows(merge(mixed))["table2"][0].incomparable == "canny was made with other weights_sha256 than depth"
    parts[1].evaluation.protocol = "controlnet++"
    with pytest.raises(BenchmarkError, match=r"depth-ours was scored with protocol editar, canny-ours with controlnet"):
        merge(parts)


def test_a_column_that_one_folder_lacks_is_a_gap_not_a_number(scored: Path, tmp_path: Path) -> None:
    folder = tmp_path / "few"
    changed(scored, folder, "few")
    raw = json.loads((folder / "scores.json").read_text())
    raw["columns"] = [column for column in raw["columns"] if column["name"] != "ssim"]
    raw["missing_columns"]["ssim"] = "fetch it"
    for row in raw["methods"]["few"]["rows"]:
        del row["ssim"]
    write_json(folder / "scores.json", raw)
    [evaluation] = merge([load_scored(str(scored)), load_scored(str(folder))])
    assert [method.method for method in evaluation.methods] == ["tiny", "untouched", "few"]
    assert math.isnan(evaluation.means(evaluation.methods[2])["ssim"].mean)
    assert evaluation.missing["ssim (few)"] == "fetch it" and evaluation.missing["lpips"] == "networks.lpips is null"
    tiny, _, few = table_rows([evaluation])["table1"]
    assert "ssim" in tiny.values and "ssim" not in few.values
    assert len(group_bars(evaluation, "edit type")) == 3 and distributions(evaluation) is not None


def test_sweeps_and_ablations_appear_only_where_there_are_some(scored: Path) -> None:
    evaluation = load_evaluation(scored)
    first = evaluation.methods[0]

    def runs(*settings: dict[str, Any] | None) -> Evaluation:
        methods = [replace(first, method=f"m{i}", generated_with=found) for i, found in enumerate(settings)]
        return replace(evaluation, methods=methods)

    cases = [
        ((None, None), (0, 0)),
        ((made(3), made(3)), (0, 0)),
        ((made(1), made(3), None), (1, 0)),
        ((made(3), made(3, "b")), (0, 1)),
        ((made(1), made(3, "b")), (0, 0)),  # both differ: neither plot could tell which of them matters
        ((made(1), made(3), made(1, "b"), made(3, "b")), (1, 2)),
    ]
    for settings, expected in cases:
        found = runs(*settings)
        assert (len(guidance_sweeps(found)), len(ablations(found))) == expected, settings
    unscored = replace(runs(made(1), made(3)), columns=[])
    assert guidance_sweeps(unscored) == ablations(unscored) == [] and distributions(unscored) is None


def test_pictures_are_small_and_outlines_follow_the_mask() -> None:
    assert evenly(3, 5) == [0, 1, 2] and evenly(10, 4) == [0, 2, 5, 7] and evenly(10, 0) == []
    noise = np.random.default_rng(0).integers(0, 256, (512, 512, 3), np.uint8)
    assert len(thumbnail_uri(noise)) < 60_000
    mask = np.zeros((512, 512), bool)
    mask[128:384, 128:384] = True
    mask[[0, -1]] = mask[:, [0, -1]] = True  # the evaluator's frame is not drawn
    drawn = decode(outline_uri(mask))
    assert drawn.shape == (192, 192) and not drawn[:40].any() and not drawn[96, 96]
    assert drawn[96, 49] and drawn[49, 96] and 700 < drawn.sum() < 900


def decode(uri: str) -> np.ndarray:
    import base64
    import io

    image = Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2])))
    return np.asarray(image.convert("RGBA"))[..., 3] > 0


def test_missing_pictures_and_masks_are_said(scored: Path, tmp_path: Path) -> None:
    folder = tmp_path / "moved"
    changed(scored, folder, "moved")
    raw = json.loads((folder / "scores.json").read_text())
    raw["methods"]["moved"]["rows"][0]["result"] = "gone/picture.png"
    raw["methods"]["moved"]["rows"][0]["mask"] = "gone/mask.png"
    write_json(folder / "scores.json", raw)
    out = tmp_path / "report.html"
    report.main([str(folder), "--out", str(out)])
    page = Page(out)
    assert any(text.startswith("2 pictures could not be opened, first: gone/") for text in page.text)
    first, second = (entry["pictures"] for entry in page.grids[0]["entries"][:2])
    assert first["results"] == [None] and first["outline"] is None and second["results"][0].startswith("data:")


def test_what_cannot_stand_side_by_side_is_one_line(
    scored: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def error(*arguments: str) -> str:
        with pytest.raises(SystemExit, match="2"):
            report.main([*arguments, "--out", str(tmp_path / "report.html")])
        printed = capsys.readouterr().err
        assert printed.count("\n") == 1
        return printed

    (tmp_path / "empty").mkdir()
    assert "scores.json: no such file" in error(str(tmp_path / "empty"))
    write_json(tmp_path / "scores.json", {})
    assert "not a scores.json of this version" in error(str(tmp_path))
    same = changed(scored, tmp_path / "same", "tiny")
    assert f"both hold a method called tiny; give one as NAME={same}" in error(str(scored), same)
    assert [method.method for method in load_scored(f"again={same}").evaluation.methods] == ["again"]
    assert "holds 2 methods, so x would name none" in error(f"x={scored}")
    other = changed(scored, tmp_path / "other", "other", protocol="corrected")
    assert "their numbers do not belong in one table" in error(str(scored), other)
    rows = json.loads((scored / "scores.json").read_text())["methods"]["tiny"]["rows"]
    judges = [{"lpips": {"source": f"{name}.pth", "sha256": name * 64}} for name in "ab"]
    column = {"name": "lpips", "title": "LPIPS", "unit": "x1e3", "better": "lower"}
    folders = [changed(scored, tmp_path / name, name) for name in "ab"]
    for folder, record in zip(folders, judges, strict=True):
        raw = json.loads((Path(folder) / "scores.json").read_text()) | {"judges": record}
        rows = [row | {"lpips": 1.0} for row in raw["methods"][Path(folder).name]["rows"]]
        raw["methods"][Path(folder).name]["rows"] = rows
        write_json(Path(folder) / "scores.json", raw | {"columns": [*raw["columns"], column]})
    assert "were scored by different weights of networks.lpips (a.pth, b.pth); score both" in error(*folders)
    fewer = changed(scored, tmp_path / "fewer", "fewer", rows=rows[:4], groups={})
    assert "were scored on different pictures of pie_bench" in error(str(scored), fewer)


def test_chosen_examples_as_a_figure(scored: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ids = ["111000000004", "000000000000"]
    figure_examples.main([str(scored), "--ids", *ids, "--out", str(tmp_path / "figure.png")])
    whole = np.asarray(Image.open(tmp_path / "figure.png").convert("RGB")).astype(float)
    assert abs(whole.shape[1] - 3 * 300) <= 1 and whole.shape[0] > 2 * 300
    # From the bottom, in pixels: names (56), a picture (300), its instruction (56), a picture.
    rows = [whole[end - 288 : end] for end in (whole.shape[0] - 56 - 300 - 56, whole.shape[0] - 56)]
    evaluation = load_scored(str(scored)).evaluation
    for id, drawn in zip(ids, rows, strict=True):  # in the order that was asked for
        files = [m.rows[[r["id"] for r in m.rows].index(id)] for m in evaluation.methods]
        for column, file in enumerate((files[0]["source"], files[0]["result"], files[1]["result"])):
            expected = np.asarray(Image.open(file).convert("RGB"))[:, -512:].reshape(-1, 3).mean(0)
            found = drawn[4:-4, 300 * column + 10 : 300 * column + 290].reshape(-1, 3).mean(0)
            assert np.abs(found - expected).max() < 4, (id, column)
    figure_examples.main([str(scored), "--out", str(tmp_path / "figure.pdf")])
    assert (tmp_path / "figure.pdf").read_bytes().startswith(b"%PDF")
    for wrong, message in (
        (["--ids", "x"], "no picture x in pie_bench; the first is 000000000000"),
        (["--draws", "2"], "one picture per prompt"),
        (["--out", "a.html"], "figures are written as .png, .pdf, .svg"),
    ):
        with pytest.raises(SystemExit):
            figure_examples.main([str(scored), *wrong])
        assert message in capsys.readouterr().err


def test_several_draws_of_a_prompt(scored: Path, tmp_path: Path) -> None:
    evaluation = load_scored(str(scored)).evaluation
    for draw in (0, 1):
        (tmp_path / f"group_{draw}").mkdir()
        Image.new("RGB", (512, 512), (draw, 0, 0)).save(tmp_path / f"group_{draw}" / "0.png")
    evaluation.methods = [evaluation.methods[0]]
    evaluation.methods[0].rows[0]["result"] = str(tmp_path / "group_0" / "0.png")
    _, first, second = pictures_of(evaluation, 0, draws=2)
    assert (first[0, 0, 0], second[0, 0, 0]) == (0, 1)
