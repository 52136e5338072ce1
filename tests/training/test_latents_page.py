"""The page on latents runs from top to bottom with tiny networks; commands and file names are the page's."""

import json
import re
import runpy
import shlex
from pathlib import Path

import numpy as np

from video_diffusion.cli import main
from video_diffusion.training import command

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "latents.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(bash|python)\n(.*?)^```$", PAGE, flags=re.MULTILINE | re.DOTALL)
STEPS = ["--max_steps", "1", "--per_device_batch_size", "1", "--validation_videos", "2", "--tracker", "none"]
DENOISER = ["--block_out_channels", "16", "32", "--transformer_layers", "1", "--attention_head_dim", "16"]
SHORTER = {
    "training/examples/make_videos.py": ["--num-videos", "2", "--num-validation", "2"],
    "training/train_vae.py": [*STEPS, "--width", "4"],
    "latents": [],
    "train": [*STEPS, *DENOISER, "--norm_num_groups", "8", "--validation_steps", "0"],
    "generate": ["--num-videos", "1", "--steps", "1"],
}


def test_every_block_of_the_page_runs_in_turn(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    ran = []
    for language, code in BLOCKS:
        if language == "python":
            file = Path("runs/latents/generation_config.json")
            file.write_text(json.dumps(json.loads(file.read_text()) | {"num_inference_steps": 1}))
            names = {}
            exec(compile(code, "latents.md", "exec"), names)
            assert names["clip"].shape == names["future"].shape == (9, 64, 64, 3)
            assert np.array_equal(names["future"][:5], names["clip"][:5])
            assert names["latents"].shape == (1, 4, 3, 16, 16)
            continue
        for line in code.replace("\\\n", " ").splitlines():
            program, *words = shlex.split(line, comments=True)
            ran.append(words[0])
            words += SHORTER[words[0]]
            if words[0] == "training/train_vae.py":
                assert command.train_vae(words[1:]) == 0
            elif program == "python":
                assert runpy.run_path(str(ROOT / words[0]))["main"](words[1:]) == 0
            else:
                assert main(words) == 0, words
    assert ran == [*SHORTER]
    assert "4 windows of each, are read from" in capsys.readouterr().err
    assert list(Path("samples/latents").glob("*.gif"))


def test_the_page_names_the_classes_that_are_refused():
    from video_diffusion.model.autoencoding import REFUSED

    assert {*re.findall(r"`(\w+)` \(", PAGE[PAGE.index("Refused by name") :])} <= {*REFUSED}
