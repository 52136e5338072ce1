"""The folder of the page that runs in the browser: what is refused, where its runtime comes from, what is pushed."""

import base64
import hashlib
import io
import re
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import yaml
from einops import rearrange
from huggingface_hub import constants
from PIL import Image

from loopback_hub import LoopbackHub
from video_diffusion import VideoDiffusionPipeline, VPContinuousScheduler
from video_diffusion.cli import main
from video_diffusion.data import MovingMNIST
from video_diffusion.demo.static import HEADERS
from video_diffusion.hub import browser, transfer
from video_diffusion.training.text import small_bert

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "space-static"
TOKEN = "hf_" + "b" * 34
ID = "alice/page"


@pytest.fixture
def folder(make_denoiser, tmp_path):
    pipeline = VideoDiffusionPipeline(make_denoiser(in_channels=3), VPContinuousScheduler())
    pipeline.save_pretrained(tmp_path / "tiny")
    return tmp_path / "tiny"


@pytest.fixture
def archive(monkeypatch, tmp_path):
    """A small archive in the place of the runtime's, pinned as that is; the cache is empty."""
    made = tmp_path / browser.ARCHIVE
    with tarfile.open(made, "w:gz") as tar:
        for name in (*browser.RUNTIME_FILES, "ort.all.js"):
            member = tarfile.TarInfo(f"package/dist/{name}")
            member.size = len(name)
            tar.addfile(member, io.BytesIO(name.encode()))
    digest = base64.b64encode(hashlib.sha512(made.read_bytes()).digest()).decode()
    monkeypatch.setattr(browser, "INTEGRITY", digest)
    monkeypatch.setattr(constants, "HF_ASSETS_CACHE", str(tmp_path / "assets"))
    monkeypatch.setattr("huggingface_hub.utils._cache_assets.HF_ASSETS_CACHE", str(tmp_path / "assets"))
    return made


@pytest.fixture
def no_npm(monkeypatch):
    monkeypatch.setattr(browser.shutil, "which", lambda name: None)


@pytest.mark.parametrize("variant", ["classic", "stochastic"])
def test_the_clips_of_the_page_are_of_the_variant(make_denoiser, variant, tmp_path):
    denoiser = make_denoiser(in_channels=3, sample_size=64, num_frames=3)
    pipeline = VideoDiffusionPipeline(denoiser, VPContinuousScheduler())
    browser.write_clips(pipeline, tmp_path, variant)
    clips = MovingMNIST(split="test", num_frames=3, variant=variant).batch(range(browser.TEST_CLIPS))
    assert np.array_equal(Image.open(tmp_path / "clips.png"), rearrange(clips, "n f h w -> (n h) (f w)"))


# --------------------------------------------------------------------------------------------------------- the runtime
@pytest.fixture
def npm(archive, tmp_path, monkeypatch):
    """A program in the place of npm: it copies the archive, and notes what it was asked."""
    program, notes = tmp_path / "npm", tmp_path / "notes"
    program.write_text(
        f"#!{sys.executable}\nimport shutil, sys\nshutil.copy({str(archive)!r}, sys.argv[-1])\n"
        f"print(*sys.argv[1:3], file=open({str(notes)!r}, 'a'))"
    )
    program.chmod(0o755)
    monkeypatch.setattr(browser.shutil, "which", lambda name: str(program))
    return notes


def test_the_runtime_is_fetched_once_by_npm(npm):
    folder = browser.fetch_runtime()
    assert {file.name: file.read_text() for file in folder.iterdir()} == {name: name for name in browser.RUNTIME_FILES}
    assert browser.fetch_runtime() == folder
    assert npm.read_text().splitlines() == [f"pack onnxruntime-web@{browser.VERSION}"]


def test_an_altered_archive_is_not_opened(archive, npm):
    archive.write_bytes(archive.read_bytes() + b"!")
    with pytest.raises(ValueError, match=r"is not onnxruntime-web .* as it was pinned"):
        browser.fetch_runtime()


def test_without_npm_the_message_says_what_to_do_and_it_helps(archive, no_npm):
    with pytest.raises(
        OSError, match=r"there is no npm here.* run `npm pack onnxruntime-web@.*put .*here: "
    ) as caught:
        browser.fetch_runtime()
    Path(str(caught.value).rpartition("writes here: ")[2]).write_bytes(archive.read_bytes())
    assert (browser.fetch_runtime() / browser.RUNTIME_FILES[0]).is_file()


def test_a_failing_npm_is_quoted(archive, tmp_path, monkeypatch):
    npm = tmp_path / "npm"
    npm.write_text(f"#!{sys.executable}\nimport sys\nsys.exit('npm error code E404')")
    npm.chmod(0o755)
    monkeypatch.setattr(browser.shutil, "which", lambda name: str(npm))
    with pytest.raises(OSError, match=r"could not be fetched \(npm error code E404\)"):
        browser.fetch_runtime()


# ---------------------------------------------------------------------------------------------------- what is refused
def test_a_folder_with_something_in_it_is_refused(folder, tmp_path, capsys):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    assert main(["export", "page", "--model", str(folder), "--out", str(tmp_path / "out")]) == 2
    assert "expected a folder that is new or empty" in capsys.readouterr().err


def test_a_tokenizer_that_the_page_does_not_know_is_refused(make_denoiser):
    from transformers import BertTokenizer

    encoder, tokenizer = small_bert(16)
    assert browser.read_tokenizer(tokenizer, encoder) == {"vocab": tokenizer.get_vocab(), "length": 16}
    with pytest.raises(ValueError, match="expected BERT with its lower-case tokenizer"):
        browser.read_tokenizer(BertTokenizer(vocab=tokenizer.get_vocab(), do_lower_case=False), encoder)
    with pytest.raises(ValueError, match="expected BERT with its lower-case tokenizer"):
        browser.read_tokenizer(object(), encoder)


# ----------------------------------------------------------------------------------------------------- what is pushed
def test_push_is_one_commit_and_takes_away_what_is_no_longer_of_the_page(folder, tmp_path, monkeypatch, capsys):
    changed = []

    def export_page(pipeline, out, name):
        (out / "model").mkdir(parents=True)
        (out / "index.html").write_text("page" + "".join(changed))
        (out / "model" / "model.json").write_text(f'"{name}, {pipeline.unet.config.sample_size}"')
        return {file.relative_to(out).as_posix(): file for file in out.rglob("*") if file.is_file()}

    monkeypatch.setattr(browser, "export_page", export_page)
    with LoopbackHub({TOKEN: "alice"}) as hub:
        hub.log_in(monkeypatch, tmp_path, TOKEN)
        hub.put(ID, {"model/old.onnx": b"old", "notes.txt": b"mine"}, kind="spaces")
        command = ["space", "push", ID, "--static", "--model", str(folder), "--commit-message", "Open"]
        assert main(command) == 0
        assert hub.commits(ID, "spaces")[-1].message == "Open"
        files = hub.files(ID, "spaces")
        assert files == {
            "index.html": b"page",
            "model/model.json": f'"{folder}, 16"'.encode(),
            "notes.txt": b"mine",
        }
        assert "Published: " in capsys.readouterr().out
        hub.break_connection("POST", "/commit/", times=transfer.ATTEMPTS)
        changed.append("changed")
        assert main([*command[:-2], "--private"]) == 2
        assert f"`video-diffusion space push {ID} --private --static --model {folder}`" in capsys.readouterr().err


def test_the_front_matter_is_what_the_hub_reads_and_the_headers_are_those_of_the_server():
    metadata = yaml.safe_load((PAGE / "README.md").read_text(encoding="utf-8").split("---\n")[1])
    assert (metadata["sdk"], metadata["app_file"]) == ("static", "index.html")
    assert len(metadata["short_description"]) <= 60
    served = {name.lower(): value for name, value in HEADERS.items() if name.startswith("Cross-Origin")}
    isolating = ("cross-origin-opener-policy", "cross-origin-embedder-policy")
    assert {name: metadata["custom_headers"][name] for name in isolating} == {name: served[name] for name in isolating}
    assert set(metadata["custom_headers"]) == set(served)


def test_the_page_names_only_files_that_are_there():
    text = "".join(file.read_text(encoding="utf-8") for file in PAGE.glob("*.*") if file.suffix in (".js", ".html"))
    named = set(re.findall(r"""["'](?:\./)?([\w./-]+\.(?:js|css|mjs|wasm))["']""", text))
    assert named == {file.name for file in PAGE.iterdir() if file.suffix in (".js", ".css")} | {
        f"ort/{name}" for name in browser.RUNTIME_FILES
    }
    assert not re.findall(r"https?://(?!huggingface\.co')", text)  # nothing is fetched from elsewhere
    ids = set(re.findall(r"""\$\('([\w-]+)'\)""", text))
    assert ids <= set(re.findall(r'id="([\w-]+)"', text))
