"""Captions against the trajectories that the digits were drawn along, and against the vocabulary they promise."""

import itertools
import math
import re
import time

import numpy as np
import pytest

from video_diffusion.data import MovingMNIST, classic_positions, stochastic_positions
from video_diffusion.data.captions import (
    DIRECTIONS,
    STILL,
    TEMPLATES,
    VOCABULARY,
    Fact,
    captions,
    compose,
    describe,
    describe_clips,
    max_words,
    sectors,
)

VARIANTS = {
    "classic": MovingMNIST(split="test", num_videos=3000),
    "stochastic": MovingMNIST(split="test", variant="stochastic"),
}


def span_of(videos):
    return videos.image_size - videos.pixels_per_digit


def say(videos, count, templates="train", seed=0):
    return captions(videos.clips(range(count)), range(count), seed, span_of(videos), templates)


def words(text):
    return re.findall(r"\w+|[^\w\s]", text)


def true_sector(angle):
    return DIRECTIONS[round(math.degrees(angle) / 45) % 8]


# ----------------------------------------------------------------------------------------------------------- direction
def test_sectors_are_those_of_the_angle():
    dy, dx = map(np.ravel, np.meshgrid(np.arange(-40, 41), np.arange(-40, 41)))
    for found, y, x in zip(sectors(dy, dx).tolist(), dy.tolist(), dx.tolist(), strict=True):
        assert (*DIRECTIONS, STILL)[found] == (true_sector(math.atan2(y, x)) if x or y else STILL)


def test_a_classic_digit_goes_where_its_velocity_points():
    """Positions are cut to whole pixels, so a displacement of d pixels turns by asin(√2 / d) at most."""
    rng = np.random.default_rng(0)
    angle, start = 2 * np.pi * rng.random(4000), 0.3 + 0.4 * rng.random((4000, 2))  # no wall in the first frames
    paths = classic_positions(start, angle, 4, 36)
    facts = describe_clips(np.zeros((4000, 1), int), paths[:, :, None], 36)
    doubt = math.asin(math.sqrt(2) / (3 * 3.6 - math.sqrt(2)))
    certain = np.abs((angle + np.pi / 8) % (np.pi / 4) - np.pi / 8) < np.pi / 8 - doubt
    assert certain.mean() > 0.5
    agrees = np.array([known[0].direction == true_sector(a) for known, a in zip(facts, angle, strict=True)])
    assert agrees[certain].all()
    assert agrees.mean() > 0.9


@pytest.mark.parametrize("frames", [2, 5, 20])
def test_a_stochastic_digit_goes_exactly_where_its_velocity_points_unless_the_first_step_meets_a_wall(frames):
    checked = 0
    for v_y, v_x in itertools.product(range(-4, 5), repeat=2):
        start = np.array(list(itertools.product(range(1, 31, 3), repeat=2)))
        second = start + np.array([v_y, v_x])
        free = ((second >= 0) & (second <= 31)).all(1)
        start = start[free]
        redraws = np.random.default_rng(0).integers(1, 5, (len(start), frames, 2, 2))
        paths = stochastic_positions(start, np.broadcast_to([v_y, v_x], start.shape), redraws, 32)
        expected = true_sector(math.atan2(v_y, v_x)) if v_y or v_x else STILL
        for known in describe_clips(np.zeros((len(start), 1), int), paths[:, :, None], 32):
            assert known[0].direction == expected
        checked += len(start)
    assert checked > 4000


def test_a_digit_that_meets_a_wall_at_once_goes_where_it_is_seen_to_go():
    down_then_up = [[35, 10], [36, 13], [32, 17], [29, 20]]
    assert describe([3], np.array(down_then_up)[:, None], 36) == [Fact(3, "right", ("bottom",))]
    waits_in_the_corner = [[0, 0], [0, 0], [3, 0], [6, 0]]
    assert describe([3], np.array(waits_in_the_corner)[:, None], 36)[0].direction == "down"


# ------------------------------------------------------------------------------------------------------------- bounces
def test_bounces_are_the_turns_of_the_classic_path():
    """Against the unfolded path: a wall counts if the digit is drawn on its way there and on its way back."""
    rng = np.random.default_rng(1)
    for frames in (5, 25):
        angle, start = 2 * np.pi * rng.random(400), rng.random((400, 2))
        facts = describe_clips(np.zeros((400, 1), int), classic_positions(start, angle, frames, 36)[:, :, None], 36)
        for known, (y, x), a in zip(facts, start.tolist(), angle.tolist(), strict=True):
            position, velocity = [y, x], [0.1 * math.sin(a), 0.1 * math.cos(a)]
            path, hits = [], []
            for frame in range(frames):
                for axis in range(2):
                    position[axis] += velocity[axis]
                    if not 0 < position[axis] < 1:
                        position[axis] = float(position[axis] >= 1)
                        velocity[axis] *= -1
                        hits.append((frame, axis, ["top bottom", "left right"][axis].split()[int(position[axis])]))
                path.append([int(36 * p) for p in position])
            seen = np.array(path)
            for axis in range(2):
                expected = []
                for frame, _, wall in (hit for hit in hits if hit[1] == axis):
                    at = seen[frame, axis]
                    came = (seen[:frame, axis] != at).any()
                    left = (seen[frame:, axis] != at).any()
                    expected += [wall] if came and left else []
                walls = ["top", "bottom"] if axis == 0 else ["left", "right"]
                assert [wall for wall in known[0].walls if wall in walls] == expected


def test_walls_come_in_the_order_of_their_frames():
    y = [3, 1, 0, 2, 4, 6, 8]
    x = [30, 32, 34, 36, 33, 30, 27]
    assert describe([3], np.array([y, x]).T[:, None], 36)[0].walls == ("top", "right")
    assert describe([3], np.array([x, y]).T[:, None], 36)[0].walls == ("left", "bottom")


def test_a_stochastic_turn_away_from_all_walls_is_no_bounce():
    y = [29, 31, 28, 25]  # the wall below turns x as well
    x = [10, 13, 11, 9]
    assert describe([3], np.array([y, x]).T[:, None], 32) == [Fact(3, "down right", ("bottom",))]


# ----------------------------------------------------------------------------------------------------------- sentences
def test_the_sentences_word_for_word():
    facts = [Fact(3, "up left", ("top", "left", "bottom")), Fact(7, STILL)]
    assert [template.say(facts) for template in TEMPLATES["train"]] == [
        "the digit 3 moves up and to the left and bounces off the top and the left; the digit 7 stands still",
        "the digit 3 moves up and to the left; the digit 7 stands still",
        "the digit 3 moves up and to the left",
        "a 3 moving up and to the left and a 7 standing still",
        "3 goes up and to the left and bounces off the top and the left, 7 stands still",
        "two digits: the 3 moves up and to the left and the 7 stands still",
        "there is a 3 that goes up and to the left and bounces off the top and the left",
        "the digits 3 and 7",
        "a 3 and a 7",
    ]
    assert [template.say(facts) for template in TEMPLATES["held_out"]] == [
        "there is a 3 moving up and to the left; there is a 7 standing still",
        "moving up and to the left: the digit 3; standing still: the digit 7",
        "the digit 3 that goes up and to the left and bounces off the top and the left and the digit 7 that "
        "stands still",
        "two digits: 3, 7",
    ]
    assert TEMPLATES["train"][2].say([Fact(3, "right")]) == "the digit 3 moves right"
    varied = {template.say(facts) for template in TEMPLATES["varied"]}
    assert {template.say(facts) for template in TEMPLATES["train"]} < varied
    assert len(varied) > 250
    assert not varied & {template.say(facts) for template in TEMPLATES["held_out"]}
    assert {
        "the 3 moves up and to the left, the 7 stands still",
        "there is a 3 that moves up and to the left and a 7 that stands still",
        "two digits: a digit 3 is moving up and to the left; a digit 7 is standing still",
        "up and to the left moves a 3; still stands a 7",
        "3 goes up and to the left and bounces off the top and the left and 7 stands still",
        "two digits: a 3 and a 7",
        "the digit 3, the digit 7",
    } <= varied


@pytest.mark.parametrize("digits", [1, 2, (1, 5)])
@pytest.mark.parametrize("frames", [1, 2, 40])
@pytest.mark.parametrize("variant", VARIANTS)
def test_captions_are_of_the_vocabulary_and_no_longer_than_they_promise(variant, frames, digits):
    videos = MovingMNIST(split="test", variant=variant, num_frames=frames, num_digits=digits)
    varied, held_out = say(videos, 3000, "varied"), say(videos, 1500, "held_out")
    assert {word for text in varied + held_out for word in words(text)} <= set(VOCABULARY)
    assert not set(varied) & set(held_out)
    lengths = [len(words(text)) for text in varied + held_out]
    assert max(lengths) <= max_words(videos.digit_counts[1])
    if frames == 40 and digits != (1, 5):
        assert max(lengths) == max_words(digits)
    if frames == 1:
        assert not {"moves", "moving", "goes", "still"} & {word for text in varied + held_out for word in words(text)}


def test_every_held_out_word_is_one_of_training_and_the_vocabulary_has_no_other():
    seen = {"train": set(), "held_out": set()}
    for variant, digits in itertools.product(VARIANTS, (1, (1, 5))):
        for templates, found in seen.items():
            videos = MovingMNIST(split="test", variant=variant, num_digits=digits, num_frames=20)
            found |= {word for text in say(videos, 2000, templates) for word in words(text)}
    assert seen["held_out"] <= seen["train"] == set(VOCABULARY)
    assert len(VOCABULARY) == len(set(VOCABULARY))


def test_a_caption_depends_on_seed_number_and_clip_only():
    videos = VARIANTS["classic"]
    together = say(videos, 50)
    alone = [captions(videos.clips([i]), [i], 0, span_of(videos))[0] for i in range(50)]
    assert together == alone
    assert together == say(videos, 50)
    assert together != say(videos, 50, seed=1)
    many = say(videos, 3000)
    shares = np.array([sum(text.startswith(start) for text in many) for start in ("there is", "two digits:")]) / 3000
    assert np.abs(shares - 1 / len(TEMPLATES["train"])).max() < 0.025  # 4 standard deviations
    longer = MovingMNIST(split="test", num_videos=3000, num_frames=11)
    changed = sum(a != b for a, b in zip(say(longer, 200), say(videos, 200), strict=True))
    assert 0 < changed < 60  # one more frame shows a few more bounces


def test_captions_name_the_digits_that_are_there_in_both_orders():
    videos = MovingMNIST(split="test", num_digits=(1, 3))
    clips = videos.clips(range(500))
    orders = set()
    for labels, text in zip(clips["labels"].tolist(), captions(clips, range(500), 0, 36), strict=True):
        named = [int(word) for word in words(text) if word.isdigit()]
        present = [label for label in labels if label >= 0]
        assert sorted(named) == sorted(present) or (len(named) == 1 and named[0] in present)
        orders.add(named == present)
    assert orders == {True, False}


@pytest.mark.parametrize("templates", TEMPLATES)
def test_what_a_caption_is_said_to_say_is_what_its_words_say(templates):
    clips = VARIANTS["classic"].clips(range(500))
    facts = describe_clips(clips["labels"], clips["positions"], 36)
    for said, known in zip(compose(clips, range(500), 0, 36, templates), facts, strict=True):
        assert [int(word) for word in words(said.text) if word.isdigit()] == [fact.digit for fact in said.facts]
        assert set(said.facts) <= set(known)
        assert said.motion == any(f" {word} " in f" {said.text} " for word in ("moves", "goes", "moving"))
        if said.motion:
            assert all((fact.direction or "").split()[-1] in said.text for fact in said.facts)


def test_captions_are_quick():
    videos = VARIANTS["classic"]
    clips = videos.clips(range(2000))
    seconds = []
    for _ in range(4):  # the fastest counts: other processes share the processor's cache
        start = time.process_time()
        captions(clips, range(2000), 0, 36)
        seconds.append(time.process_time() - start)
    assert 2000 / min(seconds) > 5000


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"templates": "test"}, "`templates` is 'test'; expected one of 'train', 'held_out'"),
        ({"indices": [0]}, r"`indices` has shape \(1,\); expected \[2\]"),
        ({"span": -1}, "`span` is -1; expected 0 or more"),
        ({"labels": np.array([[1], [10]])}, "`labels` spans 1 to 10; expected −1 to 9"),
        ({"labels": np.array([[1], [-1]])}, "clip 8 has no digit; expected at least one"),
        ({"labels": np.array([[1, 2], [3, 4]])}, r"`positions` has shape \(2, 3, 1, 2\); expected \[2, F, 2, 2\]"),
    ],
)
def test_bad_input_is_refused(change, reason):
    given = {"labels": np.array([[1], [2]]), "indices": [7, 8], "span": 36, "templates": "train"} | change
    clips = {"labels": given.pop("labels"), "positions": np.zeros((2, 3, 1, 2), int)}
    with pytest.raises(ValueError, match=reason):
        captions(clips, seed=0, **given)
    with pytest.raises(ValueError, match="expected \\[D\\] and \\[F, D, 2\\]"):
        describe([[1]], clips["positions"], 36)
