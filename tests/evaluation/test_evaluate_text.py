"""The text protocol: what is asked is held against what is read, and the command with a model that reads nothing."""

import json

import numpy as np
import pytest
from PIL import Image

from denoisers import tiny_denoiser, tiny_text
from video_diffusion import VideoDiffusionPipeline, VPContinuousScheduler, cli
from video_diffusion.data import MovingMNIST
from video_diffusion.data.captions import TEMPLATES, VOCABULARY, Caption, Fact, max_words
from video_diffusion.evaluation.text import COLUMNS, QUESTIONS, TextRun, TextSource, answers, neighbours, shares

SIZE = 40


def asked(*facts, motion=True):
    return Caption("", tuple(facts), motion)


# ------------------------------------------------------------------------------------------------------ what is obeyed
THREE, SEVEN = Fact(3, "right"), Fact(7, "up left")


@pytest.mark.parametrize(
    ("read", "expected"),  # all digits, one digit, directions, obeyed, nearly obeyed
    [
        ([THREE, SEVEN], "11111"),
        ([SEVEN, THREE], "11111"),
        ([Fact(3, "right", ("top",)), SEVEN], "11111"),
        ([Fact(3, "up left"), Fact(7, "right")], "11100"),
        ([Fact(3, "down right"), Fact(7, "up")], "11001"),
        ([Fact(3, "down"), SEVEN], "11000"),
        ([THREE, THREE], "01000"),
        ([THREE], "01000"),
        ([Fact(1, "right"), Fact(2, "up left")], "00100"),
        ([], "00000"),
    ],
)
def test_the_answers_of_two_digits(read, expected):
    assert answers(asked(THREE, SEVEN), read) == dict(zip(QUESTIONS, (c == "1" for c in expected), strict=True))


def test_a_prompt_of_one_digit_or_without_motion_asks_for_no_more():
    assert all(answers(asked(SEVEN), [THREE, SEVEN]).values())
    assert answers(asked(THREE, SEVEN, motion=False), [Fact(7, "down"), Fact(3, "up")]) == {
        "all_digits": True,
        "one_digit": True,
    }
    twice = asked(THREE, Fact(3, "down"))
    assert not answers(twice, [THREE, THREE])["obeyed"]
    assert answers(twice, [Fact(3, "down"), THREE])["obeyed"]


def test_neighbouring_directions_are_45_degrees_apart():
    assert neighbours("right", "up right")
    assert neighbours("up right", "right")
    assert neighbours("down", "down")
    assert not neighbours("right", "down")
    assert not neighbours("right", "left")
    assert neighbours("still", "still")
    assert not neighbours("still", "right")
    assert not neighbours(None, "right")


def test_shares_count_only_the_prompts_that_ask():
    prompts = [asked(THREE), asked(THREE), asked(THREE, motion=False)]
    found = shares(prompts, [[THREE], [SEVEN], [THREE]])
    assert found["all_digits"] == {"share": 2 / 3, "clips": 3}
    assert found["obeyed"] == {"share": 1 / 2, "clips": 2}
    assert shares(prompts[2:], [[THREE]])["obeyed"] == {"share": None, "clips": 0}


# --------------------------------------------------------------------------------------------------------- the command
def save_model(folder, text):
    """A random model; with text one whose encoder knows the words of the captions."""
    parts = tiny_text(VOCABULARY, length=max_words(2) + 2) if text else {}
    config = {"sample_size": SIZE, "in_channels": 3, "patch_size": 8, "cross_attention_dim": 8 if text else None}
    unet = tiny_denoiser(block_out_channels=(8,), **config)
    scheduler = VPContinuousScheduler(prediction_type="v_prediction")
    VideoDiffusionPipeline(unet, scheduler, **parts).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("models") / "text", text=True)


@pytest.fixture
def command(model, tmp_path, monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)

    def run(*words, name="out", model=model, code=0):
        common = ["--model", model, "--protocol", "text", "--steps", "1", "--num-videos", "3", "--dtype", "float32"]
        assert cli.main(["evaluate", *common, "--out", str(tmp_path / name), *words]) == code
        return json.loads((tmp_path / name / "text.json").read_text()) if code == 0 else None

    return run


def test_the_vocabulary_serves_as_that_of_a_tokenizer(model):
    tokenizer = VideoDiffusionPipeline.from_pretrained(model).tokenizer
    for words in TEMPLATES.values():
        for template in words:
            text = template.say([Fact(3, "up left", ("top", "left")), Fact(7, "still")])
            tokens = tokenizer(text).input_ids
            assert tokenizer.unk_token_id not in tokens
            assert len(tokens) <= tokenizer.model_max_length


def test_it_writes_json_table_and_picture_and_goes_on_where_it_stopped(command, model, tmp_path, capsys, monkeypatch):
    report = command("--guidance-scales", "1", "4", "--batch-size", "2")
    folder = tmp_path / "out"
    assert {file.name for file in folder.iterdir()} == {"text.json", "text.md", "text.png", "text-parts"}
    table = (folder / "text.md").read_text()
    assert table in capsys.readouterr().out
    assert table.count("| all asked digits are there ↑ | 3 |") == 2
    for word in ("real clips", "another real clip", "empty prompt", "guidance 1", "guidance 4"):
        assert table.count(f"| {word} ") == 2
    assert Image.open(folder / "text.png").size[1] > 4 * SIZE
    assert set(report["figures"]) == {"train", "held_out"}
    for columns in report["figures"].values():
        assert list(columns) == [*COLUMNS, "1", "4"]
        assert all(set(column) == set(QUESTIONS) for column in columns.values())
    assert report["command"] == (
        f"video-diffusion evaluate --model {model} --protocol text --num-videos 3 --guidance-scales 1 4 "
        "--sampler ancestral --steps 1 --seed 0"
    )

    made = sorted((folder / "text-parts").glob("part-*.npz"))
    assert len(made) == 2 * (1 + 2 * 2)  # batches × (the empty prompt, templates × scales)
    made[0].unlink()
    made[1].write_bytes(b"damaged")
    calls = []
    call = VideoDiffusionPipeline.__call__
    monkeypatch.setattr(
        VideoDiffusionPipeline, "__call__", lambda self, **words: calls.append(words["prompt"]) or call(self, **words)
    )
    again = command("--guidance-scales", "1", "4", "--batch-size", "2")
    assert again["figures"] == report["figures"]
    assert len(calls) == 2


def test_clips_come_from_their_prompt_their_scale_and_the_noise_of_their_number(command, model, tmp_path):
    from video_diffusion.evaluation.sources import clip_generator

    report = command("--guidance-scales", "2")
    pipeline = VideoDiffusionPipeline.from_pretrained(model)
    videos = MovingMNIST(split="test", num_frames=4, image_size=SIZE, seed=0)
    for templates, scale in (("train", 2), ("held_out", 2), ("", 1)):
        texts = report["prompts"][templates] if templates else [""] * 3
        column = f"{templates}-{scale}" if templates else "empty"
        with np.load(tmp_path / "out" / "text-parts" / f"part-{column}-0000000.npz") as part:
            clips = part["video"]
        expected = pipeline(
            prompt=texts[2],
            num_inference_steps=1,
            guidance_scale=scale,
            generator=[clip_generator(0, 2, 0, 4)],
            output_type="np",
        ).frames[0, ..., 0]
        assert np.abs(clips[2] - expected * 255).max() <= 1
    labels = videos.clips(range(3))["labels"].tolist()
    for texts in report["prompts"].values():
        for text, digits in zip(texts, labels, strict=True):
            assert {int(c) for c in text if c.isdigit()} <= set(digits)


def test_a_model_that_obeys_like_the_data_gets_the_figures_of_real_clips(command, monkeypatch):
    """Prompt i is answered with real clip i, and the empty prompt with a black one."""

    def make(self, prompts, indices, scale):
        clips = self.videos.batch(list(indices))
        return clips if all(prompts) else np.zeros_like(clips)

    monkeypatch.setattr(TextSource, "make", make)
    report = command("--guidance-scales", "1", "2", "--batch-size", "7", "--num-videos", "40")
    for columns in report["figures"].values():
        assert columns["1"] == columns["2"] == columns["real"]
        assert columns["real"]["one_digit"]["share"] > 0.9 > 0.6 > columns["other_real"]["one_digit"]["share"]
        assert all(cell["share"] == 0 for cell in columns["empty"].values())
        assert columns["real"]["all_digits"]["clips"] == 40 > columns["real"]["obeyed"]["clips"]


def test_the_model_card_shows_the_report(command, tmp_path):
    import yaml

    from video_diffusion.hub.cards import build_card
    from video_diffusion.hub.folder import export_folder

    folder = export_folder(
        VideoDiffusionPipeline.from_pretrained(save_model(tmp_path / "m", text=True)), tmp_path / "e"
    )
    report = command("--guidance-scales", "1", "3", model=str(folder), name="e/evaluation")
    card = build_card(folder, "alice/digits")
    assert "### Protocol `text`" in card
    assert "#### Prompts: sentences that were not in training" in card
    assert "of other weights" not in card
    found = {}
    for model in yaml.safe_load(card.split("---\n")[1])["model-index"]:
        found |= {m["name"]: m["value"] for result in model["results"] for m in result["metrics"]}
    assert len(found) == 4
    for name, value in found.items():
        templates = "held_out" if "not in training" in name else "train"
        scale = name.split("guidance ")[1].split(",")[0]
        key = "obeyed" if "directions" in name else "all_digits"
        assert value == round(report["figures"][templates][scale][key]["share"], 4)


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--guidance-scales", "0.5"], "`--guidance-scales` is [0.5], expected numbers of at least 1, each once"),
        (["--guidance-scales", "2", "2"], "each once"),
        (["--history-guidance", "2"], "`--history-guidance` is 2.0, expected none with `--protocol text`"),
        (["--history-guidance", "-1"], "`--history-guidance` is -1.0, expected a number from 0 up"),
        (["--num-videos", "1"], "`--num-videos` is 1, expected at least 2"),
        (["--num-samples", "2"], "`--num-samples` is 2, expected none with `--protocol text`"),
        (["--protocol", "paper", "--guidance-scales", "2"], "expected none with `--protocol paper`"),
        (["--num-frames", "10"], "expected none with `--protocol text`"),
    ],
)
def test_what_it_does_not_take_is_refused(command, capsys, words, reason):
    command(*words, code=2)
    assert reason in capsys.readouterr().err


def test_a_model_without_text_and_a_folder_of_videos_are_refused(command, tmp_path, capsys):
    command(model=save_model(tmp_path / "mute", text=False), code=2)
    assert "The model has no text encoder, expected one for `--protocol text`" in capsys.readouterr().err
    np.save(tmp_path / "0.npy", np.zeros((4, 64, 64), np.uint8))
    (tmp_path / "videos").mkdir()
    (tmp_path / "0.npy").rename(tmp_path / "videos" / "0.npy")
    command(model=str(tmp_path / "videos"), code=2)
    assert "expected a pipeline with `--protocol text`" in capsys.readouterr().err


def test_runs_of_other_settings_are_not_mixed(command, capsys):
    command("--guidance-scales", "1")
    command("--guidance-scales", "2", code=2)
    assert "guidance_scales was [1.0], now [2.0]" in capsys.readouterr().err


def test_the_defaults_are_the_protocols():
    assert TextRun().scales == (1, 2, 4, 8)
