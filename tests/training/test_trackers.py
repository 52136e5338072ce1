"""What a run shows by way of its tracker: videos where it can, sheets elsewhere; trackers that are not there."""

import importlib.util
import io
import sys
import types

import numpy as np
import pytest
from accelerate import tracking
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from video_diffusion.data.reading import read_video
from video_diffusion.training import command, samples, trackers

FRAMES, SIZE = 4, 16
TINY = [
    *("--block_out_channels", "16", "16", "--patch_size", "4", "--num_frames", FRAMES, "--image_size", SIZE),
    *("--norm_num_groups", "8", "--attention_head_dim", "8", "--lr_scheduler", "constant", "--warmup_steps", "0"),
    *("--validation_steps", "0", "--per_device_batch_size", "1", "--num_channels", "1", "--log_steps", "1"),
    *("--validation_split", "validation", "--sample_steps", "1", "--sample_videos", "2"),
]


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """Grey videos with captions, two in each split; pixels tell which."""
    folder = tmp_path_factory.mktemp("videos")
    for split, first in (("train", 10), ("validation", 110)):
        (folder / split).mkdir()
        for number in range(2):
            np.save(folder / split / f"{number}.npy", np.full((FRAMES, SIZE, SIZE), first + 50 * number, np.uint8))
            (folder / split / f"{number}.txt").write_text(f"{split} {number}")
    return folder


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(samples, "STEPS", 1)


def run(videos, output, *flags):
    return command.main([*map(str, [*TINY, "--videos", videos, "--output_dir", output, *flags])])


@pytest.fixture
def register(monkeypatch):
    """A function that registers a tracker with accelerate until the test ends."""
    monkeypatch.setattr(tracking, "LOGGER_TYPE_TO_CLASS", known := dict(tracking.LOGGER_TYPE_TO_CLASS))
    monkeypatch.setattr(trackers, "LOGGER_TYPE_TO_CLASS", known)
    monkeypatch.setattr("accelerate.accelerator.LOGGER_TYPE_TO_CLASS", known)
    return tracking.register_tracker_class


class Plain(tracking.GeneralTracker):
    """Takes numbers; what it gets stays on the class."""

    name, requires_logging_directory, main_process_only = "plain", False, True

    def __init__(self, run_name):
        super().__init__()
        type(self).got = {"project": run_name, "finished": 0}

    tracker = property(lambda self: self)

    def store_init_configuration(self, values):
        self.got["settings"] = values

    def log(self, values, step, **kwargs):
        self.got.update(values)

    def finish(self):
        self.got["finished"] += 1


class OfSheets(Plain):
    def log_images(self, values, step, **kwargs):
        self.got.setdefault(step, {}).update(values)


class OfVideos(Plain):
    log_videos = OfSheets.log_images


def test_tensorboard_moves_samples_of_the_same_held_out_clips_at_every_step(videos, tmp_path):
    flags = ("--text_encoder", "small-bert", "--max_text_length", 16, "--max_steps", 2, "--learning_rate", 0.01)
    assert run(videos, tmp_path, *flags) == 0
    events = EventAccumulator(str(tmp_path / "logs" / "training"))
    events.Reload()
    assert {"samples/predicted", "samples/generated"} <= set(events.Tags()["images"])
    shown = events.Images("samples/predicted")
    assert [image.step for image in shown] == [1, 2]
    for step in (1, 2):
        file = tmp_path / "logs" / "samples" / f"predicted-000000{step}.gif"
        assert file.read_bytes() == shown[step - 1].encoded_image_string
    assert Image.open(io.BytesIO(shown[0].encoded_image_string)).format == "GIF"
    caption = events.Tensors("samples/generated/caption/text_summary")[0].tensor_proto.string_val[0]
    assert caption == b"validation 0 | validation 1"
    assert len(events.Scalars("loss")) == 2
    settings = list((tmp_path / "logs" / "training").glob("*/hparams.yml"))
    assert "image_size: 16" in settings[0].read_text()

    first, second = (
        read_video(tmp_path / "logs" / "samples" / f"predicted-000000{step}.gif").astype(int) for step in (1, 2)
    )
    scale = trackers.ABOUT // SIZE
    truth = [clip[:, : SIZE * scale] for clip in (first, second)]  # the upper row
    assert np.abs(truth[0][..., 0] - np.repeat([110, 160], SIZE * scale)[None, None]).max() <= 2
    assert np.array_equal(*truth)
    below = [clip[:, SIZE * scale :] for clip in (first, second)]
    assert np.array_equal(below[0][: FRAMES // 2], truth[0][: FRAMES // 2])  # given
    assert not np.array_equal(*below)


def test_a_tracker_without_videos_gets_sheets_and_one_with_them_gets_them(videos, tmp_path, register):
    for cls in (OfSheets, OfVideos, Plain):
        register(type(cls.__name__, (cls,), {"name": cls.__name__.lower()}))
    said = ("--text_encoder", "small-bert", "--max_text_length", 16, "--sample_prompts", "a", "b" * 40)
    for name in ("ofsheets", "ofvideos", "plain"):
        assert run(videos, tmp_path / name, *said, "--tracker", name, "--max_steps", 1) == 0
        got = trackers.LOGGER_TYPE_TO_CLASS[name].got
        assert np.isfinite(got["loss"])
        assert got["settings"]["max_steps"] == 1
        assert got["project"] == "video-diffusion"
        assert got["finished"] == 1
        if name == "ofsheets":
            assert got[1]["samples/predicted"].shape == (1, 4 * SIZE, FRAMES * SIZE, 3)
            assert got[1]["samples/generated"].shape == (1, 2 * SIZE, FRAMES * SIZE, 3)
            assert (got[1]["samples/predicted"][0, :SIZE] == 110).all()
        if name == "ofvideos":
            assert got[1]["samples/predicted"].shape == (FRAMES, 2 * SIZE, 2 * SIZE, 1)
            assert got[1]["samples/generated"].dtype == np.uint8


@pytest.mark.parametrize("name", ["wandb", "trackio", "swanlab", "comet_ml", "mlflow", "clearml", "aim", "dvclive"])
def test_each_tracker_gets_what_it_can_show(name, tmp_path, monkeypatch):
    """Against the calls of their packages as their documentation has them: packages are stand-ins here."""
    calls = []

    def note(what):
        return lambda *args, **kwargs: calls.append((what, args, kwargs))

    def video(path, caption=None, **kwargs):
        assert path.endswith(".gif")
        return "a video"

    if name in ("wandb", "trackio", "swanlab"):
        monkeypatch.setitem(sys.modules, name, types.SimpleNamespace(Video=video))
    report = types.SimpleNamespace(report_media=note("report_media"))
    tracker = types.SimpleNamespace(
        name=name,
        log=note("log"),
        log_images=note("log_images"),
        log_artifact=note("log_artifact"),
        writer=types.SimpleNamespace(log_video=note("log_video")),
        live=types.SimpleNamespace(log_image=note("log_image")),
        task=types.SimpleNamespace(get_logger=lambda: report),
    )
    shown = trackers.Shown([np.zeros((2, 3, 8, 8, 1), np.uint8)] * 2, "words")
    trackers.WRITERS[name](tracker, "samples/x", shown, tmp_path / "x-0000007.gif", 7)
    (what, args, kwargs), *more = calls
    assert not more
    expected = {"comet_ml": "log_video", "mlflow": "log_artifact", "clearml": "report_media", "aim": "log_images"}
    assert what == {**expected, "dvclive": "log_image"}.get(name, "log")
    if what == "log":
        assert args == ({"samples/x": "a video"},)
        assert kwargs == {"step": 7}
    if name == "aim":
        assert args[0]["samples/x"][0].shape == (32, 24, 3)


@pytest.mark.skipif(importlib.util.find_spec("wandb") is None, reason="wandb is not installed")
def test_weights_and_biases_takes_the_videos_offline(videos, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert run(videos, tmp_path, "--tracker", "wandb", "--max_steps", 1) == 0
    assert len(list((tmp_path / "logs" / "wandb").glob("offline-run-*/files/media/videos/samples/*.gif"))) == 2


@pytest.mark.skipif(importlib.util.find_spec("trackio") is None, reason="trackio is not installed")
def test_trackio_takes_the_videos(videos, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    assert run(videos, tmp_path / "run", "--tracker", "trackio", "--max_steps", 1) == 0
    assert "did not take" not in "".join(capsys.readouterr())


def test_a_tracker_that_breaks_while_videos_are_logged_ends_no_run(videos, tmp_path, register, capsys):
    class Broken(Plain):
        name = "broken"

        def log_images(self, values, step, **kwargs):
            raise OSError("the disk\nis full")

    register(Broken)
    assert run(videos, tmp_path, "--tracker", "broken", "--max_steps", 1) == 0
    said = "".join(capsys.readouterr())
    assert "broken did not take the predicted samples of step 1: the disk is full. They are in " in said
    assert (tmp_path / "model_index.json").is_file()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--tracker", "wand"], "`tracker` is 'wand', expected one of none, aim, clearml, comet_ml, dvclive, mlflow,"),
        (["--tracker", "aim"], "`tracker` is 'aim', whose package is not installed: pip install aim"),
        (["--tracker", "offline"], "`tracker` is 'offline', which does not start: no connection"),
        (["--sample_prompts", "a"], "`sample_prompts` is ['a'], expected none without a `text_encoder`."),
    ],
)
def test_what_cannot_be_logged_is_said_before_the_first_step(flags, message, videos, tmp_path, register, capsys):
    class Offline(Plain):
        name = "offline"

        def __init__(self, run_name):
            raise RuntimeError("no connection")

    register(Offline)
    assert run(videos, tmp_path, "--max_steps", 1, *flags) == 2
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("train:")]
    assert len(said) == 1
    assert message in said[0]
    assert not list(tmp_path.glob("checkpoint-*"))
