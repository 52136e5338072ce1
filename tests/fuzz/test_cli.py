"""The command line under random nonsense: each case ends in time, with a code and a sentence, never with a traceback.

The seed is fixed: a case that fails is the same on every machine.
"""

import os
import signal
import struct
import zlib

import numpy as np
import pytest
import torch

from video_diffusion import VideoDiffusionPipeline, VideoUNet3DConditionModel, VPContinuousScheduler
from video_diffusion.cli import main
from video_diffusion.data.video_io import write_gif, write_mp4

CASES = int(os.environ.get("FUZZ_CASES", 100))  # CI runs 1,000
SECONDS = 8  # the most that one may take
NUMBERS = (
    "0",
    "-1",
    "2",
    "2.5",
    "1e-30",
    "1e308",
    "nan",
    "inf",
    "-inf",
    str(2**31),
    str(2**63),
    str(2**64),
    str(10**30),
)
WORDS = ("", " ", "None", "0x10", "٣", "🎞", "x" * 5000, "..", "/dev/null", "-", "--", "a/b", "%s", "{}", "\n")
GENERATE = {
    "--num-videos": "1",
    "--num-frames": "4",
    "--steps": "1",
    "--seed": "0",
    "--sampler": "ddim",
    "--gamma": "0.3",
    "--fps": "8",
    "--batch-size": "4",
    "--window-overlap": "1",
    "--window-scheme": "autoregressive",
    "--history-guidance": "1",
    "--reconstruction-guidance": "1",
    "--guidance-scale": "1",
    "--prompt": "a 3",
    "--negative-prompt": "a 7",
    "--device": "cpu",
    "--dtype": "float32",
    "--out": "samples",
    "--model": "moving-mnist",
}
BUILD = {
    "--num-videos": "2",
    "--split": "test",
    "--variant": "classic",
    "--num-frames": "3",
    "--image-size": "32",
    "--num-digits": "1",
    "--speed": "1",
    "--seed": "0",
    "--digits": "nowhere",
    "--digit-range": "0 5",
    "--captions": "train",
    "--out": "set",
}
SAMPLED = ("--model", "--steps", "--out", "--device", "--num-videos")
NEEDED = {"generate": SAMPLED, "predict": SAMPLED, "interpolate": SAMPLED}
NEEDED["build"] = ("--out", "--num-videos", "--num-frames", "--image-size")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    config = {"sample_size": 32, "num_frames": 4, "in_channels": 3, "out_channels": 1, "patch_size": 4}
    config |= {"block_out_channels": (8, 8), "layers_per_block": 1, "norm_num_groups": 4, "attention_head_dim": 8}
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("models") / "tiny"
    VideoDiffusionPipeline(VideoUNet3DConditionModel(**config), VPContinuousScheduler()).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Files that are good, and files that are broken, false or too large in each way that we know."""
    folder = tmp_path_factory.mktemp("files")
    rng = np.random.default_rng(0)
    clip = rng.integers(0, 256, (5, 32, 32, 1), dtype=np.uint8)
    write_gif(clip, folder / "good.gif", scale=1)
    write_mp4(clip, folder / "good.mp4", scale=2)
    np.save(folder / "good.npy", clip)
    for name in ("good.gif", "good.mp4", "good.npy"):
        data = (folder / name).read_bytes()
        (folder / f"half-{name}").write_bytes(data[: len(data) // 2])
        (folder / f"junk-{name}").write_bytes(data[:16] + rng.bytes(500))
        for place in range(3):
            changed = bytearray(data)
            changed[int(rng.integers(len(data)))] ^= int(rng.integers(1, 256))
            (folder / f"flip{place}-{name}").write_bytes(changed)
    (folder / "empty.gif").touch()
    (folder / "empty").mkdir()
    (folder / "text.gif").write_text("#!/bin/sh\n")
    np.save(folder / "objects.npy", np.array([{}], dtype=object), allow_pickle=True)
    np.save(folder / "nan.npy", np.full((4, 32, 32), np.nan))
    np.save(folder / "scalar.npy", np.uint8(3))
    np.save(folder / "none.npy", np.zeros((0, 32, 32), np.uint8))
    with (folder / "claim.npy").open("wb") as file:
        header = {"descr": "|u1", "fortran_order": False, "shape": (10**6, 10**6, 10**6)}
        np.lib.format.write_array_header_1_0(file, header)
    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 0, 0, 0, 0)
    bomb = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(10_000)))
    (folder / "bomb.png").write_bytes(bomb + chunk(b"IEND", b""))
    return sorted(map(str, folder.iterdir()))


def chunk(kind, data):
    """One chunk of a PNG."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def draw(rng, model, files):
    """A command line: a good one, of which some values are nonsense."""
    kind = rng.choice(["generate", "predict", "interpolate", "build", "other"], p=[0.3, 0.3, 0.15, 0.15, 0.1])
    values = NUMBERS + WORDS
    if kind == "other":
        known = ["push", "pull", "card", "export onnx --model", "evaluate --protocol paper --model", "demo --model"]
        known += ["dataset push", "space push", "metrics fetch --only", "completion", "nonsense", "demo --port"]
        places = [*files[:10], *values[:6], *WORDS]
        words = str(rng.choice(known)).split()
        return [*words, *(str(rng.choice(places)) for _ in range(rng.integers(1, 3)))]
    base = BUILD if kind == "build" else GENERATE | {"--model": model}
    asked = {name: base[name] for name in NEEDED[str(kind)]}
    nonsense = int(rng.integers(3))  # how many values of it
    for name in rng.choice(list(base), nonsense, replace=False):
        asked[str(name)] = str(rng.choice(files if rng.random() < 0.1 else values))
    line = [word for name, value in asked.items() for word in (name, *(value.split() if " " in value else [value]))]
    if kind == "build":
        return ["dataset", "build", *line]
    if kind == "generate":
        return ["generate", *line]
    good = [file for file in files if "/good" in file]
    source = ["--from-dataset", str(rng.choice(NUMBERS))] if rng.random() < 0.2 else [str(rng.choice(files))]
    return [str(kind), *(source if rng.random() < 0.5 else [str(rng.choice(good))]), *line, "--given", "1"]


class TooLongError(BaseException):
    """A case took more than its time; nothing catches this on its way."""


def too_long(number, frame):
    raise TooLongError


def test_no_command_line_ends_in_a_traceback_or_not_at_all(model, files, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("gradio.Blocks.launch", lambda page, **options: None)
    rng, codes, failures = np.random.default_rng(0), {}, []
    previous = signal.signal(signal.SIGALRM, too_long)
    try:
        for case in range(CASES):
            words = draw(rng, model, files)
            (tmp_path / f"{case}").mkdir()
            monkeypatch.chdir(tmp_path / f"{case}")
            signal.alarm(SECONDS)
            try:
                code = main(words)
            except SystemExit as end:
                code = end.code
            except BaseException as error:
                code = f"{type(error).__name__}: {str(error)[:200]}"
            signal.alarm(0)
            said = capsys.readouterr().err
            codes[code] = codes.get(code, 0) + 1
            if code not in (0, 2) or (code == 2 and not said.strip()) or "Traceback" in said:
                failures.append((code, [word[:60] for word in words], said[-200:]))
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, previous)
    assert not failures
    assert codes[0] >= 20, codes  # some lines were good, else nothing deep was reached
    assert codes[2] > CASES / 2, codes
