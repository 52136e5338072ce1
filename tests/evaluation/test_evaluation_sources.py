import numpy as np
import pytest
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler
from PIL import Image

from denoisers import tiny_denoiser
from video_diffusion import VideoDiffusionPipeline, VPContinuousScheduler
from video_diffusion.data.video_io import write_gif, write_mp4
from video_diffusion.evaluation import PROTOCOLS, FolderSource, PipelineSource

PAPER, UNCONDITIONAL = PROTOCOLS["paper"], PROTOCOLS["unconditional"]


def make_pipeline(num_frames=10, in_channels=3, size=32):
    config = {"sample_size": size, "num_frames": num_frames, "in_channels": in_channels, "patch_size": 8}
    unet = tiny_denoiser(block_out_channels=(8, 8), **config)
    return VideoDiffusionPipeline(unet, VPContinuousScheduler(prediction_type="v_prediction"))


@pytest.fixture(scope="module")
def pipeline():
    return make_pipeline()


# ------------------------------------------------------------------------------------------------------------- windows
@pytest.mark.parametrize(
    ("given", "frames", "trained", "windows"),
    [
        (5, 10, 10, [[5, 5]]),
        (5, 15, 10, [[5, 5], [5, 5]]),
        (10, 20, 10, [[5, 5], [5, 5]]),
        (10, 20, 20, [[10, 10]]),
        (0, 20, 10, [[0, 10], [5, 5], [5, 5]]),
    ],
)
def test_windows_are_those_worked_out_by_hand(given, frames, trained, windows):
    source = PipelineSource(make_pipeline(num_frames=trained), {}, steps=1)
    assert source.cost(given, [frames])["windows"] == {str(frames): windows}


def test_a_clip_beyond_the_trained_length_keeps_its_given_frames_and_goes_on(pipeline):
    truth = PROTOCOLS["mcvd"].truth([0], 40)[:, :5, :32, :32]
    source = PipelineSource(pipeline, {}, steps=2)
    clips = source.clips([0], truth, 1, [10, 15])
    assert clips[15].shape == (1, 1, 15, 32, 32, 1)
    assert np.array_equal(clips[10][:, :, :5], clips[15][:, :, :5])
    assert not np.array_equal(clips[15][:, :, 5:10], clips[15][:, :, 10:])


# ----------------------------------------------------------------------------------------------------------- pipelines
def test_clips_do_not_depend_on_the_batch_nor_on_their_neighbours(pipeline):
    truth = PAPER.truth([4, 7, 9], 32)
    clips = [
        PipelineSource(pipeline, {}, steps=2, batch_size=size).clips([4, 7, 9], truth[:, :5], 2, [10])[10]
        for size in (1, 4, 6)
    ]
    alone = PipelineSource(pipeline, {}, steps=2).clips([7], truth[1:2, :5], 2, [10])[10]
    for other in (clips[1], clips[2]):
        assert np.abs(clips[0].astype(int) - other).max() <= 1
    assert np.abs(clips[0][1:2].astype(int) - alone).max() <= 1
    assert not np.array_equal(clips[0][:, 0], clips[0][:, 1])
    assert np.array_equal(clips[0][:, 0, :5], truth[:, :5])


def test_the_cost_counts_the_calls_of_all_windows(pipeline):
    calls = []
    hook = pipeline.unet.register_forward_hook(lambda *_: calls.append(1))
    source = PipelineSource(pipeline, {}, steps=3)
    source.clips([0], PROTOCOLS["mcvd"].truth([0], 40)[:, :5, :32, :32], 1, [15])
    hook.remove()
    cost = source.cost(5, [15])
    assert cost == {"windows": {"15": [[5, 5], [5, 5]]}, "network_calls_per_clip": {"15": len(calls)}}


@pytest.mark.parametrize(("protocol", "given", "frames", "plain"), [("mcvd", 5, 15, 4), ("unconditional", 0, 20, 6)])
def test_guidance_on_given_frames_is_counted_and_changes_what_is_told(pipeline, protocol, given, frames, plain):
    """A second call a step, but not in a window that is told nothing."""
    truth = PROTOCOLS[protocol].truth([0], 40)[:, :given, :32, :32]
    calls, made = {}, {}
    forward, seen = pipeline.unet.forward, []
    for scale in (1.0, 2.0):
        source = PipelineSource(pipeline, {}, steps=2, history_guidance=scale)
        assert source.settings.get("history_guidance", 1.0) == scale
        seen.clear()
        pipeline.unet.forward = lambda *args, **kwargs: seen.append(1) or forward(*args, **kwargs)
        made[scale] = source.clips([0], truth, 1, [frames])[frames]
        pipeline.unet.forward = forward
        calls[scale] = len(seen)
        assert source.cost(given, [frames])["network_calls_per_clip"] == {str(frames): len(seen)}
    assert calls == {1.0: plain, 2.0: 8 if given else 10}
    assert not np.array_equal(made[1.0], made[2.0])


@pytest.mark.parametrize(
    ("solver", "told"), [(None, True), (DPMSolverMultistepScheduler, True), (DDIMScheduler, False)]
)
def test_steps_that_the_model_places_are_in_the_settings(pipeline, solver, told):
    """So clips of other places are not taken for these; a scheduler that takes no timesteps makes the same clips."""
    scheduler = pipeline.scheduler if solver is None else pipeline.scheduler.as_diffusers(solver)
    other = VideoDiffusionPipeline(pipeline.unet, scheduler)
    truth, made = PAPER.truth([0], 40)[:, :, :32, :32], []
    for config in ({}, {"logsnr_spacing": [-3.0, 2.5]}):
        other.generation_config = config
        source = PipelineSource(other, {}, steps=3)
        made.append([source.clips([0], truth[:, :given], 1, [10])[10] for given in (0, 5)])
        assert source.settings.get("logsnr_spacing") == (config.get("logsnr_spacing") if told else None)
        assert source.cost(5, [10])["network_calls_per_clip"] == {"10": 3}
    (usual, usual_told), (spaced, spaced_told) = made
    assert np.array_equal(usual, spaced) != told
    assert np.array_equal(usual_told, spaced_told)


@pytest.mark.parametrize(("solver", "sampler", "gamma"), [(None, "ancestral", 0.3), (DDIMScheduler, "ddim", None)])
def test_only_the_ancestral_sampler_has_a_gamma(pipeline, solver, sampler, gamma):
    """The config of a solver of diffusers keeps that of the scheduler it was made from."""
    scheduler = pipeline.scheduler if solver is None else pipeline.scheduler.as_diffusers(solver)
    assert scheduler.config.gamma == 0.3
    other = VideoDiffusionPipeline(pipeline.unet, scheduler)
    assert PipelineSource(other, {}, steps=1, sampler=sampler).settings["gamma"] == gamma


def test_a_model_that_takes_no_frames_is_refused_where_it_needs_them():
    source = PipelineSource(make_pipeline(in_channels=1), {})
    with pytest.raises(ValueError, match=r"no channels for given frames .* clips of 10 frames, 5 of them given"):
        source.check(PAPER, 8, 1, (10,))
    with pytest.raises(ValueError, match=r"clips of 20 frames.*Pass `--num-frames`"):
        source.check(UNCONDITIONAL, 8, 1, (10, 20))
    source.check(UNCONDITIONAL, 8, 1, (10,))


def test_guidance_on_given_frames_is_refused_where_none_are(pipeline):
    source = PipelineSource(pipeline, {}, history_guidance=2.0)
    with pytest.raises(ValueError, match=r"`--history-guidance` is 2, expected none: in clips of 10 frames nothing"):
        source.check(UNCONDITIONAL, 8, 1, (10,))
    source.check(UNCONDITIONAL, 8, 1, (10, 20))
    source.check(PAPER, 8, 1, (10,))


# --------------------------------------------------------------------------------------------------- folders of videos
def write_folder(folder, clips, kind):
    """One file a clip, named without leading zeros; `clips` `[N, F, H, W, 1]`."""
    folder.mkdir(parents=True, exist_ok=True)
    for i, clip in enumerate(clips):
        file = folder / f"clip-{i}.{kind}"
        if kind == "npy":
            np.save(file, clip[..., 0])
        elif kind == "gif":
            write_gif(clip, file, scale=4)
        elif kind == "mp4":
            write_mp4(clip, file, scale=4)
        elif kind == "pictures":
            for number, frame in enumerate(clip):
                (folder / f"clip-{i}").mkdir(exist_ok=True)
                Image.fromarray(frame[..., 0]).save(folder / f"clip-{i}" / f"{number}.PNG")
    if kind == "npz":
        np.savez(folder / "a.npz", clips[:7, ..., 0])
        np.savez(folder / "b.npz", clips[7:].astype(np.float32) / 255)


@pytest.mark.parametrize("kind", ["npy", "gif", "mp4", "npz", "pictures"])
@pytest.mark.parametrize("start", [0, 5])
def test_a_folder_gives_the_clips_of_its_files_in_the_order_of_their_numbers(tmp_path, kind, start):
    truth = PAPER.truth(range(11), 64)
    write_folder(tmp_path, truth[:, start:], kind)
    source = FolderSource(tmp_path)
    assert source.num_videos == 11
    clips = source.clips([2, 10], truth[[2, 10], :5], 1, [10])[10]
    error = np.abs(clips[:, 0].astype(int) - truth[[2, 10]])
    assert error.mean() < 1.5 if kind == "mp4" else error.max() == 0


def test_subfolders_are_samples(tmp_path):
    truth = PAPER.truth(range(3), 64)
    write_folder(tmp_path / "one", truth, "npy")
    write_folder(tmp_path / "two", 255 - truth, "npy")
    source = FolderSource(tmp_path)
    assert (source.num_videos, source.num_samples) == (3, 2)
    clips = source.clips([1], truth[[1], :5], 2, [10])[10]
    assert np.array_equal(clips[0, 0], truth[1])
    assert np.array_equal(clips[0, 1, 5:], 255 - truth[1, 5:])
    assert np.array_equal(clips[0, 1, :5], truth[1, :5])


def test_a_longer_video_serves_every_unconditional_length(tmp_path):
    truth = UNCONDITIONAL.truth(range(2), 64)
    write_folder(tmp_path, truth, "npy")
    clips = FolderSource(tmp_path).clips([0, 1], truth[:, :0], 1, [10, 20])
    assert np.array_equal(clips[10][:, 0], truth[:, :10])
    assert np.array_equal(clips[20][:, 0], truth)


def test_the_identity_of_a_folder_is_that_of_its_files(tmp_path):
    truth = PAPER.truth(range(2), 64)
    for name in ("a", "b", "c"):
        write_folder(tmp_path / name, truth if name != "c" else truth[::-1], "npy")
    first, same, other = (FolderSource(tmp_path / name).identity["sha256"] for name in ("a", "b", "c"))
    assert first == same != other


@pytest.mark.parametrize(
    ("shape", "reason"),
    [
        ((7, 64, 64), r"clip-0.npy has 7 frames, expected 5 \(predicted\) or 10 \(all\)"),
        ((5, 48, 48), "clip-0.npy has frames of 48×48, expected 64×64 or a multiple"),
        ((5, 64, 128), "clip-0.npy has frames of 128×64, expected 64×64 or a multiple"),
    ],
)
def test_a_video_of_other_sizes_is_refused_by_name(tmp_path, shape, reason):
    np.save(tmp_path / "clip-0.npy", np.zeros(shape, np.uint8))
    with pytest.raises(ValueError, match=reason):
        FolderSource(tmp_path).clips([0], PAPER.truth([0], 64)[:, :5], 1, [10])


def test_too_short_for_an_unconditional_length_is_refused(tmp_path):
    np.save(tmp_path / "clip-0.npy", np.zeros((10, 64, 64), np.uint8))
    with pytest.raises(ValueError, match=r"clip-0.npy has 10 frames, expected at least 20"):
        FolderSource(tmp_path).clips([0], np.zeros((1, 0, 64, 64, 1), np.uint8), 1, [20])


def test_folders_that_cannot_be_read_as_videos_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"expected one with a model_index.json, or with videos \(.npy, .npz, .gif"):
        FolderSource(tmp_path)
    clip = np.zeros((10, 64, 64, 1), np.uint8)
    write_folder(tmp_path, [clip], "npy")
    write_folder(tmp_path, [clip], "gif")
    with pytest.raises(ValueError, match=r"with .gif and .npy files, expected one kind"):
        FolderSource(tmp_path)
    write_folder(tmp_path / "samples" / "a", [clip], "npy")
    write_folder(tmp_path / "samples" / "b", [clip, clip], "npy")
    with pytest.raises(ValueError, match=r"subfolders with \[1, 2\] videos, expected equal"):
        FolderSource(tmp_path / "samples")


@pytest.mark.parametrize(
    ("arrays", "reason"),
    [
        ({"a": np.zeros(3), "b": np.zeros(3)}, r"holds the arrays \['a', 'b'\], expected one"),
        ({"a": np.zeros((3, 64))}, r"has shape \(3, 64\), expected \[N, F, H, W\]"),
        ({"a": np.full((1, 5, 64, 64), 1.5)}, r"x.npz runs from 1.5 to 1.5, expected floats in \[0, 1\]"),
        ({"a": np.zeros((1, 5, 64, 64), np.int64)}, "int64, expected an array of uint8"),
        (None, "x.npz is not a readable npz file"),
    ],
)
def test_npz_files_that_are_no_videos_are_refused(tmp_path, arrays, reason):
    if arrays is None:
        (tmp_path / "x.npz").write_bytes(b"PK\x03\x04 cut short")
    else:
        np.savez(tmp_path / "x.npz", **arrays)
    with pytest.raises(ValueError, match=reason):
        FolderSource(tmp_path)


def test_more_clips_or_samples_than_there_are_is_refused(tmp_path):
    write_folder(tmp_path, PAPER.truth(range(3), 64), "npy")
    source = FolderSource(tmp_path)
    with pytest.raises(ValueError, match="`--num-videos` is 4, expected at most the 3"):
        source.check(PAPER, 4, 1, (10,))
    with pytest.raises(ValueError, match="`--num-samples` is 2, expected at most the 1"):
        source.check(PAPER, 3, 2, (10,))
