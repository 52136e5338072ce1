import argparse
import json
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from denoisers import tiny_denoiser
from stand_ins import AbsoluteError, some_pixels
from video_diffusion import VideoDiffusionPipeline, VPContinuousScheduler, cli, evaluation
from video_diffusion.commands import evaluate
from video_diffusion.evaluation import PROTOCOLS, figure
from video_diffusion.evaluation.run import read_clips
from video_diffusion.evaluation.sources import clip_generator
from video_diffusion.hub.folder import export_folder
from video_diffusion.hub.loading import weights_digest

SIZE = 40  # the smallest that stochastic digits (33) and patches of 8 both take


@pytest.fixture(autouse=True)
def stand_ins(monkeypatch):
    """No network is loaded for the metrics, and only one process runs."""
    stub = partial(evaluation.Scorer, features=some_pixels, lpips=AbsoluteError())
    monkeypatch.setattr(evaluation, "Scorer", stub)
    monkeypatch.delenv("WORLD_SIZE", raising=False)


@pytest.fixture(autouse=True)
def no_pictures(request, monkeypatch):
    """Pictures, which take longer than all else here, are left to the tests that look at them."""
    if "picture" not in request.node.name:
        monkeypatch.setattr(figure, "draw_panels", lambda *args, **options: np.zeros((4, 4, 3), np.uint8))


def save_model(folder, in_channels=3):
    config = {"sample_size": SIZE, "num_frames": 10, "in_channels": in_channels, "patch_size": 8}
    unet = tiny_denoiser(block_out_channels=(8,), **config)
    VideoDiffusionPipeline(unet, VPContinuousScheduler(prediction_type="v_prediction")).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def command(model, tmp_path):
    """Runs a command line with the tiny model; returns the report that it wrote."""

    def run(protocol, *words, name="out", model=model):
        out = tmp_path / name
        common = ["--model", model, "--protocol", protocol, "--steps", "2", "--num-videos", "2", "--dtype", "float32"]
        assert cli.main(["evaluate", *common, "--out", str(out), *words]) == 0
        return json.loads((out / f"{protocol}.json").read_text())

    return run


def test_it_writes_the_json_the_table_and_the_picture_and_prints_the_table(command, model, tmp_path, capsys):
    report = command("paper")
    folder = tmp_path / "out"
    assert {file.name for file in folder.iterdir()} == {"paper.json", "paper.md", "paper.png", "paper-parts"}
    output = capsys.readouterr()
    table = (folder / "paper.md").read_text()
    assert table in output.out
    assert "paper: 100%" in output.err
    assert Image.open(folder / "paper.png").size[0] > 10 * 40
    ours = report["figures"]["psnr"]["one_sample"]["first_frames"]["5"]["psnr"]
    assert f"| {ours:.2f} |" in table
    assert set(report["versions"]) == {"python", "video-diffusion", "torch", "diffusers", "numpy"}
    options = "--num-videos 2 --num-samples 1 --sampler ancestral --steps 2 --seed 0"
    assert report["command"] == f"video-diffusion evaluate --model {model} --protocol paper {options}"
    assert min(report["seconds"].values()) > 0


def test_the_report_names_the_weights_by_their_digest_whatever_files_hold_them(command, model, tmp_path):
    digest = command("paper")["model"]["weights"]
    assert digest == weights_digest(Path(model))
    exported = export_folder(model, tmp_path / "export", variant="fp16", max_shard_size="10KB")
    assert len(list(exported.glob("unet/*.safetensors"))) > 2
    assert weights_digest(exported) == digest  # full weights in shards, and their half-precision variant beside them
    for file in exported.glob("unet/*.safetensors"):
        if ".fp16" not in file.name:
            file.unlink()
    assert weights_digest(exported) == digest  # the variant alone
    other = VideoDiffusionPipeline.from_pretrained(model)
    next(other.unet.parameters()).data += 0.1
    other.save_pretrained(tmp_path / "other")
    assert weights_digest(tmp_path / "other") != digest


def test_a_second_run_calls_no_network_and_writes_the_same_figures(command, monkeypatch):
    first = command("paper")

    def refuse(*args, **kwargs):
        raise AssertionError("the pipeline was called")

    monkeypatch.setattr(VideoDiffusionPipeline, "__call__", refuse)
    second = command("paper")
    assert second["figures"] == first["figures"]
    assert second["seconds"] == first["seconds"]


@pytest.mark.parametrize(
    ("protocol", "samples", "windows", "calls"),
    [
        ("paper", 1, {"10": [[5, 5]]}, 2 * 2),
        ("mcvd", 2, {"15": [[5, 5], [5, 5]]}, 2 * 2 * 4),
        ("openstl", 2, {"20": [[5, 5], [5, 5]]}, 2 * 2 * 4),
        ("unconditional", 1, {"10": [[0, 10]], "20": [[0, 10], [5, 5], [5, 5]]}, 2 * (2 + 6)),
    ],
)
def test_a_model_of_ten_frames_serves_every_protocol_in_windows(command, protocol, samples, windows, calls):
    report = command(protocol, "--num-samples", str(samples))
    assert report["windows"] == windows
    assert report["network_calls"] == calls
    assert (report["num_videos"], report["num_samples"]) == (2, samples)
    assert all("black_frame" in columns for metric, columns in report["figures"].items() if metric != "fvd")
    for counts in report["figures"].get("fvd", {}).values():
        assert {"black_frame", "last_frame", "real_against_real"} < set(counts["2"])


def test_the_scored_clips_are_those_of_the_pipeline_and_its_seeds(command, model, tmp_path):
    command("paper", "--seed", "3")
    clips = read_clips(tmp_path / "out" / "paper-parts", 2, 10)
    truth = PROTOCOLS["paper"].truth(range(2), SIZE)
    pipeline = VideoDiffusionPipeline.from_pretrained(model)
    for i in range(2):
        video = pipeline(
            video=truth[i : i + 1, :5],
            num_frames=10,
            num_inference_steps=2,
            generator=[clip_generator(3, i, 0, 10)],
            output_type="np",
        ).frames
        assert np.abs(clips[i, 0] - video[0] * 255).max() <= 1


@pytest.mark.parametrize(
    "words",
    [("--sampler", "ddim"), ("--sampler", "unipc"), ("--gamma", "1"), ("--seed", "1"), ("--history-guidance", "3")],
)
def test_sampler_gamma_and_seed_change_the_clips_and_are_recorded(command, words):
    plain, other = command("paper", name="plain"), command("paper", *words, name="other")
    ours = [report["figures"]["psnr"]["one_sample"]["psnr"] for report in (plain, other)]
    assert ours[0] != ours[1]
    assert plain["figures"]["psnr"]["last_frame"] == other["figures"]["psnr"]["last_frame"]
    key, value = words[0].removeprefix("--").replace("-", "_"), words[1]
    assert " ".join(words) in other["command"]
    assert str(other["sampling"][key]).removesuffix(".0") == value
    assert other["sampling"] != plain["sampling"]


def test_a_folder_of_files_and_one_of_an_array_get_the_figures_computed_directly(command, tmp_path):
    rng = np.random.default_rng(0)
    videos = rng.integers(0, 256, (2, 5, 64, 64), dtype=np.uint8)
    for kind in ("array", "files"):
        (tmp_path / kind).mkdir()
    np.savez(tmp_path / "array" / "all.npz", videos)
    for i, video in enumerate(videos):
        np.save(tmp_path / "files" / f"{i}.npy", video.astype(np.float32) / 255)
    reports = [command("paper", name=f"{kind}-out", model=str(tmp_path / kind)) for kind in ("array", "files")]
    assert reports[0]["figures"] == reports[1]["figures"]
    truth = PROTOCOLS["paper"].truth(range(2), 64)[:, 5:, ..., 0] / 255
    mse = ((videos / 255 - truth) ** 2).mean(axis=(2, 3))
    assert reports[0]["figures"]["psnr"]["one_sample"]["psnr"] == pytest.approx((-10 * np.log10(mse)).mean())
    assert reports[0]["model"]["kind"] == "videos"
    assert reports[0]["network_calls"] is None
    assert "windows" not in reports[0]


# ------------------------------------------------------------------------------------------------------------- refused
@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--num-videos", "0"], "`--num-videos` is 0, expected at least 1"),
        (["--num-videos", "1"], "`--num-videos` is 1, expected at least 2: FVD compares covariances"),
        (["--num-samples", "0"], "`--num-samples` is 0, expected at least 1"),
        (["--steps", "0"], "`--steps` is 0, expected at least 1"),
        (["--batch-size", "-1"], "`--batch-size` is -1, expected at least 1"),
        (["--seed", "-1"], "`--seed` is -1, expected 0 or more"),
        (["--gamma", "1", "--sampler", "ddim"], "`--gamma` is 1.0, expected none with `--sampler ddim`"),
        (["--gamma", "2"], "gamma"),
        (["--num-frames", "10"], "`--num-frames` is [10], expected none with `--protocol paper`"),
        (["--device", "nowhere"], "`--device` is 'nowhere', expected one that PyTorch has here"),
        (["--model", "nowhere"], "`model` is 'nowhere', expected an embedded model"),
        (["--model", "EMPTY"], "expected one with a model_index.json, or with videos"),
        (["--out", "FILE"], "expected a folder"),
    ],
)
def test_what_no_run_takes_is_one_line_and_exit_2(model, tmp_path, capsys, words, reason):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    words = [{"EMPTY": str(tmp_path / "empty"), "FILE": str(tmp_path / "file")}.get(word, word) for word in words]
    common = ["--model", model, "--protocol", "paper", "--out", str(tmp_path / "out"), "--dtype", "float32"]
    assert cli.main(["evaluate", *common, *words]) == 2
    output = capsys.readouterr()
    assert reason in output.err
    assert output.err.count("\n") <= 2
    assert not (tmp_path / "out").exists()


def test_a_model_that_cannot_be_given_frames_is_refused_but_generates(command, tmp_path, capsys):
    free = save_model(tmp_path / "free", in_channels=1)
    assert cli.main(["evaluate", "--model", free, "--protocol", "mcvd", "--out", str(tmp_path / "no")]) == 2
    assert "The model has no channels for given frames" in capsys.readouterr().err
    report = command("unconditional", "--num-frames", "10", model=free)
    assert list(report["figures"]["fvd"]) == ["10"]
    assert "10 frames of a clip; the protocol has 10 and 20" in report["departures"]


def test_several_processes_without_accelerate_are_told_what_to_install(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setitem(sys.modules, "accelerate", None)
    with pytest.raises(
        ImportError, match=r"Several processes need accelerate: pip install 'video-diffusion\[train\]'"
    ):
        evaluate.find_workers(argparse.Namespace(device="cpu"))
