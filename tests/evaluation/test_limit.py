import numpy as np
import pytest

from video_diffusion.data import MovingMNIST
from video_diffusion.evaluation import PROTOCOLS
from video_diffusion.evaluation.limit import best_possible
from video_diffusion.evaluation.report import to_the_limit


@pytest.fixture(scope="module")
def clips():
    data = MovingMNIST(split="test", num_frames=8)
    return data.batch(range(4))[..., None], best_possible(data, range(4), 5)


def test_given_frames_are_the_true_ones_and_a_sample_is_drawn_as_the_data_are(clips):
    truth, best = clips
    for video in best.values():
        assert video.dtype == np.uint8
        assert (video[:, :5] == truth[:, :5]).all()
    ink, made = (video[:, 5:].sum((2, 3, 4), dtype=float) for video in (truth, best["best_sample"]))
    assert np.abs(made / ink - 1).max() < 0.35  # overlaps differ, digits do not


def test_the_mean_has_the_least_error(clips):
    truth, best = clips
    error = {name: ((video[:, 5:] / 255.0 - truth[:, 5:] / 255.0) ** 2).mean() for name, video in best.items()}
    still = ((np.repeat(truth[:, 4:5], 3, 1) / 255.0 - truth[:, 5:] / 255.0) ** 2).mean()
    assert error["best_mean"] < error["best_sample"] < still / 3


def test_a_clips_limit_depends_on_its_number_alone(clips):
    data = MovingMNIST(split="test", num_frames=8)
    assert (best_possible(data, [2], 5)["best_sample"][0] == clips[1]["best_sample"][2]).all()


def test_only_protocols_that_give_frames_of_classic_clips_have_a_limit():
    has = {name for name, protocol in PROTOCOLS.items() if protocol.variant == "classic" and protocol.num_given}
    assert has == {"paper", "openstl"}
    assert PROTOCOLS["mcvd"].limits([0], 64) == {}
    with pytest.raises(ValueError, match="expected classic with some"):
        best_possible(MovingMNIST(variant="stochastic", num_frames=4), [0], 2)


def test_the_distance_to_the_limit_is_a_ratio():
    figures = {
        "mse": {"one_sample": {"mse": 60.0}, "best_sample": {"mse": 30.0}, "best_mean": {"mse": 15.0}},
        "fvd": {"10": {"8": {"one_sample": 6.0, "best_sample": 2.0}}},
    }
    text = to_the_limit({"figures": figures, "num_samples": 1})
    assert "squared error of one sample 2.00 ×" in text
    assert "FVD of 10 frames, 8 clips 3.00 ×" in text
    assert to_the_limit({"figures": {}, "num_samples": 1}) == ""
