"""The tutorial on own videos runs from top to bottom with a tiny network; commands and file names are the page's."""

import importlib.util
import json
import re
import shlex
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from loopback_hub import LoopbackHub
from stand_ins import AbsoluteError, some_pixels
from video_diffusion import VideoDiffusionPipeline, evaluation
from video_diffusion.cli import main
from video_diffusion.data import load_videos
from video_diffusion.data.reading import read_video
from video_diffusion.training import dry_run

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "tutorials" / "own_videos.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(bash|python)\n(.*?)^```$", PAGE, flags=re.MULTILINE | re.DOTALL)
SCRIPT = ROOT / "training" / "examples" / "make_videos.py"
TINY = [  # in the place of the preset's
    *("--block_out_channels", "16", "32", "--transformer_layers", "1", "--attention_head_dim", "16"),
    *("--norm_num_groups", "8", "--per_device_batch_size", "2", "--max_steps", "2", "--validation_videos", "2"),
    *("--tracker", "none"),
]
SHORTER = {
    "make_videos.py my-videos": "make_videos.py my-videos --num-videos 4 --num-validation 3",
    "--num-videos 1000 ": "--num-videos 4 ",
}
TOKEN = "hf_" + "t" * 34
STUB = partial(evaluation.Scorer, features=some_pixels, lpips=AbsoluteError())  # in the place of I3D and LPIPS
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # huggingface_hub's own


@pytest.fixture(scope="module")
def example():
    spec = importlib.util.spec_from_file_location("make_videos", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A Hub where somebody called you is logged in."""
    with LoopbackHub({TOKEN: "you"}) as hub:
        hub.log_in(monkeypatch, tmp_path, TOKEN)
        yield hub


def commands(code):
    """The lines of a block as lists of words, with what is long made short."""
    for line in code.replace("\\\n", " ").splitlines():
        for long, short in SHORTER.items():
            line = line.replace(long, short)
        if words := shlex.split(line, comments=True):
            yield words


def test_every_command_of_the_page_runs_in_turn(example, hub, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(dry_run, "LOADING", 0.05)
    monkeypatch.setattr(evaluation, "Scorer", STUB)
    ran, settings = [], tmp_path / "runs" / "shapes" / "generation_config.json"
    for language, code in BLOCKS:
        if language == "python":
            names = {}
            exec(compile(code, "own_videos.md", "exec"), names)
            assert names["clips"].shape == (3, 10, 32, 48, 3)
            continue
        for words in commands(code):
            ran.append(words[1])
            if words[0] == "pip":
                continue
            if words[0] == "python":
                assert words[1] == SCRIPT.relative_to(ROOT).as_posix()
                assert example.main(words[2:]) == 0
                continue
            assert words[0] == "video-diffusion"
            assert main([*words[1:], *(TINY if words[1] == "train" else [])]) == 0, words
            if settings.is_file():
                settings.write_text(json.dumps(json.loads(settings.read_text()) | {"num_inference_steps": 1}))
    assert set(ran) >= {"train", "generate", "predict", "evaluate", "card", "push", "space", "dataset"}
    said = capsys.readouterr().out
    assert "from the loader alone" in said
    for name in ("generate-03", "predict-00"):
        assert len(read_video(tmp_path / "samples" / "shapes" / f"{name}.gif")) == 10
    assert main(["pull", "you/shapes", "pulled"]) == 0
    pushed = VideoDiffusionPipeline.from_pretrained(tmp_path / "pulled")
    clip = pushed("a red circle", num_inference_steps=1, output_type="np", generator=torch.Generator().manual_seed(0))
    assert np.shape(clip.frames) == (1, 10, 32, 32, 3)
    card = (tmp_path / "runs" / "shapes" / "README.md").read_text(encoding="utf-8")
    assert "videos of the folder `my-videos`" in card
    assert "protocol videos" in card  # in the front matter
    assert "Own videos, 5 given and 5 predicted frames of 32×32" in card
    assert "app.py" in hub.files("you/shapes-demo", "spaces")
    assert str(tmp_path) not in card


def test_the_notebook_runs_top_to_bottom(tmp_path, monkeypatch, capsys):
    (tmp_path / "training").symlink_to(ROOT / "training")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(dry_run, "LOADING", 0.05)
    monkeypatch.setattr(evaluation, "Scorer", STUB)
    book = json.loads((ROOT / "docs" / "tutorials" / "own_videos.ipynb").read_text(encoding="utf-8"))
    names, cells = {}, [cell for cell in book["cells"] if cell["cell_type"] == "code"]
    assert len(cells) == 8
    for number, cell in enumerate(cells):
        assert (cell["outputs"], cell["execution_count"]) == ([], None)  # what is kept is code
        exec(compile("".join(cell["source"]).replace("30", "2"), f"cell {number}", "exec"), names)
    assert len(names["frames"]) == 10
    assert "protocol videos" in Path("runs/shapes/README.md").read_text()
    assert "Protocol `videos`" in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["training"]  # it keeps its files to itself


def test_every_flag_of_the_table_is_one(tmp_path):
    from video_diffusion.training.train_arguments import parse_arguments

    flags = re.findall(r"^\| `(--[^`]+)` \|", PAGE, flags=re.MULTILINE)
    assert len(flags) >= 7
    for flag in flags:
        parse_arguments(flag.split())


# ------------------------------------------------------------------------------------------------ the example's script
def test_the_example_is_of_several_sizes_rates_and_lengths_and_the_same_every_time(example, tmp_path):
    for name in "ab":
        example.make_folder(tmp_path / name, 6, seed=3)
    one, other = (load_videos(tmp_path / name, num_frames=8, image_size=24, fps=8) for name in "ab")
    assert len({(video.height, video.width) for video in one.videos}) > 2
    assert len({video.num_frames for video in one.videos}) > 2
    assert len({round(1 / video.times[1]) for video in one.videos}) > 1
    assert np.array_equal(one.batch(range(6)), other.batch(range(6)))
    words = [text.split() for text in one.captions("caption")]
    for video, (article, colour, shape) in zip(one.videos, words, strict=True):
        assert article == "a"
        assert video.name.endswith(f"-{colour}-{shape}.mp4")
        frame = video.read([5])[0].astype(int)
        ink = frame[frame.sum(-1) > 150].mean(0)
        assert colour == min(example.COLOURS, key=lambda name: np.abs(ink - example.COLOURS[name]).sum())


def test_shapes_keep_inside_and_turn_back_at_the_edges(example):
    clip = example.draw_video("circle", "white", 24, 6, (48, 64), np.random.default_rng(0)).astype(int)
    ink = clip.sum(-1) > 400
    y = np.array([np.nonzero(frame)[0].mean() for frame in ink])
    assert np.ptp(y) > 48 - 2 * 0.16 * 48 - 3
    assert (np.diff(np.sign(np.diff(y[::4]))) != 0).any()
    assert ink.sum((1, 2)).std() / ink.sum((1, 2)).mean() < 0.05  # never cut off


def test_the_script_refuses_what_is_there_and_what_is_no_number(example, tmp_path, capsys):
    for words, message in (([str(tmp_path)], "exists"), ([str(tmp_path / "new"), "--num-videos", "0"], "at least 1")):
        with pytest.raises(SystemExit):
            example.main(words)
        assert message in capsys.readouterr().err
