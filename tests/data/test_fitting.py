"""Frames at the model's size: training, prediction and the demo's programs cut them alike."""

import numpy as np
import pytest

from video_diffusion.data import load_videos
from video_diffusion.data.fitting import fit
from video_diffusion.data.reading import open_video
from video_diffusion.sampling import file_task


def pattern(height, width, frames=6):
    """Red grows to the right, green downwards, blue with time."""
    y, x = np.mgrid[:height, :width] * 255
    planes = [x // (width - 1), y // (height - 1)]
    return np.stack([np.stack([*planes, np.full_like(x, 20 * i)], -1) for i in range(frames)]).astype(np.uint8)


def test_a_wide_clip_loses_its_sides_and_a_tall_one_its_ends():
    wide, tall = fit(pattern(32, 64), 16, 16), fit(pattern(64, 32), 16, 16)
    for clip, squeezed, whole in ((wide, 0, 1), (tall, 1, 0)):
        assert clip.shape == (6, 16, 16, 3)
        low, high = int(clip[0, ..., squeezed].min()), int(clip[0, ..., squeezed].max())
        assert low == pytest.approx(64, abs=6)  # a quarter is gone at each side
        assert high == pytest.approx(191, abs=6)
        assert clip[0, ..., whole].min() < 8
        assert clip[0, ..., whole].max() > 247


@pytest.mark.parametrize("size", [(48, 80), (80, 48), (30, 31), (16, 24), (33, 97)])
def test_predict_gives_the_model_the_pixels_that_training_gave(tmp_path, size):
    np.save(tmp_path / "clip.npy", pattern(*size))
    trained = load_videos(tmp_path, num_frames=6, image_size=(16, 24), crop="center").batch([0])
    task = file_task(open_video(tmp_path / "clip.npy"), 2, 0, 6, 16, 24)
    assert np.array_equal(task.given, trained[:, :2])
    assert np.array_equal(task.truth, trained)
    assert np.array_equal(fit(pattern(*size), 16, 24), trained[0])


def test_predict_says_what_it_cuts(tmp_path, capsys):
    for name, size in (("wide", (32, 64)), ("square", (32, 32)), ("same", (16, 16))):
        np.save(tmp_path / f"{name}.npy", pattern(*size))
        file_task(open_video(tmp_path / f"{name}.npy"), 2, 1, 10, 16, 16)
    said = capsys.readouterr().err.splitlines()
    assert said == [
        "Resized and cropped at the centre the given frames from 64×32 to 16×16, the model's size.",
        "Resized the given frames from 32×32 to 16×16, the model's size.",
    ]
