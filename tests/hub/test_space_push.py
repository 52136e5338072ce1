"""`video-diffusion space push`: what goes to the Hub, and that the Space starts from it alone."""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

from demo_server import connect, free_port
from denoisers import SMALLEST, tiny_denoiser
from loopback_hub import LoopbackHub
from video_diffusion import VideoDiffusionPipeline, VPContinuousScheduler
from video_diffusion.cli import main
from video_diffusion.hub import transfer
from video_diffusion.hub.finding import ADAPTER, PACKAGE, embedded_adapters
from video_diffusion.hub.folder import export_folder
from video_diffusion.hub.publish import LEFT_OUT, push_space, space_files

ROOT = Path(__file__).parents[2]
SPACE = ROOT / "space"
TOKEN = "hf_" + "s" * 34
ID = "alice/demo"
MODEL = "video_diffusion/pipelines/tiny"


@pytest.fixture
def folder(make_denoiser, tmp_path):
    pipeline = VideoDiffusionPipeline(make_denoiser(in_channels=3), VPContinuousScheduler())
    out = export_folder(pipeline, tmp_path / "tiny")
    (out / "evaluation").mkdir()
    (out / "evaluation" / "paper.json").write_text("{}")
    (out / "optimizer.pt").write_bytes(b"pickle")
    (out / "checkpoint-5" / "unet").mkdir(parents=True)
    (out / "checkpoint-5" / "unet" / "old.safetensors").write_bytes(b"old")
    return out


@pytest.fixture
def hub(monkeypatch, tmp_path):
    with LoopbackHub({TOKEN: "alice"}) as hub:
        hub.log_in(monkeypatch, tmp_path, TOKEN)
        yield hub


def pins(text):
    return {line.split("==")[0].lower().replace("_", "-"): line for line in text.split() if "==" in line}


# ------------------------------------------------------------------------------------------------------ what is pushed
def test_push_is_one_commit_of_page_package_and_model(hub, folder, capsys):
    assert main(["space", "push", ID, "--model", str(folder), "--private", "--commit-message", "Open"]) == 0
    commits = hub.commits(ID, "spaces")
    assert [commit.message for commit in commits] == ["initial commit", "Open"]
    assert hub.repositories["spaces", ID].private
    assert capsys.readouterr().out.strip() == f"Published: {hub.url}/spaces/{ID}/commit/{commits[-1].sha}"
    files = hub.files(ID, "spaces")
    for name in ("app.py", "README.md", "requirements.txt"):
        assert files[name] == (SPACE / name).read_bytes()
    modules = {file.relative_to(PACKAGE) for file in PACKAGE.rglob("*.py")}
    own = {f"video_diffusion/{name}" for name in modules if name.parts[0] not in LEFT_OUT}  # an installed one has more
    assert "video_diffusion/demo/page.py" in own
    assert own <= set(files)
    parts = {name.removeprefix(f"{MODEL}/") for name in files if name.startswith(f"{MODEL}/")}
    weights = "unet/diffusion_pytorch_model.safetensors"
    assert parts == {"model_index.json", "unet/config.json", weights, "scheduler/scheduler_config.json"}
    assert files[f"{MODEL}/{weights}"] == (folder / weights).read_bytes()
    assert not [name for name in files if name.endswith((".pt", ".pyc")) or "__pycache__" in name]


def test_another_push_takes_away_what_is_no_longer_of_the_package_and_leaves_the_owners_files(hub, folder):
    ours = {"video_diffusion/old.py": b"", "video_diffusion/pipelines/gone/model_index.json": b"{}"}
    hub.put(ID, ours | {"notes.txt": b"mine", "pictures/a.txt": b"mine"}, kind="spaces")
    push_space(ID, model=folder)
    files = hub.files(ID, "spaces")
    assert not set(ours) & set(files)
    assert files["notes.txt"] == files["pictures/a.txt"] == b"mine"


def test_an_adapter_goes_with_its_base_and_one_of_another_base_is_refused(tmp_path, monkeypatch):
    shelf = tmp_path / "shelf"
    monkeypatch.setattr("video_diffusion.hub.finding.SHELVES", (shelf,))
    pipeline = VideoDiffusionPipeline(tiny_denoiser(**SMALLEST), VPContinuousScheduler())
    export_folder(pipeline, shelf / "tiny")
    adapter = shelf / "tiny-few"
    adapter.mkdir()
    (adapter / ADAPTER).write_bytes(b"weights")
    (adapter / "README.md").write_text("card")
    (adapter / "run.json").write_text(json.dumps({"pretrained_model_name_or_path": "tiny"}))
    files = space_files("tiny-few")
    parts = {name for name in files if "/tiny-few/" in name}
    assert parts == {"video_diffusion/pipelines/tiny-few/run.json", f"video_diffusion/pipelines/tiny-few/{ADAPTER}"}
    assert f"{MODEL}/unet/diffusion_pytorch_model.safetensors" in files
    assert list(embedded_adapters()) == ["tiny-few"]
    elsewhere = shutil.copytree(shelf / "tiny", tmp_path / "elsewhere")
    (adapter / "run.json").write_text(json.dumps({"pretrained_model_name_or_path": str(elsewhere)}))
    with pytest.raises(ValueError, match="expected one of an embedded model"):
        space_files("tiny-few")


def test_what_is_no_model_or_a_pickle_is_refused_before_anything_is_sent(hub, folder, tmp_path, capsys):
    assert main(["space", "push", ID, "--model", str(tmp_path / "nowhere")]) == 2
    known = "moving-mnist, smmnist, moving-mnist-4step, moving-mnist-text"
    assert f"expected an embedded one ({known}) or the folder of a pipeline" in capsys.readouterr().err
    (folder / "unet" / "diffusion_pytorch_model.safetensors").rename(folder / "unet" / "diffusion_pytorch_model.bin")
    with pytest.raises(ValueError, match=r"unet/diffusion_pytorch_model.bin is a pickle"):
        space_files(folder)
    assert hub.requests == []


# -------------------------------------------------------------------------------------------------------------- tokens
def test_the_token_is_never_printed_whatever_happens(hub, folder, capsys, caplog):
    caplog.set_level("DEBUG")
    words = ["space", "push", ID, "--model", str(folder)]
    assert main(words) == 0
    hub.break_connection("POST", "/commit/", times=1)
    (folder / "unet" / "config.json").write_text((folder / "unet" / "config.json").read_text() + "\n")
    assert main(words) == 0
    hub.break_connection("POST", "/commit/", times=transfer.ATTEMPTS)
    (folder / "unet" / "config.json").write_text((folder / "unet" / "config.json").read_text() + "\n")
    assert main(words) == 2
    assert main(["space", "push", "bob/demo", "--model", str(folder)]) == 2
    (folder / "scheduler" / "scheduler_config.json").write_text(f'{{"note": "{TOKEN}"}}')
    assert main(words) == 2
    printed = "".join(capsys.readouterr())
    assert f"go on with `video-diffusion space push {ID} --model {folder}`" in printed
    assert "holds a token of the Hub" in printed
    assert TOKEN not in printed + caplog.text
    assert not [name for name, data in hub.files(ID, "spaces").items() if TOKEN.encode() in data]


# ------------------------------------------------------------------------------------------------------------ the page
def test_the_front_matter_is_what_the_hub_reads():
    metadata = yaml.safe_load((SPACE / "README.md").read_text().split("---\n")[1])
    assert metadata["sdk"] == "gradio"
    assert f"gradio=={metadata['sdk_version']}" == pins((ROOT / "constraints.txt").read_text())["gradio"]
    assert (SPACE / metadata["app_file"]).is_file()
    assert metadata["license"] == "apache-2.0"
    assert len(metadata["short_description"]) <= 60
    assert metadata["colorFrom"] in ("red", "yellow", "green", "blue", "indigo", "purple", "pink", "gray")


def test_the_requirements_are_the_pins_of_what_the_package_needs():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    needed = project["dependencies"] + project["optional-dependencies"]["demo"]
    names = {re.split("[<>=]", item)[0].lower().replace("_", "-") for item in needed} | {"transformers"}
    wanted = pins((ROOT / "constraints.txt").read_text())
    assert pins((SPACE / "requirements.txt").read_text()) == {name: wanted[name] for name in names}


def test_the_package_loads_no_gradio_before_the_page_is_asked_for():
    code = "import sys, video_diffusion.cli as c; c.build_parser(); assert not {'gradio', 'torch'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
    assert ast.parse((SPACE / "app.py").read_text())


def test_the_pushed_folder_starts_by_itself_and_answers(folder, tmp_path):
    port = free_port()
    for name, file in space_files(folder).items():
        target = tmp_path / "space" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(file.read_bytes())
    env = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "MODEL")}
    env |= {"GRADIO_SERVER_PORT": str(port), "GRADIO_ANALYTICS_ENABLED": "False", "OMP_NUM_THREADS": "1"}
    log = tmp_path / "log"
    with log.open("wb") as out:
        process = subprocess.Popen([sys.executable, "app.py"], cwd=tmp_path / "space", env=env, stdout=out, stderr=out)
    try:
        client = connect(port, tmp_path / "answers", lambda: process.poll() is None, log)
        asked = {"frames": 3, "sampler": "dpm++", "steps": 2}
        gif, *_ = client.predict(**asked, api_name="/generate")
        assert Path(gif).read_bytes()[:4] == b"GIF8"
    finally:
        process.terminate()
        process.wait(30)
