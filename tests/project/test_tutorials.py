"""Every block of code of the tutorials runs, top to bottom, with a tiny model in the place of the embedded one.

The networks are small enough to need milliseconds; commands, options and file names are those on the page. Lines that
make the environment (`pip`, `git`, `. .venv`) are left out, and what is long by nature is made short: see `SHORTER`.
"""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from denoisers import small_moving_mnist
from loopback_hub import LoopbackHub
from stand_ins import AbsoluteError, some_pixels
from video_diffusion import VideoDiffusionPipeline, evaluation
from video_diffusion.cli import main
from video_diffusion.data import MovingMNIST
from video_diffusion.data.video_io import write_gif, write_mp4
from video_diffusion.hub import finding
from video_diffusion.training.lora import parse_adaptation

ROOT = Path(__file__).parents[2]
TUTORIALS = ROOT / "docs" / "tutorials"
ENVIRONMENT = ("python -m venv", "pip install", "git clone", ". .venv", "python training/examples/make_videos.py")
TOKEN = "hf_" + "t" * 34
SHORTER = {  # on the page → here
    "--num-videos 1000 ": "--num-videos 4 --num-frames 3 ",
    "--num-videos 32": "--num-videos 4",
    "runs/digits --protocol paper --out": "runs/digits --protocol paper --num-videos 2 --steps 1 --out",
    "accelerate launch training/train.py": "video-diffusion train",
}


@pytest.fixture(scope="module")
def shelf(tmp_path_factory):
    """A shelf of embedded models with one tiny `moving-mnist`: 20 frames of 64×64 pixels, reads text."""
    out = tmp_path_factory.mktemp("pipelines")
    pipeline = small_moving_mnist()
    pipeline.generation_config = {"sampler": "dpm++", "num_inference_steps": 2}
    pipeline.save_pretrained(out / "moving-mnist")
    return out


@pytest.fixture
def desk(shelf, tmp_path, monkeypatch):
    """An empty folder to work in, where the only embedded model is the tiny one and no metric loads a network."""
    monkeypatch.setattr(finding, "SHELVES", (shelf,))
    stub = partial(evaluation.Scorer, features=some_pixels, lpips=AbsoluteError())
    monkeypatch.setattr(evaluation, "Scorer", stub)  # in the place of I3D and LPIPS
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def hub(monkeypatch, tmp_path):
    with LoopbackHub({TOKEN: "you"}) as hub:
        hub.log_in(monkeypatch, tmp_path, TOKEN)
        yield hub


def blocks(page):
    """The blocks of a page: language and code, indented ones too."""
    found = re.findall(
        r"^( *)```(\w+)\n(.*?)^\1```$", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL
    )
    return [(language, re.sub(rf"^{indent}", "", code, flags=re.MULTILINE)) for indent, language, code in found]


def run(code, more=()):
    """Runs the commands of a block as the shell would read them."""
    for line in code.replace("\\\n", " ").splitlines():
        line = line.split("  #")[0].strip()
        if not line or line.startswith(ENVIRONMENT):
            continue
        for long, short in SHORTER.items():
            line = line.replace(long, short)
        words = shlex.split(line)
        assert words[0] == "video-diffusion", line
        words += more if words[1] in ("train", "train-lora") else []
        assert main(words[1:]) == 0, line


def play(page, more=(), between=lambda number: None, skip=()):
    """Runs a page; `between` is called before each block with its number."""
    names = {}
    for number, (language, code) in enumerate(blocks(page)):
        between(number)
        if number in skip:
            continue
        if language == "bash":
            run(code, more)
        elif language == "python":
            exec(compile(code, f"{page.name}, block {number}", "exec"), names)
        else:
            pytest.fail(f"{page.name} has a block in {language}")
    return names


def test_each_tutorial_has_its_test():
    pages = {page.stem for page in TUTORIALS.glob("*.md")}
    here, beside = Path(__file__), ROOT / "tests" / "training" / "test_own_videos_tutorial.py"
    tested = set(re.findall(r'TUTORIALS / "(\w+)\.md"', here.read_text(encoding="utf-8")))
    assert "own_videos.md" in beside.read_text(encoding="utf-8")
    assert pages == tested | {"own_videos"}
    assert all(blocks(TUTORIALS / f"{page}.md") for page in pages)


def test_first_clip(desk, capsys):
    names = play(TUTORIALS / "first_clip.md")
    assert (desk / "samples" / "generate-00.gif").is_file()
    assert (desk / "clip.gif").read_bytes()[:4] == b"GIF8"
    assert np.shape(names["clips"][0]) == (20, 64, 64)
    options = re.findall(r"^\| `(--\S+) (\S+)` \|", (TUTORIALS / "first_clip.md").read_text(), flags=re.MULTILINE)
    assert len(options) == 5
    for name, value in options:
        wanted = ["--num-videos", "1", "--num-frames", "2", "--steps", "1", name, value]
        assert main(["generate", *wanted, "--out", f"other{name}"]) == 0


def test_predict(desk):
    clip = MovingMNIST(split="test", num_frames=20).batch([5])[0][..., None]
    write_gif(clip, desk / "my-digits.gif")
    names = play(TUTORIALS / "predict.md")
    assert (desk / "samples" / "predict.png").is_file()
    for name, given in {"future": range(5), "between": (0, 19), "past": range(15, 20)}.items():
        for place in given:
            assert np.array_equal(np.asarray(names[name][place]), names["clip"][place, ..., 0])


def test_measure(desk):
    def predict(number):
        if number == 2:  # what the other system does: the last given frame, again and again
            truth = np.load("truth.npy")
            Path("predicted").mkdir()
            for i, clip in enumerate(truth[:4]):
                np.save(f"predicted/clip-{i:03}.npy", np.repeat(clip[4:5, ..., 0], 5, axis=0))

    play(TUTORIALS / "measure.md", between=predict)
    report = json.loads(next((desk / "scores").glob("*.json")).read_text())
    assert report["protocol"] == "paper"
    assert list((desk / "scores").glob("*.md"))


def test_train(desk, monkeypatch):
    digits = desk / "digits.npz"
    np.savez(digits, images=np.full((20, 28, 28), 200, np.uint8), labels=np.arange(20) % 10)
    threads = torch.get_num_threads()
    tiny = [
        *("--block_out_channels", "32", "32", "--layers_per_block", "1", "0", "--attention_head_dim", "16"),
        *(
            "--transformer_layers",
            "1",
            "--cross_attention_every",
            "1",
            "--num_frames",
            "3",
            "--max_steps",
            "1",
            "--per_device_batch_size",
            "1",
        ),
        *("--validation_steps", "0", "--sample_steps", "0", "--mixed_precision", "no", "--compile", "False"),
        *("--dataloader_num_workers", "0", "--max_text_length", "48", "--tracker", "none"),
    ]

    def embed(number):
        """The released weights that a run goes on from are those of the first run here: of the size of `tiny`."""
        trained, released = desk / "runs" / "digits", desk / "shelf" / "moving-mnist"
        if trained.is_dir() and not released.is_dir():
            shutil.copytree(trained, released)
            monkeypatch.setattr(finding, "SHELVES", (released.parent,))

    play(TUTORIALS / "train.md", more=tiny, between=embed)
    torch.set_num_threads(threads)
    for made in ("digits", "more"):
        assert (desk / "runs" / made / "model_index.json").is_file()


def test_lora(desk, hub, shelf):
    mine = VideoDiffusionPipeline.from_pretrained(shelf / "moving-mnist")
    next(layer for name, layer in mine.unet.named_modules() if name.endswith("to_q")).weight.data += 0.1
    mine.save_pretrained(desk / "runs" / "mine")
    for split in ("train", "validation"):
        (desk / "my-videos" / split).mkdir(parents=True)
        write_mp4(np.full((12, 32, 32, 1), 200, np.uint8), desk / "my-videos" / split / "a.mp4", fps=8, scale=1)
        (desk / "my-videos" / split / "a.txt").write_text("a white circle")
    tiny = ["--max_steps", "1", "--per_device_batch_size", "1", "--lora_target_modules", "to_q", "--tracker", "none"]
    names = play(TUTORIALS / "lora.md", more=[*tiny, "--validation_videos", "1", "--lora_rank", "2"])
    assert len(names["clip"]) == 4
    assert (desk / "runs" / "mine-lora" / "pytorch_lora_weights.safetensors").is_file()
    assert names["pipe"].get_list_adapters() == {}
    assert hub.files("you/shapes-lora").keys() >= {"README.md", "pytorch_lora_weights.safetensors", "run.json"}
    flags = re.findall(r"^\| `(--[^`]+)` \|", (TUTORIALS / "lora.md").read_text(), flags=re.MULTILINE)
    assert len(flags) == 7
    for flag in flags:
        parse_adaptation(flag.split())


def test_publish(desk, hub, shelf, monkeypatch):
    asked = []
    monkeypatch.setattr("video_diffusion.hub.onnx.export_onnx", lambda *args, **options: asked.append(args) or {})
    VideoDiffusionPipeline.from_pretrained(shelf / "moving-mnist").save_pretrained(desk / "runs" / "digits")
    assert main(["dataset", "build", "--num-videos", "4", "--num-frames", "3", "--out", "my-clips"]) == 0
    page = TUTORIALS / "publish.md"
    loads = [number for number, (language, _) in enumerate(blocks(page)) if language == "python"]
    assert len(loads) == 2
    play(page, skip=loads)
    code = "\n".join(blocks(page)[number][1] + "print(type(pipe).__name__)" for number in loads)
    ready = os.environ | hub.environment(desk / "home", TOKEN)  # a process that finds this Hub from its start
    printed = subprocess.run([sys.executable, "-c", code], env=ready, capture_output=True, text=True, timeout=120)
    assert printed.stdout.split() == ["VideoDiffusionPipeline"] * 2, printed.stderr
    assert "README.md" in hub.files("you/moving-digits")
    assert "app.py" in hub.files("you/moving-digits-demo", "spaces")
    assert [out.name for _, out in asked] == ["onnx"]  # tests/hub/test_onnx.py exports for real


def test_the_notebook_runs_top_to_bottom(desk):
    book = json.loads((TUTORIALS / "first_clip.ipynb").read_text(encoding="utf-8"))
    assert (book["nbformat"], book["nbformat_minor"]) == (4, 5)
    names, cells = {}, [cell for cell in book["cells"] if cell["cell_type"] == "code"]
    assert len(cells) >= 6
    for number, cell in enumerate(cells):
        assert (cell["outputs"], cell["execution_count"]) == (
            [],
            None,
        )  # what is kept is code, not one machine's pictures
        exec(compile("".join(cell["source"]), f"cell {number}", "exec"), names)
    assert (desk / "future.gif").is_file()
    assert names["futures"].shape == (3, 10, 64, 64, 1)
    assert len({cell["id"] for cell in book["cells"]}) == len(book["cells"])


def test_the_answer_about_own_videos_trains(desk):
    own = np.random.default_rng(0).integers(0, 255, (3, 6, 40, 40, 1), np.uint8)
    (desk / "my-videos").mkdir()
    for i, clip in enumerate(own):
        write_gif(clip, desk / "my-videos" / f"{i}.gif", scale=1)
    text = (ROOT / "docs" / "faq.md").read_text(encoding="utf-8")
    part = text[text.index("## Can I train on my own GIFs") : text.index("## Which sizes")]
    (desk / "part.md").write_text(part)
    tiny = ["--num_frames", "3", "--max_steps", "1", "--per_device_batch_size", "1", "--validation_steps", "0"]
    play(desk / "part.md", more=[*tiny, "--sample_steps", "0", "--tracker", "none"])
    assert (desk / "runs" / "mine" / "model_index.json").is_file()
