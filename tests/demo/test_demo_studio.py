"""The demo's studio: what it makes is what the pipeline makes, one request at a time, nothing beyond its limits."""

import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from denoisers import tiny_text
from video_diffusion import VideoDiffusionPipeline, VPContinuousScheduler
from video_diffusion.data import MovingMNIST
from video_diffusion.data.reading import read_video
from video_diffusion.data.video_io import resize, write_gif
from video_diffusion.demo import studio as studio_module
from video_diffusion.demo.asked import BETWEEN, CONTINUE, CREATE, Asked, python_code, read_query
from video_diffusion.demo.limits import Limits, Settings, check_settings, whole, words
from video_diffusion.demo.studio import Studio

SIZE, FRAMES = 32, 5
WORK = 40 * FRAMES * SIZE * SIZE  # 40 calls
OWN = Settings(sampler="ancestral", steps=2, gamma=0.5, seed=3)
QUICK = Settings(steps=1)
FREE = Asked(CREATE, FRAMES, settings=OWN)
GIVEN = Asked(CONTINUE, FRAMES, 2, 7, QUICK)


@pytest.fixture
def pipeline(make_denoiser):
    return VideoDiffusionPipeline(
        make_denoiser(in_channels=3, sample_size=SIZE, num_frames=FRAMES), VPContinuousScheduler()
    )


@pytest.fixture
def studio(pipeline):
    return Studio(pipeline, Limits(work=WORK, frames=30))


@pytest.fixture
def text_studio(make_denoiser):
    unet = make_denoiser(cross_attention_dim=8, num_frames=FRAMES)
    text = tiny_text(["moving", "digit", "left"], length=16)
    return Studio(VideoDiffusionPipeline(unet, VPContinuousScheduler(), **text))


def frames_of(result):
    return read_video(result.gif)


def free(**changes):
    """A request of clips from noise with other settings."""
    return replace(FREE, settings=replace(OWN, **changes))


def truth(clip, frames=FRAMES):
    return MovingMNIST(split="test", num_frames=frames, image_size=SIZE, seed=0).batch([clip])[0][..., None]


# -------------------------------------------------------------------------------------------------------- what is made
def test_a_clip_is_the_pipelines_own_of_the_same_seed(studio, pipeline):
    result = studio.make(FREE)
    pipeline.scheduler = VPContinuousScheduler(gamma=0.5)
    generator = torch.Generator().manual_seed(3)
    expected = pipeline(num_inference_steps=2, generator=generator, output_type="np").frames[0]
    assert np.abs(resize(frames_of(result), SIZE, SIZE) - expected * 255.0).max() < 1.01
    assert result.summary.startswith("The model's clip. 5 frames, 2 steps of ancestral, seed 3: ")
    assert read_video(result.mp4).shape[0] == FRAMES
    assert Image.open(result.sheet).format == "PNG"


@pytest.mark.parametrize("sampler", ["ancestral", "ddim", "dpm++", "unipc"])
def test_each_sampler_makes_a_clip_and_leaves_the_next_one_to_its_own(studio, sampler):
    first = frames_of(studio.make(FREE))
    other = frames_of(studio.make(free(sampler=sampler)))
    again = frames_of(studio.make(FREE))
    assert np.array_equal(first, again)
    assert np.array_equal(first, other) == (sampler == "ancestral")


def test_several_clips_stand_side_by_side_each_from_its_own_seed(studio):
    alone = [resize(frames_of(studio.make(free(seed=seed))), SIZE, SIZE).astype(int) for seed in (3, 4)]
    together = frames_of(studio.make(free(clips=2)))
    assert together.shape == (FRAMES, 256, 512, 1)
    halves = [resize(half, SIZE, SIZE) for half in np.split(together, 2, axis=2)]
    assert all(np.abs(half - clip).max() <= 1 for half, clip in zip(halves, alone, strict=True))
    assert np.abs(alone[0] - alone[1]).max() > 10


def test_given_frames_of_the_test_set_come_back_and_the_truth_stands_above(studio):
    result = studio.make(GIVEN)
    assert np.array_equal(resize(frames_of(result), SIZE, SIZE)[:2], truth(7)[:2])
    assert Image.open(result.sheet).height == 22 + 3 * (64 + 6)  # the truth, where it could go, the model
    between = studio.make(replace(GIVEN, kind=BETWEEN, given=1))
    assert np.array_equal(resize(frames_of(between), SIZE, SIZE)[[0, -1]], truth(7)[[0, -1]])
    assert Image.open(between.sheet).height == 22 + 2 * (64 + 6)


def test_of_a_stochastic_model_the_test_clips_are_stochastic_and_nothing_says_where_they_could_go(
    make_denoiser, tmp_path
):
    (tmp_path / "model_index.json").touch()
    (tmp_path / "run.json").write_text('{"variant": "stochastic"}')
    unet = make_denoiser(in_channels=3, sample_size=64, num_frames=FRAMES)
    stochastic = Studio(VideoDiffusionPipeline(unet, VPContinuousScheduler()), model=str(tmp_path))
    clip = MovingMNIST(split="test", num_frames=FRAMES, variant="stochastic").batch([7])[0][..., None]
    assert np.array_equal(stochastic.task(GIVEN).truth[0], clip)
    assert "image_size=64, variant='stochastic', seed=0)" in python_code(GIVEN, {}, str(tmp_path), 64, None)
    assert list(stochastic.videos(GIVEN, np.zeros((1, FRAMES, 64, 64, 1), np.uint8))) == ["truth", "model"]


def test_what_is_shown_has_the_truth_on_the_left_and_a_border_where_frames_are_given(studio):
    from video_diffusion.data.video_io import FRAME_COLOUR
    from video_diffusion.demo.pictures import BORDER, BORDER_COLOUR

    shown = read_video(studio.make(GIVEN).shown)
    wide = SIZE + 2 * BORDER
    shown = resize(shown, wide, 3 * wide)
    inside = slice(BORDER, wide - BORDER)
    assert np.abs(shown[:, inside, inside].astype(int) - truth(7)).max() <= 8  # a GIF has 256 colours
    for frame, colour in enumerate([FRAME_COLOUR] * 2 + [BORDER_COLOUR] * 3):
        assert np.abs(shown[frame, 0].astype(int) - colour).max() <= 8


def test_where_it_could_go_is_exact_while_frames_are_given_and_spreads_after_them(studio):
    could = studio.could_go(replace(GIVEN, frames=20, given=5))
    clip = truth(7, 20)
    assert np.array_equal(could[:5], clip[:5])
    far = [(frame > 20).mean() for frame in could]  # pixels where something can be
    assert far[-1] > 1.2 * far[4]


def test_a_visitors_clip_of_another_size_and_length_is_taken_at_its_ends(studio):
    clip = np.random.default_rng(0).integers(0, 256, (9, SIZE, SIZE, 1), dtype=np.uint8)
    asked = Asked(BETWEEN, FRAMES, 1, None, QUICK)
    task = studio.task(asked, clip.repeat(2, axis=1).repeat(2, axis=2))
    assert task.places == [0, 4]
    assert np.array_equal(task.given[0], clip[[0, 8]])
    wide = np.pad(clip, ((0, 0), (0, 0), (5, 5), (0, 0)), constant_values=255)
    assert np.array_equal(studio.task(asked, wide).given[0], clip[[0, 8]])  # the sides are cut off, as in training
    with pytest.raises(ValueError, match="There are 1 frames, expected at least the 2 given ones"):
        studio.task(asked, clip[:1])


def test_a_long_clip_is_made_in_windows_with_its_progress_told(studio):
    told = []
    result = studio.make(replace(free(steps=1, order="hierarchy-2"), frames=12), progress=told.append)
    assert len(frames_of(result)) == 12
    assert told == sorted(told)
    assert told[-1] == 1
    assert Image.open(result.sheet).height == 22 + 3 * (64 + 6)


@pytest.mark.parametrize("changes", [{"guidance": 5.0}, {"history": 2.0}, {"history": 2.0, "sampler": "dpm++"}])
def test_guidance_changes_what_is_made_around_given_frames(studio, changes):
    settings = replace(OWN, **changes)
    plain, guided = (
        frames_of(studio.make(replace(GIVEN, settings=how)))
        for how in (replace(settings, guidance=0.0, history=1.0), settings)
    )
    assert np.array_equal(plain[:2], guided[:2])
    assert not np.array_equal(plain[2:], guided[2:])


def test_a_model_without_channels_for_given_frames_replaces_them_while_it_samples(make_denoiser):
    unet = make_denoiser(in_channels=1, sample_size=SIZE, num_frames=FRAMES)
    studio = Studio(VideoDiffusionPipeline(unet, VPContinuousScheduler()))
    result = studio.make(replace(GIVEN, settings=OWN))
    assert np.array_equal(resize(frames_of(result), SIZE, SIZE)[:2], truth(7)[:2])
    assert "reconstruction_guidance_scale=0.0" in result.code


def test_only_the_files_of_the_newest_results_are_kept(studio, monkeypatch):
    monkeypatch.setattr(studio_module, "KEPT", 2)
    results = [studio.make(replace(free(steps=1, seed=i), frames=2)) for i in range(4)]
    assert [Path(result.gif).exists() for result in results] == [False, False, True, True]
    assert len(list(Path(studio.folder.name).iterdir())) == 8


def test_two_visitors_at_once_are_served_one_after_the_other(studio, monkeypatch):
    running, most, clips = [0], [0], {}
    call = type(studio.pipeline).__call__

    def watched(self, *args, **options):
        running[0] += 1
        most[0] = max(most[0], running[0])
        time.sleep(0.05)
        try:
            return call(self, *args, **options)
        finally:
            running[0] -= 1

    alone = {seed: frames_of(studio.make(free(seed=seed))) for seed in (1, 2)}
    monkeypatch.setattr(type(studio.pipeline), "__call__", watched)

    def visit(seed):
        clips[seed] = frames_of(studio.make(free(seed=seed)))

    threads = [threading.Thread(target=visit, args=(seed,)) for seed in (1, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most[0] == 1
    assert all(np.array_equal(clips[seed], alone[seed]) for seed in (1, 2))


# ---------------------------------------------------------------------------------------------------------------- text
def test_a_prompt_is_followed_where_the_model_reads_text(text_studio):
    def clip(**changes):
        return frames_of(text_studio.make(free(steps=1, **changes)))

    assert text_studio.reads_text
    said = clip(prompt="moving digit", follow=3.0)
    assert not np.array_equal(said, clip())
    assert not np.array_equal(said, clip(prompt="moving digit", follow=3.0, away_from="left"))
    assert not np.array_equal(said, clip(prompt="moving digit", follow=1.0))
    with pytest.raises(ValueError, match="`prompt` has 201 characters, expected at most 200"):
        clip(prompt="x" * 201)
    with pytest.raises(ValueError, match="`history guidance` is 2, expected 1: no frames are given"):
        clip(prompt="digit", history=2.0)
    with pytest.raises(ValueError, match=r"`follow` is 0\.5, expected a number from 1 to 20"):
        clip(prompt="digit", follow=0.5)


def test_a_prompt_is_refused_where_it_reads_none(studio):
    assert not studio.reads_text
    with pytest.raises(ValueError, match="This model has no text encoder"):
        studio.make(free(prompt="a 3"))


# -------------------------------------------------------------------------------------------------- defaults and links
def test_the_page_opens_with_the_settings_of_the_models_generation_config(pipeline):
    pipeline.generation_config = {"sampler": "unipc", "num_inference_steps": 7, "guidance_scale": 5.0}
    usual = Studio(pipeline).usual
    assert (usual.sampler, usual.steps, usual.follow, usual.history) == ("unipc", 7, 5.0, 1.0)
    pipeline.generation_config = {"num_inference_steps": 1000}
    assert Studio(pipeline, Limits(steps=30)).usual.steps == 30


LINKED = [
    free(),
    free(clips=4, gamma=0.25, order="interpolate", seed=2**32 - 1),
    free(prompt="the digits 3 & 8 = ?", away_from="7", follow=2.5),
    Asked(CONTINUE, 20, 4, 9999, Settings(history=1.5)),
    Asked(BETWEEN, 30, 1, 0, Settings(sampler="ancestral", guidance=2.5)),
]


@pytest.mark.parametrize("asked", LINKED)
def test_a_link_holds_all_of_a_request(asked):
    for query in (asked.query, f"?{asked.query}&__theme=dark&utm=x"):
        assert read_query(query, Limits(), FRAMES) == asked


def test_own_frames_are_in_no_link_and_another_address_is_none_of_ours():
    assert Asked(CONTINUE, 20, 4, None, OWN).query == ""
    assert read_query("", Limits(), FRAMES) is None
    assert read_query("?__theme=dark", Limits(), FRAMES) is None


@pytest.mark.parametrize(
    "query",
    [
        "?kind=destroy",
        "?kind=predict&frames=1e9",
        "?kind=predict&frames=20&given=5&clip=10000",
        "?kind=predict&frames=20&given=-1&clip=1",
        "?kind=generate&frames=20&seed=-1",
        "?kind=generate&frames=20&gamma=nan",
        "?kind=generate&frames=20&sampler=__import__",
        "?kind=generate&prompt=" + "x" * 201,
        "?kind=generate&prompt=" + "x" * 5000,
        "?kind=generate" + "&a=1" * 100,
        7,
    ],
)
def test_a_link_beyond_the_limits_is_refused(query):
    with pytest.raises(ValueError):  # noqa: PT011  each has its own words
        read_query(query, Limits(), FRAMES)


@pytest.mark.parametrize("kind", [CREATE, CONTINUE, BETWEEN, "own"])
def test_the_call_in_python_makes_the_same_clips(studio, tmp_path, monkeypatch, kind):
    clip = np.random.default_rng(0).integers(0, 256, (9, SIZE, SIZE, 1), dtype=np.uint8)
    settings = Settings(sampler="ancestral" if kind == CREATE else "ddim", steps=2, clips=2, seed=5, gamma=0.6)
    places = (0, None) if kind == CREATE else (2, None) if kind == "own" else (1, 3)
    asked = Asked(CONTINUE if kind == "own" else kind, FRAMES, *places, settings)
    studio.pipeline.save_pretrained(tmp_path / "model")
    studio.model = str(tmp_path / "model")
    result = studio.make(asked, clip if kind == "own" else None)
    monkeypatch.chdir(tmp_path)
    write_gif(clip, tmp_path / "mine.gif", scale=1)
    code = result.code.replace("sampler=", 'dtype="float32", sampler=')  # what the studio of this test runs in
    found = {}
    exec(code, found)
    both = np.concatenate([np.stack([np.asarray(frame) for frame in video]) for video in found["frames"]], axis=2)
    made = resize(frames_of(result), SIZE, 2 * SIZE)[..., 0]
    assert both.shape == made.shape
    assert np.abs(both.astype(int) - made).max() <= 1


# -------------------------------------------------------------------------------------------------------------- limits
@pytest.mark.parametrize(
    "changes",
    [
        {"sampler": "euler"},
        {"sampler": None},
        {"steps": 0},
        {"steps": 51},
        {"steps": 1.5},
        {"steps": "5"},
        {"steps": True},
        {"clips": 0},
        {"clips": 5},
        {"order": "forever"},
        {"gamma": -0.1},
        {"gamma": 1.1},
        {"gamma": float("nan")},
        {"seed": -1},
        {"seed": 2**32},
        {"guidance": 21},
        {"guidance": float("inf")},
        {"guidance": 1},
        {"history": 0.5},
        {"history": 5.5},
        {"history": float("nan")},
        {"sampler": "ancestral", "guidance": 1, "history": 2},
    ],
)
def test_settings_beyond_the_limits_are_refused_by_name(studio, changes):
    base = Settings()
    with pytest.raises(ValueError, match=r"^`[\w ]+` is .*, expected "):
        studio.make(Asked(CREATE, FRAMES, settings=replace(base, **changes)))
    assert check_settings(base, Limits()) == base


@pytest.mark.parametrize("frames", [0, 1, 31, 2.5, "3", None, True, float("nan"), 10**12])
def test_numbers_of_frames_beyond_the_limits_are_refused(studio, frames):
    for asked in (replace(FREE, frames=frames), replace(GIVEN, frames=frames)):
        with pytest.raises(ValueError, match=r"`frames` is .*, expected a whole number from 2 to 30"):
            studio.make(asked)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (
            Asked(CREATE, 30, settings=Settings(steps=20)),
            r"This takes 2\d\d network calls \(20 calls in each of 1\d windows",
        ),
        (
            Asked(CREATE, FRAMES, settings=Settings(steps=20, clips=3)),
            "60 network calls .* for each of 3 clips.* at most 40",
        ),
        (
            Asked(CREATE, 7, settings=Settings(steps=10, history=2.0, clips=2)),
            "80 network calls .* in each of 2 windows",
        ),
        (replace(GIVEN, frames=2), "2 frames are given of 2, expected fewer than all"),
        (replace(GIVEN, kind=BETWEEN, frames=4), "4 frames are given of 4, expected fewer than all"),
        (replace(GIVEN, clip=10_000), "`clip` is 10000, expected a whole number from 0 to 9999"),
        (replace(GIVEN, kind="destroy"), "`kind` is 'destroy'"),
        (free(guidance=1.0), "expected 0: no frames are given"),
        (free(history=2.0), "`history guidance` is 2, expected 1: no frames are given"),
    ],
)
def test_what_is_too_much_together_is_refused_before_the_model_runs(studio, monkeypatch, asked, message):
    monkeypatch.setattr(studio, "sample", lambda *given: pytest.fail("the model was run"))
    with pytest.raises(ValueError, match=message):
        studio.make(asked)


def test_a_message_quotes_no_more_than_fits():
    with pytest.raises(ValueError, match="`steps` is 'xxx") as caught:
        whole("steps", "x" * 10_000, 1, 5)
    assert len(str(caught.value)) < 120
    assert words("prompt", " a\n 3 ", 10) == "a 3"


def test_a_model_of_single_images_has_no_demo(make_denoiser):
    with pytest.raises(ValueError, match="The model makes clips of 1 frames, expected 3 or more"):
        Studio(VideoDiffusionPipeline(make_denoiser(in_channels=3, num_frames=1), VPContinuousScheduler()))
