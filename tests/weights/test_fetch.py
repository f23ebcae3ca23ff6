"""The manifest of outside weights and the fetcher, without any network."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import pytest
import torch

from editar.config import CONFIG_DIR, TeacherConfig, read_yaml
from editar.config.baseline import BaselineConfig
from editar.errors import CheckpointError
from editar.models.teacher import build_teacher
from editar.runtime.manifest import fetch_command, load_manifest, stored_folder
from editar.weights import fetch as fetching
from editar.weights.fetch import fetch, hub_file, parse_hub_id, select

CONTENT = b"weights"
SHA = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError("no network in tests")

    monkeypatch.setattr(fetching, "hub_listing", refuse)
    monkeypatch.setattr(fetching.urllib.request, "urlopen", refuse)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", refuse)


def hub(
    monkeypatch: pytest.MonkeyPatch, size: int = len(CONTENT), sha: str = SHA, content: bytes = CONTENT
) -> list[str]:
    """A hub that has every file the manifest names; returns the list of what gets downloaded."""
    log: list[str] = []

    def listing(repo: str, repo_type: str) -> dict[str, tuple[int, str]]:
        files = [file for entry in load_manifest().values() if entry.repo == repo for file in entry.files]
        return {file.file.split(" | ")[0]: (size, sha) for file in files}

    def download(item: fetching.Download, folder: Path) -> Path:
        log.append(f"{item.entry.repo_type} {item.entry.repo} {item.file}")
        (folder / item.file).parent.mkdir(parents=True, exist_ok=True)
        (folder / item.file).write_bytes(content)
        return folder / item.file

    monkeypatch.setattr(fetching, "hub_listing", listing)
    monkeypatch.setattr(fetching, "download_hub", download)
    return log


def test_manifest_is_whole() -> None:
    entries = load_manifest()
    assert {"editar_release", "llamagen_t2i_stage2", "vq_ds16_t2i", "flan_t5_xl", "dinov2_base"} <= set(entries)
    targets = [file.to for entry in entries.values() for file in entry.files if not file.to.endswith("/")]
    assert len(targets) == len(set(targets))
    for entry in entries.values():
        assert entry.files and entry.licence and set(entry.used_by) <= {"edit", "train", "evaluate", "baselines"}
        for file in entry.files:
            assert file.to.startswith("checkpoints/") and ".." not in file.to
            assert file.sha256 is None or len(file.sha256) == 64
            assert file.sha256_prefix is None or file.file.endswith(f"-{file.sha256_prefix}.pth")
            assert file.url is None or (file.url.startswith("https://") and file.url.endswith("/" + file.file))


def test_every_baseline_that_runs_here_is_listed() -> None:
    repositories = {entry.repo for entry in load_manifest().values() if entry.used_by == ["baselines"]}
    found = [BaselineConfig(**read_yaml(file)) for file in (CONFIG_DIR / "baseline").glob("*.yaml")]
    runners = [baseline for baseline in found if baseline.kind == "runner"]
    parts = [name.partition(":")[0] for baseline in runners for name in baseline.condition_models.values()]
    assert repositories == {*(baseline.base_model for baseline in runners), *parts}


def test_configs_point_where_the_manifest_puts_things() -> None:
    from editar.config import TrainConfig
    from editar.runtime.entry import load_config

    cfg = load_config(TrainConfig, "train", ["experiment=editar_xl", "output_dir=x"])
    entries = load_manifest()
    assert cfg.tokenizer.weights == entries["vq_ds16_t2i"].files[0].to
    assert (cfg.text.name, cfg.teacher.weights) == (entries["flan_t5_xl"].repo, entries["dinov2_base"].repo)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: {what: x, licence: MIT, files: [{file: f, to: checkpoints/f}]}", "a has neither a repo nor a url"),
        ("a: {what: x, licence: MIT, repo: o/n, repo_type: space, files: []}", "repo_type=space is not one of"),
        ("a: {what: x, licence: MIT, colour: red}", "colour"),
        ("a: [", "manifest.yaml"),
    ],
)
def test_broken_manifest_is_one_line(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "manifest.yaml").write_text(text)
    with pytest.raises(CheckpointError, match=words) as error:
        load_manifest(tmp_path / "manifest.yaml")
    assert "\n" not in str(error.value)


def test_names_and_uses() -> None:
    entries = load_manifest()
    assert list(select(["edit"], entries)) == ["editar_release", "vq_ds16_t2i", "flan_t5_xl"]
    assert list(select(["clip_b16"], entries)) == ["clip_b16"]
    with pytest.raises(CheckpointError, match="unknown weights vq; known: baselines, edit, evaluate, train, editar"):
        select(["vq"], entries)


def test_offline_says_which_file_goes_where(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError) as error:
        fetch(["edit", "dino_vitb8"], tmp_path)
    lines = str(error.value).splitlines()
    assert "cannot ask the hub for JitengMu/CVPR2025_EditAR_release (no network in tests)" in lines[0]
    release = tmp_path / "editar" / "editar_release.pt"
    assert (
        lines[1] == "  put editar_release/editar_release.pt of the dataset repository "
        f"JitengMu/CVPR2025_EditAR_release at {release}"
    )
    assert f"  put vq_ds16_t2i.pt of the model repository peizesun/llamagen_t2i at {tmp_path}/vq_ds16_t2i.pt" in lines
    assert any(line.startswith("  put https://") and line.endswith("dino_vitbase8_pretrain.pth") for line in lines)
    assert len(lines) == 1 + 1 + 1 + 8 + 1


def test_files_put_there_by_hand_are_enough(tmp_path: Path) -> None:
    (tmp_path / "vq_ds16_t2i.pt").write_bytes(CONTENT)
    assert fetch(["vq_ds16_t2i"], tmp_path) == [tmp_path / "vq_ds16_t2i.pt"]


def test_download_lands_verified_and_only_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = hub(monkeypatch)
    target = tmp_path / "editar" / "editar_release.pt"
    assert fetch(["editar_release"], tmp_path) == [target]
    assert target.read_bytes() == CONTENT
    fetch(["editar_release"], tmp_path)
    assert log == ["dataset JitengMu/CVPR2025_EditAR_release editar_release/editar_release.pt"]
    assert [path.name for path in tmp_path.iterdir()] == ["editar"]


def test_first_alternative_that_exists(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub(monkeypatch)
    files = [file.file.split(" | ")[-1] for file in load_manifest()["dpt_large"].files]
    monkeypatch.setattr(fetching, "hub_listing", lambda *_: {name: (len(CONTENT), None) for name in files})
    assert fetch(["dpt_large"], tmp_path)[-1] == tmp_path / "dpt-large" / "pytorch_model.bin"


@pytest.mark.parametrize(("size", "sha", "words"), [(9, SHA, "7 bytes instead of 9"), (7, "0" * 64, "SHA-256")])
def test_wrong_content_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int, sha: str, words: str
) -> None:
    hub(monkeypatch, size, sha)
    with pytest.raises(CheckpointError, match=words):
        fetch(["vq_ds16_t2i"], tmp_path)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_too_small_a_disk_is_refused_before_anything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = hub(monkeypatch, size=6_000_000_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 9, 1_000_000_000))
    with pytest.raises(CheckpointError, match=r"1 files, 6.00 GB do not fit: .* has 1.00 GB free"):
        fetch(["vq_ds16_t2i"], tmp_path / "not" / "yet")
    assert log == []


def test_renamed_file_on_the_hub_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetching, "hub_listing", lambda *_: {"other.pt": (1, None)})
    with pytest.raises(CheckpointError, match=r"has no file vq_ds16_t2i.pt"):
        fetch(["vq_ds16_t2i"], tmp_path)


def test_failed_url_says_where_to_put_the_file(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no network in tests; or put that file at .*squeezenet1_1-b8a52dc0.pth"):
        fetch(["lpips_squeeze"], tmp_path)


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("JitengMu/CVPR2025_EditAR_release", ("dataset", "editar_release/editar_release.pt")),
        ("JitengMu/CVPR2025_EditAR_release:a/b.pt", ("dataset", "a/b.pt")),
        ("datasets/JitengMu/CVPR2025_EditAR_release:a.pt", ("dataset", "a.pt")),
        ("hf://datasets/JitengMu/CVPR2025_EditAR_release/a/b.pt", ("dataset", "a/b.pt")),
        ("hf://JitengMu/CVPR2025_EditAR_release/a.pt", ("dataset", "a.pt")),
        ("someone/model", ("model", "model.safetensors")),
        ("someone/model:weights/gpt.pt", ("model", "weights/gpt.pt")),
    ],
)
def test_hub_ids(source: str, expected: tuple[str, str]) -> None:
    repo, repo_type, file = parse_hub_id(source)
    assert (repo_type, file) == expected
    assert repo == ("someone/model" if "someone" in source else "JitengMu/CVPR2025_EditAR_release")


def test_ids_that_are_not_enough() -> None:
    with pytest.raises(CheckpointError, match="say which file, peizesun/llamagen_t2i:FILE with one of t2i_XL_stage2"):
        parse_hub_id("peizesun/llamagen_t2i")
    for missing in ("checkpoints/t2i_XL_stage2_512.pt", "/nowhere/x", "configs/none", "one", "a/b/c/d"):
        with pytest.raises(CheckpointError, match=f"{missing}: no such file or folder"):
            parse_hub_id(missing)
    with pytest.raises(CheckpointError, match=r"not here, and the hub gave no model.safetensors .*no network"):
        hub_file("someone/model")


def test_what_was_fetched_is_found_by_its_hub_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before the network is asked, and only where it is complete."""
    monkeypatch.chdir(tmp_path)
    entries = load_manifest()
    hub(monkeypatch)
    for name in ("flan_t5_xl", "clip_b16"):
        repo, files = str(entries[name].repo), fetch([name])
        assert stored_folder(repo) == f"checkpoints/{repo.split('/')[1]}"
        files[0].unlink()
        assert stored_folder(repo) == repo
    for name in ("instruct_pix2pix", "controlnet_plus_plus"):  # diffusers reads a folder with subfolders
        repo, files = str(entries[name].repo), fetch([name])
        assert stored_folder(repo) == f"checkpoints/{repo.split('/')[1]}"
        assert [str(file.relative_to(stored_folder(repo))) for file in files] == [
            file.file.split(" | ")[0] for file in entries[name].files
        ]
        assert fetch_command(repo) == f"python scripts/fetch_weights.py {name}"
    assert fetch_command("someone/flan-t5-xl") is None
    fetch(["vq_ds16_t2i"])
    assert hub_file("peizesun/llamagen_t2i:vq_ds16_t2i.pt") == Path("checkpoints/vq_ds16_t2i.pt")
    assert stored_folder("someone/flan-t5-xl") == "someone/flan-t5-xl"


def test_a_teacher_that_was_fetched_needs_no_setting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import BitImageProcessor, Dinov2Config, Dinov2Model

    folder = tmp_path / "checkpoints" / "dinov2-base"
    Dinov2Model(Dinov2Config(hidden_size=16, num_hidden_layers=1, num_attention_heads=2)).save_pretrained(folder)
    BitImageProcessor().save_pretrained(folder)
    monkeypatch.chdir(tmp_path)
    teacher = build_teacher(TeacherConfig(), torch.device("cpu"), 16)
    assert teacher is not None and teacher(torch.zeros(1, 64, 64, 3, dtype=torch.uint8)).shape[2] == 16


def test_another_folder_says_how_it_is_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "vq_ds16_t2i.pt").write_bytes(CONTENT)
    fetch(["vq_ds16_t2i"], tmp_path)
    assert f"ln -s {tmp_path} checkpoints" in capsys.readouterr().err
