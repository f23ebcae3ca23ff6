"""PIE-Bench through `editar.eval`: edit, go on, score, print, and refuse what does not fit."""

from __future__ import annotations

import csv
import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from editar.errors import BenchmarkError, ConfigError, ImageError
from editar.evaluation.run import evaluate
from editar.runtime.files import load_weights
from editar.tables.paper_rows import paper_tables
from editar.tables.render import OurRow, json_table, latex_table, layout, markdown_table, text_table
from editar.tables.scores import load_evaluation
from editar.weights.load import save_pair
from tests.helpers.pie import GOLDEN, RESULTS, config
from tests.helpers.tiny import run_module


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("pie") / "scores"
    evaluate(config(out, "stage=score", f"results={RESULTS}", "method=tiny-editor"))
    return out


def test_anybodys_folder_gives_the_official_numbers(scored: Path) -> None:
    scores = json.loads((scored / "scores.json").read_text())
    expected = json.loads((GOLDEN / "expected.json").read_text())["per_image"]
    units = {"psnr": 1.0, "mse": 1e4, "ssim": 1e2}
    method = scores["methods"]["tiny-editor"]
    for row in method["rows"]:
        official = expected[row["id"]]["metrics_raw"]
        for name, scale in units.items():
            value = official[f"{name}_unedit_part"]
            assert row[name] is None if value == "nan" else row[name] == pytest.approx(scale * value, rel=1e-4)
    for name in units:
        known = [row[name] for row in method["rows"] if row[name] is not None]
        assert method["mean"][name]["mean"] == pytest.approx(np.mean(known))
        assert method["mean"][name]["excluded"] == 6 - len(known)
    assert scores["protocol"] == "pnpinversion-current"
    assert set(scores["missing_columns"]) == {"structure", "lpips", "clip_whole", "clip_edited"}
    assert "add object" in method["by"]["edit type"]
    assert "natural animal" in method["by"]["category"]


def test_a_flat_folder_called_after_the_ids_gives_the_same(scored: Path, tmp_path: Path) -> None:
    flat = tmp_path / "flat"
    flat.mkdir()
    for row in load_evaluation(scored).methods[0].rows:
        shutil.copy(row["result"], flat / f"{row['id']}{Path(row['result']).suffix}")
    evaluate(config(tmp_path / "out", f"results={flat}"))
    first, second = (load_evaluation(path) for path in (scored, tmp_path / "out"))
    assert first.means(first.methods[0]) == second.means(second.methods[0])


def test_six_pictures_are_not_called_the_papers_table(scored: Path) -> None:
    text = (scored / "table1.txt").read_text()
    assert "tiny-editor *" in text
    assert "not comparable with the paper's rows: 6 pictures instead of 700" in text
    rows = list(csv.DictReader((scored / "table3.csv").open()))
    assert [row["comparable"] for row in rows] == ["paper"] * 11 + ["no"]
    assert rows[-1]["method"] == "tiny-editor" and float(rows[-1]["psnr"]) > 10


def test_the_evaluator_of_2023_drops_the_borders_of_ssim(tmp_path: Path) -> None:
    """Background SSIM that torchmetrics 1.4.1 gives for the stored pictures; 1.4.2 and later: expected.json."""
    evaluate(config(tmp_path, "stage=score", f"results={RESULTS}", "evaluator=2023"))
    scores = load_evaluation(tmp_path)
    assert scores.protocol == "pnpinversion-2023"
    found = {row["id"]: row["ssim"] / 100 for row in scores.methods[0].rows if not math.isnan(row["ssim"])}
    assert found == pytest.approx(
        {
            "000000000000": 0.9342437982559204,
            "111000000004": 0.9592106342315674,
            "221000000002": 0.7850193977355957,
            "324000000001": 0.9859735369682312,
            "811000000005": 0.9801841974258423,
        },
        abs=3e-5,  # the two formulas are 4e-4 to 4e-3 apart here
    )


def test_published_values_of_another_evaluator_take_no_part() -> None:
    paper = paper_tables()["table1"]
    values = {"structure": 50.0, "psnr": 20.0}
    current, of_2023 = (
        layout(paper, [OurRow("ours", values, "", dict.fromkeys(values, f"pnpinversion-{name}"))], "<{}>".format)
        for name in ("current", "2023")
    )
    now, then = ({row[0]: row[1:3] for row, _ in cells.rows} for cells in (current, of_2023))
    assert now["PnPInversion"] == ["11.65°", "<27.22>"] and now["EditAR"] == ["<39.43>", "21.32"]
    assert then["PnPInversion"] == ["<11.65>", "<27.22>"] and then["EditAR"] == ["39.43°", "21.32"]
    assert now["MGIE"] == ["67.41?", "21.20?"]
    assert now["  minus the paper's EditAR"] == ["+10.57", "-1.32"]
    assert then["  minus the paper's EditAR"] == ["-", "-1.32"]
    assert [note[0] for note in current.notes] == ["°", "?"]


def test_a_protocol_of_nobody_is_not_comparable() -> None:
    ours = OurRow("ours", {"cocostuff_miou": 30.0}, "", {"cocostuff_miou": "editar-aligned"})
    why = ours.why_not(paper_tables()["table2"])
    assert why == "no published row was measured by protocol editar-aligned"
    assert not OurRow("o", {}, "", {"cocostuff_miou": "editar"}).why_not(paper_tables()["table2"])


def test_tables_mark_the_best_and_the_distance_to_the_paper() -> None:
    paper = paper_tables()["table1"]
    good = OurRow("ours", {"structure": 39.43, "psnr": 30.0})
    cells = layout(paper, [good], lambda value: f"<{value}>")
    by_name = {row[0]: row for row, _ in cells.rows}
    assert by_name["ours"][1:4] == ["39.43", "<30.00>", "-"]
    assert by_name["PnPInversion"][1:3] == ["<11.65>", "27.22"]
    assert by_name["  minus the paper's EditAR"][1:4] == ["+0.00", "+8.68", "-"]
    assert cells.header[1] == "structure ↓ (x1e3)"
    apart = layout(paper, [OurRow("ours", good.values, "6 pictures")], lambda value: f"<{value}>")
    assert {row[0]: row for row, _ in apart.rows}["PnPInversion"][2] == "<27.22>"
    assert apart.rows[-1][0][0] == "ours *"  # and no differences below it
    assert markdown_table(paper, [good]).count("\n") == len(paper.rows) + 3
    hostile = replace(good, method="<img src=x> | a & b", incomparable="<b>few</b>")
    *_, row, _, note = markdown_table(paper, [hostile]).split("\n")
    assert row.startswith(r"| &lt;img src=x&gt; \| a &amp; b * | 39.43 | 30.00 |")
    assert note.endswith("&lt;b&gt;few&lt;/b&gt;")
    assert r"\textbf{30.00}" in latex_table(paper, [good])
    *lines, legend = text_table(paper, [good]).splitlines()
    assert len({len(line) for line in lines}) == 1 and legend == "! best of its column"
    assert r"\textbf{30.00}" in latex_table(paper, [replace(good, method="a & b_c {50%}")])
    assert r"a \& b\_c \{50\%\} & 39.43 &" in latex_table(paper, [replace(good, method="a & b_c {50%}")])


def test_the_json_table_is_strict_and_says_what_is_comparable() -> None:
    def fail(constant: str) -> None:
        raise AssertionError(constant)

    paper = paper_tables()["table1"]
    ours = [OurRow("ours", {"structure": 39.43, "psnr": math.inf}), OurRow("few", {"mse": math.nan}, "6 pictures")]
    table = json.loads(json_table(paper, ours), parse_constant=fail)
    assert [column["name"] for column in table["columns"]] == paper.columns
    assert table["paper"][-1] == {
        "method": "EditAR", "base": "LlamaGen", "kind": "feed-forward", "values": paper.row("EditAR"),
        "protocols": paper.rows[-1].protocols,
    }  # fmt: skip
    first, second = table["ours"]
    assert (first["comparable"], first["why_not"]) == (True, "")
    assert (second["comparable"], second["why_not"]) == (False, "6 pictures")
    assert first["values"]["psnr"] == "inf" and first["values"]["mse"] is second["values"]["mse"] is None
    assert first["minus_paper_editar"]["structure"] == 0 and first["minus_paper_editar"]["lpips"] is None
    assert set(second["minus_paper_editar"].values()) == {None}


def test_editing_goes_on_where_it_stopped(tiny_run: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    evaluate(config(out, f"checkpoint={tiny_run}"))
    ours = json.loads((out / "scores.json").read_text())["methods"]["ours"]
    assert ours["why_not"][1] == "edited at 64 px, enlarged to 512"
    assert len(ours["generated_with"]["weights_sha256"]) == 64
    files = sorted(path for path in (out / "images").rglob("*.png"))
    before = {path: path.read_bytes() for path in files}
    assert len(files) == 6 and Image.open(files[0]).size == (512, 512)
    files[2].unlink()
    kept = {path: path.stat().st_mtime_ns for path in files if path.exists()}
    evaluate(config(out, f"checkpoint={tiny_run}", "stage=generate"))
    assert {path: path.read_bytes() for path in files} == before
    assert all(path.stat().st_mtime_ns == time for path, time in kept.items())


def test_what_a_power_cut_leaves_is_made_again(
    tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, same = tmp_path / "out", [f"checkpoint={tiny_run}", "stage=generate"]
    out.mkdir()
    (out / ".manifest.json.part").write_text('{"weights_sha256": "0')
    evaluate(config(out, *same))
    files = [out / "manifest.json", *sorted((out / "images").rglob("*.png"))]
    before = [file.read_bytes() for file in files]
    files[1].write_bytes(b"")
    files[2].write_bytes(before[2][:-20])
    half = len(before[3]) // 2
    files[3].write_bytes(before[3][:half] + bytes([before[3][half] ^ 1]) + before[3][half + 1 :])
    for damage in (before[0][:99], b"", b"\0\xff", b"3"):
        files[0].write_bytes(damage)
        evaluate(config(out, *same))
        assert [file.read_bytes() for file in files] == before
    said = capsys.readouterr().err
    assert said.count("manifest.json: damaged") == 4 and said.count("damaged; made again") == 3
    files[0].write_bytes(b"")
    with pytest.raises(BenchmarkError, match="stage=generate with the same settings writes it anew"):
        evaluate(config(tmp_path / "scores", "stage=score", f"results={out}"))
    with pytest.raises(BenchmarkError, match="6 of 6 pictures do not belong to"):
        evaluate(config(out, *same, "+sampling.seed=7"))
    assert files[0].read_bytes() == b""  # so that the right settings still find their pictures
    evaluate(config(out, *same))
    assert [file.read_bytes() for file in files] == before


def test_a_folder_of_ours_is_recognised_when_it_is_scored_elsewhere(tiny_run: Path, tmp_path: Path) -> None:
    """Its settings stay known, and pictures that the run did not make are named."""
    out = tmp_path / "out"
    evaluate(config(out, f"checkpoint={tiny_run}", "stage=generate"))
    for source in (out, out / "images"):
        evaluate(config(tmp_path / "scores", "stage=score", f"results={source}"))
        [method] = load_evaluation(tmp_path / "scores").methods
        assert method.generated_with and len(method.generated_with["tokenizer_sha256"]) == 64
        assert method.why_not[1] == "edited at 64 px, enlarged to 512"
    other = tmp_path / "other"
    evaluate(config(other, f"checkpoint={tiny_run}", "stage=generate", "+sampling.seed=7"))
    file, *_, last = sorted((out / "images").rglob("*.png"))
    own = file.read_bytes()
    shutil.copy(other / file.relative_to(out), file)
    wrong = r"1 of 6 pictures do not belong to .*manifest.json: first .*{}, which was made by another run; remove"
    for stage in (["stage=score", f"results={out}"], [f"checkpoint={tiny_run}", "stage=generate"]):
        with pytest.raises(BenchmarkError, match=wrong.format(file.name)):
            evaluate(config(out, *stage))
    file.write_bytes(last.read_bytes())
    with pytest.raises(BenchmarkError, match=rf"1 of 6 .*first .*{file.name}, which was made as images/.*{last.name}"):
        evaluate(config(tmp_path / "scores", "stage=score", f"results={out}"))
    file.write_bytes(own)
    Image.fromarray(np.asarray(Image.open(last))).save(last)
    with pytest.raises(BenchmarkError, match=rf"first .*{last.name}, which carries no stamp of the run"):
        evaluate(config(tmp_path / "scores", "stage=score", f"results={out}"))
    last.unlink()
    with pytest.raises(BenchmarkError, match=r"1 of 6 results are missing.*; stage=generate makes the missing"):
        evaluate(config(tmp_path / "scores", "stage=score", f"results={out}"))


def test_other_sources_or_tokenizers_do_not_go_on(tiny_run: Path, tmp_path: Path) -> None:
    out, run, root = tmp_path / "out", tmp_path / "run", tmp_path / "data"
    evaluate(config(out, f"checkpoint={tiny_run}", "stage=generate"))
    shutil.copytree(GOLDEN / "data", root)
    evaluate(config(out, f"checkpoint={tiny_run}", "stage=generate", f"root={root}"))  # the same pictures, moved
    picture = next(root.rglob("*.jpg"))
    Image.new("RGB", (512, 512)).save(picture)
    with pytest.raises(ConfigError, match="made with other sources_sha256"):
        evaluate(config(out, f"checkpoint={tiny_run}", "stage=generate", f"root={root}"))
    picture.unlink()
    with pytest.raises(BenchmarkError, match=f"{picture.name}: cannot be read"):
        evaluate(config(out, f"checkpoint={tiny_run}", "stage=generate", f"root={root}"))
    shutil.copytree(tiny_run, run)
    state = load_weights(run / "tokenizer.safetensors")
    scaled = {key: value * 1.1 for key, value in state.items()}
    save_pair(run, load_weights(run / "model.safetensors"), scaled, {})
    with pytest.raises(ConfigError, match=r"made with other weights_sha256, tokenizer_sha256"):
        evaluate(config(out, f"checkpoint={run}", "stage=generate"))


@pytest.mark.multiprocess
def test_two_processes_share_the_editing(tiny_run: Path, tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    evaluate(config(one, f"checkpoint={tiny_run}", "stage=generate"))
    settings = ["benchmark=pie_bench", f"root={GOLDEN / 'data'}", f"checkpoint={tiny_run}", "stage=generate"]
    done = run_module("editar.eval", f"output_dir={two}", *settings, processes=2)
    assert done.returncode == 0, done.stderr[-2000:]
    files = sorted(path.relative_to(one) for path in (one / "images").rglob("*.png"))
    assert files == sorted(path.relative_to(two) for path in (two / "images").rglob("*.png"))
    for file in files:  # the same codes; decoded in other batches, a grey level may round the other way
        a, b = (np.asarray(Image.open(folder / file)).astype(int) for folder in (one, two))
        assert np.abs(a - b).max() <= 2


def test_several_methods_are_compared_picture_by_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One of them by a JSON map, one in the official layout with pictures glued to strips."""
    map = tmp_path / "map.json"
    mapping = json.loads((GOLDEN / "data" / "mapping_file.json").read_text())
    same = {id: str(GOLDEN / "data" / "annotation_images" / entry["image_path"]) for id, entry in mapping.items()}
    map.write_text(json.dumps(same))
    for id, entry in mapping.items():
        strip = Image.new("RGB", (1024, 512))
        strip.paste(Image.open(same[id]), (512, 0))
        file = (tmp_path / "strips" / "annotation_images" / entry["image_path"]).with_suffix(".png")
        file.parent.mkdir(parents=True, exist_ok=True)
        strip.save(file)
    out = tmp_path / "out"
    results = f"results={{tiny: {RESULTS}, source: {map}, strips: {tmp_path / 'strips'}}}"
    evaluate(config(out, "stage=score", results))
    scores = load_evaluation(out)
    assert [method.method for method in scores.methods] == ["tiny", "source", "strips"]
    assert scores.means(scores.methods[1])["mse"].mean == 0
    written = json.loads((out / "scores.json").read_text(), parse_constant=pytest.fail)
    assert written["methods"]["source"]["rows"][0]["psnr"] == "inf"  # an untouched picture
    assert scores.methods[1].rows[0]["psnr"] == math.inf and scores.means(scores.methods[1])["psnr"].mean == math.inf
    assert json.loads((out / "table1.json").read_text())["ours"][0]["method"] == "tiny"
    paired = scores.paired()
    assert paired["source"] == paired["strips"]
    assert paired["source"]["mse"].wins == 5 and paired["source"]["mse"].difference.excluded == 1
    assert "picture by picture against tiny" in capsys.readouterr().out
    text = (out / "table1.txt").read_text()
    assert all(f"{name} *" in text for name in ("tiny", "source", "strips"))


def test_damaged_scores_are_named(tmp_path: Path) -> None:
    with pytest.raises(BenchmarkError, match=r"stage=score. writes it"):
        load_evaluation(tmp_path)
    (tmp_path / "scores.json").write_text('{"benchmark": "pie_bench"}')
    with pytest.raises(BenchmarkError, match=r"not a scores.json of this version"):
        load_evaluation(tmp_path)


def test_results_that_do_not_fit_stop_before_scoring(tmp_path: Path) -> None:
    copy = tmp_path / "results"
    shutil.copytree(RESULTS, copy)
    next(copy.rglob("221000000002.jpg")).unlink()
    with pytest.raises(BenchmarkError, match=r"1 of 6 results are missing, first 2_add_object_80.*221000000002"):
        evaluate(config(tmp_path / "a", "stage=score", f"results={copy}"))


@pytest.mark.multiprocess
@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_picture_is_one_line_from_workers_too(tmp_path: Path, workers: int) -> None:
    copy = tmp_path / "results"
    shutil.copytree(RESULTS, copy)
    file = next(copy.rglob("221000000002.*"))
    file.write_bytes(file.read_bytes()[:300])
    with pytest.raises(ImageError, match=f"{file.name}: not a readable image") as caught:
        evaluate(config(tmp_path / "a", "stage=score", f"results={copy}", f"num_workers={workers}"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["stage=all"], "stage=all needs checkpoint=FOLDER"),
        (["results=x", "stage=generate"], "results=x is scored, not generated: leave out stage=generate"),
        (["stage=paint"], "stage=paint is not one of all, generate, score"),
        (["stage=score", "results=[1]"], r"results=\[1\] must be a path or {name: path"),
        (["prompt=draw"], "must hold one {} for the caption"),
    ],
)
def test_settings_that_cannot_work(tmp_path: Path, overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config(tmp_path, *overrides)


def test_unknown_benchmarks_and_missing_roots_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="benchmark=pie_bench needs root=FOLDER"):
        evaluate(config(tmp_path, "root=null", "stage=score"))
    with pytest.raises(ConfigError, match=r"(?s)imagenet.*pie_bench"):
        config(tmp_path, "benchmark=imagenet")
