"""The model card: what it says comes from the folder's files, and writing it again changes nothing."""

import ast
import json
import re
import shutil

import pytest
import yaml
from huggingface_hub import ModelCard

from denoisers import SMALLEST, tiny_denoiser
from video_diffusion import VideoDiffusionPipeline, VPContinuousScheduler
from video_diffusion.cli import main
from video_diffusion.evaluation.report import markdown, results
from video_diffusion.hub.cards import build_card, count_parameters, write_card
from video_diffusion.hub.folder import export_folder

RUN = {"dataset_name": None, "digits": None, "variant": "classic", "num_digits": 2, "num_frames": 4, "max_steps": 700}
RUN |= {"learning_rate": 0.0008, "mask_probabilities": [0.3, 0.4, 0.15, 0.15], "output_dir": "/home/alice/runs/secret"}


def make_pipeline(in_channels=3):
    scheduler = VPContinuousScheduler(gamma=0.7, prediction_type="v_prediction")
    return VideoDiffusionPipeline(tiny_denoiser(**SMALLEST | {"in_channels": in_channels}), scheduler)


def make_report(**changes):
    """A report as `video-diffusion evaluate --protocol paper` writes it, with figures worked out by hand."""
    columns = ("one_sample", "black_frame", "last_frame", "real_against_real")

    def figures(name, digits):
        values = {column: digits + i / 8 for i, column in enumerate(columns)}
        return {
            c: {name: v, "first_frames": {"2": {name: v}}, "num_identical": 0, "num_frames": 32}
            for c, v in values.items()
        }

    fvd = dict(zip(columns, (120.5, 300.0, 200.0, 22.0), strict=True)) | {"ratio_to_real": 5.477, "num_videos": 16}
    report = {"protocol": "paper", "text": "Five given frames.", "departures": ["16 clips; the protocol has 256"]}
    report |= {"model": {"name": "digits", "revision": None, "weights": None}, "num_videos": 16, "num_samples": 1}
    report |= {"sampling": {"sampler": "ancestral", "gamma": 0.3, "steps": 5, "seed": 0}, "windows": {"10": [[0, 10]]}}
    report |= {"network_calls_per_clip": {"10": 5}, "networks": {}, "headline": "one_sample"}
    report |= {"figures": {"fvd": {"10": {"16": fvd}}, "ssim": figures("ssim", 0.5), "lpips": figures("lpips", 0.25)}}
    report |= {"known": [{"row": "ssim/2", "value": ".6720", "source": "the paper"}], "num_given": 5}
    report |= changes
    return report | {"markdown": markdown(report), "results": results(report)}


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    return export_folder(make_pipeline(), tmp_path_factory.mktemp("card") / "digits", variant="fp16")


@pytest.fixture
def folder(exported, tmp_path):
    return shutil.copytree(exported, tmp_path / "digits")


@pytest.fixture
def measured(folder):
    """The folder with all that a card is made from."""
    (folder / "run.json").write_text(json.dumps(RUN))
    (folder / "evaluation").mkdir()
    (folder / "evaluation" / "paper.json").write_text(json.dumps(make_report()))
    (folder / "evaluation" / "paper.png").write_bytes(b"png")
    (folder / "samples").mkdir()
    (folder / "samples" / "generated.gif").write_bytes(b"GIF89a")
    return folder


def metadata(card):
    return yaml.safe_load(card.split("---\n")[1])


def test_the_front_matter_is_what_the_hub_reads(measured):
    found = metadata(build_card(measured, "alice/digits"))
    assert found["library_name"] == "diffusers"
    assert found["pipeline_tag"] == "video-to-video"
    assert found["license"] == "apache-2.0"
    assert found["datasets"] == ["ylecun/mnist"]
    assert found["metrics"] == ["fvd", "lpips", "ssim"]
    (entry,) = found["model-index"]
    assert entry["name"] == "digits"
    (result,) = entry["results"]
    assert result["dataset"]["config"] == "paper"
    values = {metric["name"]: metric["value"] for metric in result["metrics"]}
    assert values == {
        "FVD, 10 frames, 16 clips, one sample": 120.5,
        "SSIM, first 2 frames, one sample, 16 clips": 0.5,
        "LPIPS, first 2 frames, one sample, 16 clips": 0.25,
    }


def test_huggingface_hub_reads_the_results_back_from_the_card(measured):
    data = ModelCard.load(write_card(measured, "alice/digits")).data
    assert [(result.metric_type, result.metric_value) for result in data.eval_results] == [
        ("fvd", 120.5),
        ("ssim", 0.5),
        ("lpips", 0.25),
    ]
    assert {result.dataset_split for result in data.eval_results} == {"test"}


def test_the_text_has_the_figures_beside_baselines_and_papers_the_recipe_the_picture_and_the_samples(measured):
    card = build_card(measured, "alice/digits")
    assert "| SSIM, first 2 frames ↑ | 0.5000 | 0.6250 | 0.7500 | 0.8750 | .6720 [1] |" in card
    assert "| FVD, 10 frames, 16 clips ↓ | 120.50 | 300.00 | 200.00 | 22.00 | – |" in card
    assert "Not the whole protocol: 16 clips; the protocol has 256." in card
    assert "![paper](evaluation/paper.png)" in card
    assert "![generated](samples/generated.gif)" in card
    assert "| steps | 700 |" in card
    assert "| learning rate | 0.0008 |" in card
    assert "0.3, 0.4, 0.15, 0.15" in card
    assert "/home/alice" not in card
    assert "Not measured yet" not in card


def test_the_number_of_weights_is_that_of_the_model_without_its_half_precision_copy(folder):
    expected = sum(parameter.numel() for parameter in make_pipeline().unet.parameters())
    assert count_parameters(folder / "unet") == expected
    assert f"{expected / 1e6:.2f} million weights" in build_card(folder)


def test_without_evaluations_and_run_it_says_so_and_claims_no_figure(folder):
    card = build_card(folder, "alice/digits")
    assert "Not measured yet." in card
    assert "The recipe is not recorded" in card
    assert not {"model-index", "metrics", "datasets"} & metadata(card).keys()


def test_writing_the_card_again_changes_nothing_and_a_card_by_hand_is_never_overwritten(measured):
    file = write_card(measured, "alice/digits")
    text, time = file.read_text(), file.stat().st_mtime_ns
    write_card(measured, "alice/digits")
    assert (file.read_text(), file.stat().st_mtime_ns) == (text, time)
    ModelCard.load(file).save(file)
    write_card(measured, "alice/digits")
    assert file.read_text() == text
    file.write_text("# Mine\n")
    with pytest.raises(ValueError, match=r"README.md was written by hand"):
        write_card(measured)
    assert file.read_text() == "# Mine\n"


def test_figures_of_other_weights_are_marked_and_stay_out_of_the_front_matter(measured):
    report = make_report(model={"name": "digits", "revision": None, "weights": "0" * 64})
    (measured / "evaluation" / "paper.json").write_text(json.dumps(report))
    card = build_card(measured)
    assert "**These figures are of other weights than the ones in this repository.**" in card
    assert "model-index" not in metadata(card)


@pytest.mark.parametrize(("text", "message"), [("{", "is no JSON"), ("[]", "holds a list"), ("{}", "is no report")])
def test_a_broken_or_foreign_json_is_named(measured, text, message):
    (measured / "evaluation" / "paper.json").write_text(text)
    with pytest.raises(ValueError, match=rf"paper.json {message}"):
        build_card(measured)


def test_each_example_of_the_card_runs_on_the_pipeline(measured, tmp_path, monkeypatch):
    card = build_card(measured, str(measured))
    blocks = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    assert len(blocks) == 6
    for block in blocks:
        ast.parse(block)
    monkeypatch.chdir(tmp_path)
    names = {}
    for block in blocks[:-1]:  # the last one is for a process without the package: tests/test_hub_ways_in.py
        exec(block.replace("num_inference_steps=50", "num_inference_steps=2"), names)
        if "pipe" in names:
            names["pipe"].set_progress_bar_config(disable=True)
            names["pipe"].scheduler.register_to_config(gamma=0.0)
    for name in ("generated", "predicted", "between", "around"):
        assert (tmp_path / f"{name}.gif").stat().st_size > 0


def test_a_model_without_channels_for_given_frames_is_said_to_generate_only(tmp_path):
    out = export_folder(make_pipeline(in_channels=1), tmp_path / "free")
    card = build_card(out)
    assert metadata(card)["pipeline_tag"] == "unconditional-image-generation"
    assert "Predict" not in card
    assert "Interpolate" not in card


def test_the_command_makes_samples_and_the_card(folder, capsys, monkeypatch):
    assert main(["card", str(folder), "--repo-id", "alice/digits", "--samples"]) == 0
    assert f"Written: {folder / 'README.md'}" in capsys.readouterr().out
    card = (folder / "README.md").read_text()
    for name in ("generated", "predicted"):
        assert f"![{name}](samples/{name}.gif)" in card
        assert (folder / "samples" / f"{name}.gif").read_bytes().startswith(b"GIF89a")
    assert main(["card", str(folder.parent)]) == 2
    assert "expected one that holds a model_index.json" in capsys.readouterr().err


def test_an_export_carries_run_evaluations_samples_and_card_along(measured, tmp_path):
    write_card(measured, "alice/digits")
    (measured / "evaluation" / "paper-parts").mkdir()
    (measured / "evaluation" / "paper-parts" / "part-0.npz").write_bytes(b"clips")
    out = export_folder(measured, tmp_path / "again")
    for name in ("run.json", "README.md", "evaluation/paper.json", "evaluation/paper.png", "samples/generated.gif"):
        assert (out / name).read_bytes() == (measured / name).read_bytes()
    assert not list(out.rglob("*.npz"))


def test_a_model_of_own_videos_says_so_and_not_where_they_lay(folder):
    run = RUN | {"videos": "/home/alice/private/my-cats", "found": "12 videos, 340 windows, sha256 0123456789abcdef"}
    (folder / "run.json").write_text(json.dumps(run))
    config = json.loads((folder / "unet" / "config.json").read_text()) | {"sample_size": [16, 24]}
    (folder / "unet" / "config.json").write_text(json.dumps(config))
    card = build_card(folder)
    assert "| data | videos of the folder `my-cats` |" in card
    assert "| of these | 12 videos, 340 windows, sha256 0123456789abcdef |" in card
    assert "frames of 16×24 pixels" in card
    assert not re.search(r"alice|private|MNIST|no model of natural video", card)
    assert "datasets" not in metadata(card)


def test_steps_that_the_model_places_are_in_the_card(measured):
    sentence = "steps at a log-SNR of -3.5 ± 2.5 where nothing is given"
    row = "| steps of the sampler | at a log-SNR of -3.5 ± 2.5 where no frames are given ("
    card = build_card(measured, "alice/digits")
    assert sentence not in card
    assert row not in card
    (measured / "generation_config.json").write_text(json.dumps({"logsnr_spacing": [-3.5, 2.5]}))
    report = make_report()
    report["sampling"]["logsnr_spacing"] = [-3.5, 2.5]
    assert sentence not in markdown(report | {"windows": {"10": [[5, 5]]}})
    (measured / "evaluation" / "paper.json").write_text(json.dumps(report | {"markdown": markdown(report)}))
    card = build_card(measured, "alice/digits")
    assert sentence in card
    assert row in card
