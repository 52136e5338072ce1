"""Streams of data sets: what stands where, what replaces a bad video, and the column names of WebDataset."""

from itertools import islice

import datasets
import numpy as np
import pytest

from shards import make_shards, one_brightness
from video_diffusion.data import ClipShape, load_videos, stream_videos
from video_diffusion.data.streams import VideoStream


def stored(number, frames=8):
    return one_brightness(number, frames)[..., 0].astype(np.uint8).tolist()


def stream_of(videos, frames=4, **options):
    """A stream of videos with 8 frames each, in two shards."""
    rows = {"video": videos, "caption": [f"video {k}" for k in range(len(videos))]}
    table = datasets.Dataset.from_dict(rows).to_iterable_dataset(num_shards=2)
    return VideoStream(table, ClipShape(frames, 16, 24), **{"seed": 3, "buffer": 4} | options)


def drawn(stream, positions, size=1, pool=None):
    """Which videos stand at these positions, and with which first frame."""
    groups = [positions[i : i + size] for i in range(0, len(positions), size)]
    clips = [item.clip for group in stream.draw(groups, pool) for item in group]
    return [divmod(round(clip[0].mean()), 20) for clip in clips]


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return make_shards(tmp_path_factory.mktemp("data") / "shards")


# ------------------------------------------------------------------------------------------------------------- streams
def test_each_epoch_has_every_video_once_in_an_order_of_its_own():
    stream = stream_of([stored(k) for k in range(6)])
    videos = [video for video, _ in drawn(stream, range(18))]
    epochs = [videos[i : i + 6] for i in (0, 6, 12)]
    assert [sorted(epoch) for epoch in epochs] == [list(range(6))] * 3
    assert len(set(map(tuple, epochs))) == 3


def test_what_stands_at_a_position_does_not_depend_on_where_the_reading_began():
    videos = [stored(k) for k in range(6)]
    whole = drawn(stream_of(videos), range(20))
    assert len({start for _, start in whole}) > 1  # windows differ
    for start in (0, 1, 5, 6, 7, 13, 19):
        assert drawn(stream_of(videos), range(start, 20)) == whole[start:]
        known = stream_of(videos)
        known.length = 6
        assert drawn(known, range(start, 20)) == whole[start:]
    assert drawn(stream_of(videos), [2, 9, 14]) == [whole[2], whole[9], whole[14]]
    assert drawn(stream_of(videos, seed=4), range(20)) != whole


def test_a_stream_without_a_buffer_keeps_the_order_of_the_data_set():
    stream = stream_of([stored(k) for k in range(6)], buffer=1)
    assert [video for video, _ in drawn(stream, range(12))] == [*range(6), *range(6)]


def test_a_bad_video_is_replaced_by_the_next_and_moves_no_other():
    videos = [stored(k) for k in range(6)]
    good = drawn(stream_of(videos), range(18), size=3)
    stream = stream_of([stored(2, frames=3) if k == 2 else videos[k] for k in range(6)])
    with pytest.warns(
        UserWarning, match="of the stream is replaced by a later one: .* has 3 frames, expected at least 4"
    ):
        found = drawn(stream, range(18), size=3)
    bad = [position for position in range(18) if good[position][0] == 2]
    assert len(bad) == 3
    for position in range(18):
        if position not in bad:
            assert found[position] == good[position]
        elif position + 1 not in bad and position < 17:
            assert found[position][0] == good[position + 1][0]
    assert "of the first 6 videos of the stream 1 are left out:" in stream.notes[0]
    assert drawn(stream, range(bad[1], 18), size=3) == found[bad[1] :]
    with pytest.raises(ValueError, match=r"1 of the first 6 videos of the stream cannot be used: .* has 3 frames"):
        stream_of([stored(2, frames=3) if k == 2 else videos[k] for k in range(6)], on_bad_video="fail")


def test_a_stream_of_bad_videos_ends_with_an_error_and_not_in_a_loop():
    stream = stream_of([stored(k, frames=3) if k else stored(0) for k in range(9)], buffer=1)
    with pytest.warns(UserWarning, match="is replaced"):
        assert drawn(stream, [1])[0][0] == 0
    stream.shape = ClipShape(9, 16, 24, 1)
    with (
        pytest.raises(ValueError, match="100 videos of the stream in a row cannot be used"),
        pytest.warns(UserWarning, match="is replaced"),
    ):
        drawn(stream, [0])


def test_the_first_clips_are_the_middle_windows_in_the_order_of_the_data_set():
    stream = stream_of([stored(k) for k in range(6)])
    assert [divmod(round(clip[0].mean()), 20) for clip in stream.first(3)] == [(0, 2), (1, 2), (2, 2)]
    assert len(stream.first(9)) == 6


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"column": "film"}, r"the data set has the columns \['video', 'caption'\], expected one named 'film'"),
        (
            {"frames": 9},
            "6 of the first 6 videos of the stream cannot be used: row 0 has 8 frames, expected at least 9",
        ),
        ({"buffer": 0}, "`buffer` is 0, expected at least 1"),
        ({"on_bad_video": "ignore"}, "`on_bad_video` is 'ignore', expected one of skip, fail"),
    ],
)
def test_what_cannot_work_is_refused_at_once(options, reason):
    with pytest.raises(ValueError, match=reason):
        stream_of([stored(k) for k in range(6)], **options)


# ---------------------------------------------------------------------------------------------------------- WebDataset
@pytest.mark.parametrize("single", [False, True], ids=["folder", "one tar"])
def test_tar_files_are_read_whole_or_as_a_stream(shards, single):
    source = shards / "train-000.tar" if single else shards
    count = 4 if single else 7
    options = {"num_frames": 4, "image_size": (16, 24), "num_channels": 1}
    videos = load_videos(source, **options)
    assert len(videos) == count
    assert videos.captions("caption") == [f"json {k}" for k in range(count)]
    assert videos.captions("txt") == [f"text {k}" for k in range(count)]
    assert videos.captions("number") == [str(k) for k in range(count)]
    stream = stream_videos(source, **options, buffer=4)
    assert np.array_equal(stream.first(count), videos.batch(range(count)))
    assert stream.captions("caption") == videos.captions("caption")
    row = next(islice(stream.rows(0), 1))
    assert isinstance(row["mp4"]["bytes"], bytes)  # nothing is decoded before its turn
    (((item,),)) = [stream.draw([[2]]).__next__()]
    assert stream.captioner("caption")(item.row) == f"json {round(item.clip[0].mean()) // 20}"


def test_only_texts_serve_as_captions_too_and_other_columns_are_refused():
    rows = {"mp4": [stored(0)], "txt": ["a text"]}
    table = datasets.Dataset.from_dict(rows).to_iterable_dataset()
    stream = VideoStream(table, ClipShape(4, 16, 24))
    assert stream.captions("caption") == ["a text"]
    with pytest.raises(ValueError, match=r"`caption_column` is 'label', expected one of \['mp4', 'txt'\]"):
        stream.captions("label")


def test_video_files_need_no_stream(tmp_path):
    np.save(tmp_path / "a.npy", one_brightness(1).astype(np.uint8))
    with pytest.raises(ValueError, match=r"`streaming` is true, expected a data set: .* holds video files"):
        stream_videos(tmp_path, num_frames=4, image_size=16)
