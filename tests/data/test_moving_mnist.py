"""Clips against a slow painter, purity of (seed, split, index), and the statistics of what is drawn."""

import hashlib
import pickle
import subprocess
import sys

import numpy as np
import pytest
from scipy import stats
from torch.utils.data import DataLoader

from video_diffusion.data import Digits, MovingMNIST, load_digits, resize_images, trajectories
from video_diffusion.data.moving_mnist import render

VARIANTS = ("classic", "stochastic")


def painted(digits: np.ndarray, positions: np.ndarray, image_size: int, add: bool) -> np.ndarray:
    """One clip, one digit and one frame at a time, in float: digits `[D, h, h]`, positions `[F, D, 2]`."""
    clip = np.zeros((len(positions), image_size, image_size))
    for frame, corners in zip(clip, positions.tolist(), strict=True):
        for digit, (y, x) in zip(digits, corners, strict=True):
            place = frame[y : y + len(digit), x : x + len(digit)]
            place[...] = place + digit if add else np.maximum(place, digit)
    return np.minimum(clip, 255).astype(np.uint8)


@pytest.mark.parametrize("add", [False, True])
@pytest.mark.parametrize(("D", "size", "image_size"), [(1, 28, 28), (2, 28, 64), (5, 9, 17), (3, 1, 4)])
def test_rendering_equals_a_painter_that_pastes_digit_by_digit(add, D, size, image_size):
    rng = np.random.default_rng(0)
    digits = rng.integers(0, 256, (11, D, size, size), np.uint8)
    positions = rng.integers(0, image_size - size + 1, (11, D, 7, 2))
    expected = [painted(digits[b], positions[b].swapaxes(0, 1), image_size, add) for b in range(11)]
    assert np.array_equal(render(digits, positions, image_size, add=add), expected)


@pytest.mark.parametrize("variant", VARIANTS)
def test_videos_show_the_digits_of_their_labels_at_their_positions(variant):
    videos = MovingMNIST(split="test", variant=variant, num_frames=6, num_digits=1)
    source = load_digits("test")
    images = resize_images(source.images, videos.pixels_per_digit)
    size = videos.pixels_per_digit
    for index in range(20):
        clip = videos[index]
        (label,), corners = clip["labels"], clip["positions"][:, 0]
        crops = [frame[y : y + size, x : x + size] for frame, (y, x) in zip(clip["video"], corners, strict=True)]
        match = np.flatnonzero((images == crops[0]).all((1, 2)))
        assert source.labels[match].tolist() == [label]
        assert all(np.array_equal(crop, crops[0]) for crop in crops)
        assert [int(frame.sum()) for frame in clip["video"]] == [int(crops[0].sum())] * 6  # nothing outside the digit


@pytest.mark.parametrize("variant", VARIANTS)
def test_overlaps_follow_the_variant(variant):
    ink = Digits(np.full((1, 28, 28), 100, np.uint8), np.zeros(1, np.int64))
    video = MovingMNIST(variant=variant, num_digits=4, digits=ink, num_videos=50).batch(range(50))
    levels = {0, 100} if variant == "classic" else {0, 100, 200, 255}
    assert set(np.unique(video).tolist()) == levels


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_clip_is_the_same_alone_in_any_batch_and_in_any_order(variant):
    videos = MovingMNIST(variant=variant, split="test", num_digits=(1, 3))
    order = np.random.default_rng(0).permutation(80)
    batch = videos.clips(order)
    for b in (0, 17, 79):
        for name, value in videos[int(order[b])].items():
            assert np.array_equal(batch[name][b], value)
    assert np.array_equal(videos.batch(order[:33]), batch["video"][:33])
    assert np.array_equal(videos.batch(order[::-1]), batch["video"][::-1])


def test_another_process_draws_the_same_bytes(tmp_path):
    indices = [3, 1, 2**31 - 2]
    videos = MovingMNIST(split="test", variant="stochastic")
    here = hashlib.sha256(videos.batch(indices).tobytes()).hexdigest()
    (tmp_path / "videos.pkl").write_bytes(pickle.dumps(MovingMNIST(split="test", variant="stochastic")))
    code = f"""
import hashlib, pickle, sys
videos = pickle.load(open(sys.argv[1], "rb"))
print(hashlib.sha256(videos.batch({indices}).tobytes()).hexdigest())
"""
    words = [sys.executable, "-c", code, str(tmp_path / "videos.pkl")]
    there = subprocess.run(words, capture_output=True, text=True, timeout=120, check=True).stdout
    assert there.strip() == here


def test_data_loader_workers_give_the_generators_clips_in_order():
    videos = MovingMNIST(split="test", num_videos=10, num_digits=(1, 2))
    videos.source  # noqa: B018  decoded once, before the workers start
    batches = list(DataLoader(videos, batch_size=4, num_workers=2))
    joined = {name: np.concatenate([batch[name].numpy() for batch in batches]) for name in batches[0]}
    for name, values in videos.clips(range(10)).items():
        assert np.array_equal(joined[name], values)


@pytest.mark.parametrize("variant", VARIANTS)
def test_more_frames_or_digits_continue_the_same_clip(variant):
    short = MovingMNIST(split="test", variant=variant, num_frames=5, num_digits=2).clips(range(8))
    long = MovingMNIST(split="test", variant=variant, num_frames=23, num_digits=2).clips(range(8))
    more = MovingMNIST(split="test", variant=variant, num_frames=5, num_digits=4).clips(range(8))
    assert np.array_equal(long["video"][:, :5], short["video"])
    assert np.array_equal(more["positions"][:, :, :2], short["positions"])
    assert np.array_equal(more["labels"][:, :2], short["labels"])


def test_every_setting_changes_the_clips():
    base = MovingMNIST(split="test", num_digits=2, seed=0)
    first = base.batch(range(4))
    changes = {
        "split": "train",
        "num_frames": 11,
        "image_size": 65,
        "num_digits": 3,
        "variant": "stochastic",
        "speed": 0.05,
        "digit_size": 20,
        "seed": 1,
        "digit_range": (0, 256),
        "digits": Digits(load_digits("test").images[::-1].copy(), load_digits("test").labels[::-1].copy()),
    }
    for name, value in changes.items():
        changed = MovingMNIST(**{"split": "test", "num_digits": 2, "seed": 0, name: value}).batch(range(4))
        assert not np.array_equal(changed, first), name


def test_the_data_of_seed_zero_stays_what_it_is():
    # Published numbers depend on these clips: a change of the generator must be deliberate.
    sums = {v: MovingMNIST(split="test", variant=v).batch(range(100)).astype(np.int64).sum() for v in VARIANTS}
    corners = MovingMNIST(split="test").clips([5])
    assert corners["labels"].tolist() == [[3, 9]]
    assert corners["positions"][0, :3].tolist() == [[[26, 1], [12, 4]], [[23, 1], [8, 5]], [[19, 2], [5, 7]]]
    assert sums == {"classic": 51363686, "stochastic": 66974828}


@pytest.mark.parametrize(("variant", "last"), [("classic", 36), ("stochastic", 31)])
def test_digits_stay_inside_the_frame_and_reach_every_position(variant, last):
    positions = MovingMNIST(split="test", variant=variant, num_frames=40, num_digits=1).clips(range(300))["positions"]
    assert positions.min() == 0
    assert positions.max() == last
    assert len(np.unique(positions)) == last + 1


def test_stochastic_starts_and_velocities_are_uniform():
    positions = MovingMNIST(split="test", variant="stochastic", num_frames=2, num_digits=1).clips(range(20000))[
        "positions"
    ]
    start, second = positions[:, 0, 0], positions[:, 1, 0]
    for axis in (0, 1):
        assert stats.chisquare(np.bincount(start[:, axis], minlength=32)).pvalue > 1e-3
        far = (start[:, axis] >= 4) & (start[:, axis] <= 27)  # no wall within one step
        velocity = (second - start)[far, axis]
        assert set(velocity.tolist()) == set(range(-4, 5))
        assert stats.chisquare(np.bincount(velocity + 4)).pvalue > 1e-3


def drawn_positions(videos: MovingMNIST, number: int) -> np.ndarray:
    """Positions of each clip's first digit `[number, F, 2]`, without the pixels of large frames."""
    keys = trajectories.clip_keys(trajectories.stream_key(videos.seed, 1), np.arange(number))
    u = trajectories.uniform(keys, 2**20 + np.arange(8))
    assert np.array_equal(videos._classic(u)[:2], videos.clips(range(2))["positions"][:, :, 0])
    return videos._classic(u)


def test_classic_directions_are_uniform_and_the_step_is_a_tenth_of_the_range():
    videos = MovingMNIST(split="test", image_size=2028, num_frames=2, num_digits=1)  # a range of 2000 pixels
    positions = drawn_positions(videos, 4000)
    middle = ((positions[:, 0] > 200) & (positions[:, 0] < 1800)).all(-1)
    steps = (positions[:, 1] - positions[:, 0])[middle]
    assert np.abs(np.hypot(*steps.T) - 200).max() < 1.5
    angle = np.arctan2(*steps.T) / (2 * np.pi) % 1
    assert stats.kstest(angle, "uniform").pvalue > 1e-3


def test_digits_and_their_number_are_drawn_uniformly():
    clips = MovingMNIST(split="test", num_frames=1, num_digits=(1, 4), digit_range=(0, 256)).clips(range(4000))
    counts = (clips["labels"] >= 0).sum(1)
    assert stats.chisquare(np.bincount(counts)[1:]).pvalue > 1e-3
    expected = np.bincount(load_digits("test").labels[:256], minlength=10) / 256
    shown = clips["labels"][clips["labels"] >= 0]
    assert stats.chisquare(np.bincount(shown, minlength=10), expected * len(shown)).pvalue > 1e-3


def test_absent_digits_are_marked_and_leave_no_pixels():
    clips = MovingMNIST(split="test", num_digits=(1, 3)).clips(range(30))
    alone = MovingMNIST(split="test", num_digits=1).clips(range(30))
    single = (clips["labels"] >= 0).sum(1) == 1
    assert 0 < single.sum() < 30
    assert np.array_equal(clips["video"][single], alone["video"][single])
    assert (clips["positions"][single][:, :, 1:] == -1).all()
    assert (clips["positions"][:, :, 0] >= 0).all()


def test_mcvds_test_clips_use_only_the_first_256_test_digits():
    videos = MovingMNIST(split="test", variant="stochastic", num_digits=1, digit_range=(0, 256), num_videos=256)
    images = resize_images(load_digits("test").images[:256], 32)
    assert np.array_equal(videos.source.images, images)
    ink = set(images.sum((1, 2), dtype=np.int64).tolist())
    assert set(videos.batch(range(256))[:, 0].sum((1, 2), dtype=np.int64).tolist()) <= ink


def test_the_two_splits_move_independently():
    train, test = (
        MovingMNIST(split=split, digits=load_digits("test")).clips(range(50)) for split in ("train", "test")
    )
    assert (train["positions"][:, 0] != test["positions"][:, 0]).any((1, 2)).all()


def test_an_empty_batch_is_empty():
    assert MovingMNIST(split="test").batch([]).shape == (0, 10, 64, 64)


def test_length_is_the_number_asked_for_or_endless():
    assert len(MovingMNIST(num_videos=12)) == 12
    assert len(MovingMNIST()) == 2**31 - 1


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ({"split": "valid"}, "`split` is 'valid'; expected one of 'train', 'test'"),
        ({"variant": "fast"}, "`variant` is 'fast'"),
        ({"num_frames": 0}, "`num_frames` is 0; expected 1 to"),
        ({"num_frames": 2.0}, "`num_frames` is 2.0; expected an integer"),
        ({"image_size": 27}, "`image_size` is 27; expected 28 to"),
        ({"image_size": 32, "variant": "stochastic"}, "`image_size` is 32; expected 33 to"),
        ({"num_digits": 0}, "`num_digits` is 0"),
        ({"num_digits": (3, 2)}, r"`num_digits` is \(3, 2\); expected its first"),
        ({"num_digits": (1, 2, 3)}, r"`num_digits` is \(1, 2, 3\); expected"),
        ({"seed": -1}, "`seed` is -1"),
        ({"seed": True}, "`seed` is True; expected an integer"),
        ({"num_videos": 0}, "`num_videos` is 0"),
        ({"digit_size": 0}, "`digit_size` is 0"),
        ({"digit_range": (5, 5)}, "`digit_range`"),
        ({"speed": 1.5}, r"`speed` is 1.5; expected a fraction of the range in \[0, 1\]"),
        ({"speed": float("nan")}, "`speed` is nan"),
        ({"speed": 0.5, "variant": "stochastic"}, "`speed` is 0.5; expected 1 to 64 whole pixels"),
        ({"speed": float("nan"), "variant": "stochastic"}, "`speed` is nan"),
    ],
)
def test_settings_out_of_range_are_refused(setting, words):
    with pytest.raises(ValueError, match=words):
        MovingMNIST(**setting)


def test_digits_beyond_the_source_and_bad_indices_are_refused():
    with pytest.raises(ValueError, match=r"`digit_range` is \(9000, 10001\); the source has 10000 digits"):
        MovingMNIST(split="test", digit_range=(9000, 10001)).batch([0])
    videos = MovingMNIST(split="test", num_videos=3)
    for indices in ([3], [-1], [0, 2**40]):
        with pytest.raises(IndexError, match="expected 0 to 2"):
            videos.batch(indices)
    for indices in (0, [0.5], [[0]]):
        with pytest.raises(TypeError, match=r"expected integers of shape \[B\]"):
            videos.batch(indices)
    assert len(list(videos)) == 3  # a map-style dataset ends with IndexError
