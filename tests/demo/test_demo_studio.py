"""The demo's studio: what it makes is what the pipeline makes, one clip at a time, and beyond its limits nothing."""

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
from video_diffusion.data.video_io import resize
from video_diffusion.demo import studio as studio_module
from video_diffusion.demo.limits import Limits, Settings, check_settings, whole, words
from video_diffusion.demo.studio import Studio, Task

SIZE, FRAMES = 32, 5
OWN = Settings("ancestral", 2, 0.5, 3, 0.0)


@pytest.fixture
def pipeline(make_denoiser):
    return VideoDiffusionPipeline(
        make_denoiser(in_channels=3, sample_size=SIZE, num_frames=FRAMES), VPContinuousScheduler()
    )


@pytest.fixture
def studio(pipeline):
    return Studio(pipeline, Limits(calls=40, frames=30))


@pytest.fixture
def text_studio(make_denoiser):
    unet = make_denoiser(cross_attention_dim=8, num_frames=FRAMES)
    text = tiny_text(["moving", "digit", "left"], length=16)
    return Studio(VideoDiffusionPipeline(unet, VPContinuousScheduler(), **text))


def ignore(done):
    pass


def frames_of(result):
    return read_video(result.gif)


# -------------------------------------------------------------------------------------------------------- what is made
def test_a_clip_is_the_pipelines_own_of_the_same_seed(studio, pipeline):
    result = studio.make(Task([], FRAMES), OWN)
    pipeline.scheduler = VPContinuousScheduler(gamma=0.5)
    generator = torch.Generator().manual_seed(3)
    expected = pipeline(num_inference_steps=2, generator=generator, output_type="np").frames[0]
    assert np.abs(resize(frames_of(result), SIZE, SIZE) - expected * 255.0).max() < 1.01
    assert result.summary.startswith("5 frames, 2 steps of ancestral, seed 3: ")
    assert read_video(result.mp4).shape[0] == FRAMES
    assert Image.open(result.sheet).format == "PNG"


@pytest.mark.parametrize("sampler", ["ancestral", "ddim", "dpm++", "unipc"])
def test_each_sampler_makes_a_clip_and_leaves_the_next_one_to_its_own(studio, sampler):
    first = frames_of(studio.make(Task([], FRAMES), OWN))
    other = frames_of(studio.make(Task([], FRAMES), replace(OWN, sampler=sampler)))
    again = frames_of(studio.make(Task([], FRAMES), OWN))
    assert np.array_equal(first, again)
    assert np.array_equal(first, other) == (sampler == "ancestral")


def test_given_frames_of_the_test_set_come_back_and_the_truth_stands_above(studio):
    truth = MovingMNIST(split="test", num_frames=FRAMES, image_size=SIZE, seed=0).batch([7])[0][..., None]
    result = studio.make(studio.from_dataset(7, 2, 0, FRAMES), Settings(steps=1))
    assert np.array_equal(resize(frames_of(result), SIZE, SIZE)[:2], truth[:2])
    between = studio.make(studio.from_dataset(7, 1, 1, FRAMES), Settings(steps=1))
    assert np.array_equal(resize(frames_of(between), SIZE, SIZE)[[0, -1]], truth[[0, -1]])
    assert Image.open(result.sheet).height == 22 + 2 * (64 + 6)


def test_a_visitors_clip_of_another_size_and_length_is_taken_at_its_ends(studio):
    clip = np.random.default_rng(0).integers(0, 256, (9, SIZE, SIZE, 1), dtype=np.uint8)
    task = studio.from_clip(clip.repeat(2, axis=1).repeat(2, axis=2), 2, 1, FRAMES)
    assert task.places == [0, 1, 4]
    assert np.array_equal(task.given[0], clip[[0, 1, 8]])
    with pytest.raises(ValueError, match="There are 2 frames, expected at least the 3 given ones"):
        studio.from_clip(clip[:2], 2, 1, FRAMES)


def test_a_long_clip_is_made_in_windows_with_its_progress_told(studio):
    told = []
    result = studio.make(Task([], 12), Settings(steps=1), told.append, "hierarchy-2")
    assert len(frames_of(result)) == 12
    assert told == sorted(told)
    assert told[-1] == 1
    assert Image.open(result.sheet).height == 22 + 3 * (64 + 6)


@pytest.mark.parametrize("changes", [{"guidance": 5.0}, {"history": 2.0}, {"history": 2.0, "sampler": "dpm++"}])
def test_guidance_changes_what_is_made_around_given_frames(studio, changes):
    task = studio.from_dataset(0, 2, 0, FRAMES)
    settings = replace(OWN, **changes)
    plain, guided = (
        frames_of(studio.make(task, how)) for how in (replace(settings, guidance=0.0, history=1.0), settings)
    )
    assert np.array_equal(plain[:2], guided[:2])
    assert not np.array_equal(plain[2:], guided[2:])


def test_a_model_without_channels_for_given_frames_replaces_them_while_it_samples(make_denoiser):
    unet = make_denoiser(in_channels=1, sample_size=SIZE, num_frames=FRAMES)
    studio = Studio(VideoDiffusionPipeline(unet, VPContinuousScheduler()))
    task = studio.from_dataset(0, 2, 0, FRAMES)
    assert np.array_equal(resize(frames_of(studio.make(task, OWN)), SIZE, SIZE)[:2], task.given[0])


def test_only_the_files_of_the_newest_results_are_kept(studio, monkeypatch):
    monkeypatch.setattr(studio_module, "KEPT", 2)
    results = [studio.make(Task([], 2), Settings(steps=1, seed=i)) for i in range(4)]
    assert [Path(result.gif).exists() for result in results] == [False, False, True, True]
    assert len(list(Path(studio.folder.name).iterdir())) == 6


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

    alone = {seed: frames_of(studio.make(Task([], FRAMES), replace(OWN, seed=seed))) for seed in (1, 2)}
    monkeypatch.setattr(type(studio.pipeline), "__call__", watched)

    def visit(seed):
        clips[seed] = frames_of(studio.make(Task([], FRAMES), replace(OWN, seed=seed)))

    threads = [threading.Thread(target=visit, args=(seed,)) for seed in (1, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most[0] == 1
    assert all(np.array_equal(clips[seed], alone[seed]) for seed in (1, 2))


# ---------------------------------------------------------------------------------------------------------------- text
def test_a_prompt_is_followed_where_the_model_reads_text(text_studio):
    quick = replace(OWN, steps=1)
    assert text_studio.reads_text
    clips = [frames_of(text_studio.make_from_text(p, None, 3, FRAMES, quick, ignore)) for p in ("moving digit", "")]
    assert not np.array_equal(*clips)
    away = frames_of(text_studio.make_from_text("moving digit", "left", 3, FRAMES, quick, ignore))
    assert not np.array_equal(clips[0], away)
    with pytest.raises(ValueError, match="`prompt` has 201 characters, expected at most 200"):
        text_studio.make_from_text("x" * 201, None, 3, FRAMES, quick, ignore)
    with pytest.raises(ValueError, match="`history guidance` is 2, expected 1: no frames are given"):
        text_studio.make_from_text("digit", None, 3, FRAMES, replace(quick, history=2.0), ignore)
    with pytest.raises(ValueError, match=r"`guidance` is 0\.5, expected a number from 1 to 20"):
        text_studio.make_from_text("digit", None, 0.5, FRAMES, quick, ignore)


def test_a_prompt_is_refused_where_it_reads_none(studio):
    assert not studio.reads_text
    with pytest.raises(ValueError, match="This model has no text encoder"):
        studio.make_from_text("a 3", None, 3, FRAMES, OWN, ignore)


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
        studio.make(Task([], FRAMES), replace(base, **changes))
    assert check_settings(base, Limits()) == base


@pytest.mark.parametrize("frames", [0, 1, 31, 2.5, "3", None, True, float("nan"), 10**12])
def test_numbers_of_frames_beyond_the_limits_are_refused(studio, frames):
    for make in (lambda: studio.make(Task([], frames), OWN), lambda: studio.from_dataset(0, 1, 0, frames)):
        with pytest.raises(ValueError, match=r"`frames` is .*, expected a whole number from 2 to 30"):
            make()


def test_what_is_too_much_together_is_refused(studio):
    with pytest.raises(
        ValueError, match="20 steps in each of 10 windows, 200 network calls; the demo makes at most 40"
    ):
        studio.make(Task([], 30), Settings(steps=20))
    with pytest.raises(ValueError, match="20 steps in each of 2 windows, 80 network calls"):
        studio.make(Task([], 6), Settings(steps=20, history=2.0))
    with pytest.raises(ValueError, match="2 frames are given of 2, expected fewer than all"):
        studio.from_dataset(0, 2, 0, 2)
    with pytest.raises(ValueError, match="`clip` is 10000, expected a whole number from 0 to 9999"):
        studio.from_dataset(10_000, 2, 0, FRAMES)
    with pytest.raises(ValueError, match="`window scheme` is 'forever'"):
        studio.make(Task([], 12), OWN, window_scheme="forever")
    with pytest.raises(ValueError, match="expected 0: no frames are given"):
        studio.make(Task([], FRAMES), replace(OWN, guidance=1.0))
    with pytest.raises(ValueError, match="`history guidance` is 2, expected 1: no frames are given"):
        studio.make(Task([], FRAMES), replace(OWN, history=2.0))


def test_a_message_quotes_no_more_than_fits():
    with pytest.raises(ValueError, match="`steps` is 'xxx") as caught:
        whole("steps", "x" * 10_000, 1, 5)
    assert len(str(caught.value)) < 120
    assert words("prompt", " a\n 3 ", 10) == "a 3"


def test_a_model_of_single_images_has_no_demo(make_denoiser):
    with pytest.raises(ValueError, match="The model makes clips of 1 frames, expected 3 or more"):
        Studio(VideoDiffusionPipeline(make_denoiser(in_channels=3, num_frames=1), VPContinuousScheduler()))
