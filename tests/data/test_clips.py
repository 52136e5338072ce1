"""Clips of videos of any source: which windows they are, what is cut and mirrored, and what is refused or left out."""

import io
import json
import pickle
import shutil
from fractions import Fraction

import av
import datasets
import numpy as np
import pytest
from PIL import Image

from video_diffusion.data import ClipShape, MovingMNIST, VideoClips, load_videos, write_parquet
from video_diffusion.data.stored import VideoTable
from video_diffusion.data.video_io import write_gif, write_mp4


def numbered(frames=20, height=24, width=32):
    """Grey frames, each of one brightness: frame i is 10·i."""
    return np.broadcast_to(10 * np.arange(frames, dtype=np.uint8)[:, None, None, None], (frames, height, width, 1))


def numbers_in(clip):
    """Which frames of `numbered` these are."""
    return np.rint(clip.mean((1, 2, 3)) / 10).astype(int).tolist()


def sloped(frames=6, height=16, width=32):
    """Red grows to the right, green downwards."""
    y, x = np.mgrid[:height, :width]
    frame = np.stack([8 * x, 8 * y, np.full_like(x, frames)], -1).astype(np.uint8)
    return np.repeat(frame[None], frames, axis=0)


def write_video(path, clip, rate, codec, times=None, **options):
    """A file by PyAV; `times` in milliseconds."""
    with av.open(str(path), "w") as file:
        stream = file.add_stream(codec, rate=rate, options={key: str(value) for key, value in options.items()})
        stream.height, stream.width = clip.shape[1:3]
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        if times is not None:
            stream.time_base = stream.codec_context.time_base = Fraction(1, 1000)
        for i, frame in enumerate(clip):
            picture = av.VideoFrame.from_ndarray(np.repeat(frame, 3, -1) if frame.shape[-1] == 1 else frame)
            if times is not None:
                picture.pts, picture.time_base = times[i], Fraction(1, 1000)
            file.mux(stream.encode(picture))
        file.mux(stream.encode())


def write_pictures(folder, clip):
    folder.mkdir(parents=True)
    for i, frame in enumerate(clip):
        Image.fromarray(frame.squeeze()).save(folder / f"{i}.png")


def encoded(frame, kind="PNG"):
    file = io.BytesIO()
    Image.fromarray(frame.squeeze()).save(file, format=kind)
    return file.getvalue()


def clips_of(source, **options):
    return load_videos(source, **{"num_frames": 10, "image_size": 16} | options)


def table(column, feature=None):
    features = feature and datasets.Features({"video": feature})
    return datasets.Dataset.from_dict({"video": column}, features=features)


def of_table(column, feature=None, num_frames=5, size=6, **options):
    shape = ClipShape(num_frames, size, size, **options)
    return VideoClips(VideoTable(table(column, feature)), shape)


# -------------------------------------------------------------------------------------------------------------- kinds
@pytest.fixture(scope="module")
def zoo(tmp_path_factory):
    """One folder with a video of every kind, of many sizes, rates and lengths, all with their frame number in grey."""
    folder = tmp_path_factory.mktemp("zoo")
    write_mp4(numbered(20), folder / "a.mp4", fps=24, scale=1)
    write_video(folder / "b.webm", numbered(15, 48, 32), 30, "libvpx")
    write_video(folder / "c.mov", numbered(12, 32, 32), 12, "mpeg4")
    write_video(folder / "d.avi", numbered(11, 16, 64), 25, "mjpeg")
    write_gif(numbered(14), folder / "e.gif", scale=1)
    write_pictures(folder / "f", numbered(13))
    np.save(folder / "g.npy", numbered(16)[..., 0])
    np.savez(folder / "h.npz", np.repeat(numbered(17, 40, 40), 3, -1))
    write_pictures(
        folder / "i", np.concatenate([np.repeat(numbered(10), 3, -1), np.full((10, 24, 32, 1), 255, np.uint8)], -1)
    )
    return folder


def test_every_kind_of_file_of_any_size_rate_and_length_gives_clips_of_one_shape(zoo):
    clips = clips_of(zoo)
    lengths = {video.name: video.num_frames for video in clips.videos}
    expected = "a.mp4 20 b.webm 15 c.mov 12 d.avi 11 e.gif 14 f 13 g.npy 16 h.npz 17 i 10"
    assert " ".join(f"{name} {length}" for name, length in lengths.items()) == expected
    batch = clips.batch(range(9))
    assert batch.shape == (9, 10, 16, 16, 1)
    assert batch.dtype == np.uint8
    for clip, video in zip(batch, clips.videos, strict=True):
        first = (video.num_frames - 10) // 2
        assert numbers_in(clip) == list(range(first, first + 10)), video.name


def test_the_published_file_of_moving_mnist_and_other_arrays_of_many_clips(tmp_path):
    many = np.stack([numbered(12)[..., 0], numbered(12)[..., 0] + 1], axis=1)  # [F, N, H, W]
    np.save(tmp_path / "many.npy", many)
    with pytest.raises(ValueError, match="which may be NFHW or FNHW: expected `video_axes` to say"):
        clips_of(tmp_path)
    clips = clips_of(tmp_path, video_axes="FNHW")
    assert [video.name for video in clips.videos] == ["many.npy, clip 0", "many.npy, clip 1"]
    assert clips.batch([0, 1])[:, 0, 0, 0, 0].tolist() == [10, 11]
    np.savez(tmp_path / "many.npz", many[..., None])
    assert len(clips_of(tmp_path / "many.npz", video_axes="FNHWC")) == 2
    published = np.lib.format.open_memmap(tmp_path / "mnist_test_seq.npy", "w+", np.uint8, (20, 10_000, 64, 64))
    published[:, 7] = numbered(20, 64, 64)[..., 0]
    clips = clips_of(tmp_path / "mnist_test_seq.npy", num_frames=20, num_channels=1)
    assert len(clips) == 10_000
    assert numbers_in(clips.batch([7])[0]) == list(range(20))


def test_transparent_pixels_lie_on_the_background_that_is_asked_for(tmp_path):
    write_pictures(tmp_path / "clip", np.zeros((10, 16, 16, 4), np.uint8))
    assert clips_of(tmp_path).batch([0]).max() == 0
    assert clips_of(tmp_path, background="white").batch([0]).min() == 255


# ------------------------------------------------------------------------------------------------------------ windows
def test_all_of_a_video_is_seen_and_each_epoch_has_another_window(zoo):
    clips = clips_of(zoo)
    starts = np.array([[numbers_in(c)[0] for c in clips.draw(range(9), [epoch] * 9)[0]] for epoch in range(30)])
    for video, column in zip(clips.videos, starts.T, strict=True):
        windows = video.num_frames - 9
        assert set(column.tolist()) == set(range(windows)), video.name
        if windows > 2:
            assert (column[1:] != column[:-1]).all()
            counts = np.bincount(column)
            assert counts.max() - counts.min() <= 3  # evenly


def test_a_clip_is_a_pure_function_of_seed_epoch_and_video(zoo):
    one, other = clips_of(zoo, crop="random", flip=True), clips_of(zoo, crop="random", flip=True)
    rows, epochs = [0, 4, 4, 7], [3, 0, 9, 2]
    drawn = one.draw(rows, epochs)[0]
    for i in reversed(range(4)):
        assert np.array_equal(other.draw(rows[i : i + 1], epochs[i : i + 1])[0][0], drawn[i])
    assert not np.array_equal(clips_of(zoo, seed=1).draw(rows, epochs)[0], clips_of(zoo).draw(rows, epochs)[0])


def test_clips_travel_to_workers_that_are_not_forked(zoo):
    clips = clips_of(zoo)
    copied = pickle.loads(pickle.dumps(clips))
    assert np.array_equal(copied.draw(range(9), [2] * 9)[0], clips.draw(range(9), [2] * 9)[0])
    of_rows = VideoClips(VideoTable(table([(zoo / "a.mp4").read_bytes()])), ClipShape(10, 16, 16))
    assert np.array_equal(pickle.loads(pickle.dumps(of_rows)).batch([0]), of_rows.batch([0]))
    assert of_rows.videos[0].index.file == b""  # what was encoded stays in the table


def test_strides_and_rates_take_the_frames_that_they_say(tmp_path):
    write_mp4(numbered(24), tmp_path / "a.mp4", fps=24, scale=1)
    strided = clips_of(tmp_path, num_frames=4, frame_stride=5)
    assert strided.num_windows == 24 - 15
    assert numbers_in(strided.batch([0])[0]) == [4, 9, 14, 19]
    by_time = clips_of(tmp_path, num_frames=4, fps=8)
    assert by_time.num_windows == 24 - 9
    assert numbers_in(by_time.batch([0])[0]) == [7, 10, 13, 16]
    assert numbers_in(clips_of(tmp_path, num_frames=4, fps=9).batch([0])[0]) == [7, 10, 12, 15]
    assert clips_of(tmp_path, num_frames=1, fps=1000).num_windows == 24


def test_frames_of_a_variable_rate_are_taken_by_their_times(tmp_path):
    times = [0, 100, 200, 300, 400, 450, 500, 550, 600, 650, 700]  # milliseconds
    write_video(tmp_path / "a.mkv", numbered(11), 25, "libx264", times)
    clips = clips_of(tmp_path, num_frames=4, fps=10)
    drawn = [numbers_in(clip) for clip in clips.draw([0] * 20, range(20))[0]]
    for numbers in drawn:
        assert np.diff(np.array(times)[numbers]).tolist() == [100, 100, 100]
    assert {numbers[0] for numbers in drawn} == {0, 1, 2, 3, 4}


def test_a_video_without_times_or_slower_than_the_rate_is_left_out(tmp_path):
    write_mp4(numbered(20), tmp_path / "fast.mp4", fps=24, scale=1)
    write_mp4(numbered(20), tmp_path / "slow.mp4", fps=5, scale=1)
    write_pictures(tmp_path / "pictures", numbered(20))
    clips = clips_of(tmp_path, num_frames=4, fps=8)
    assert [video.name for video in clips.videos] == ["fast.mp4"]
    said = " ".join(clips.notes)
    assert "pictures does not say when its frames are shown" in said
    assert "slow.mp4 shows 5 frames a second, expected at least `fps`, 8." in said


# ----------------------------------------------------------------------------------------- cropping, mirroring, colour
def test_crops_keep_the_shape_of_things_and_move_only_where_they_are_random(tmp_path):
    np.save(tmp_path / "a.npy", sloped())
    shape = {"num_frames": 2, "image_size": (16, 16)}
    centre = clips_of(tmp_path, **shape).draw([0] * 8, range(8))[0]
    assert (centre[:, 0, 0, :, 0] == 8 * np.arange(8, 24)).all()
    lefts = clips_of(tmp_path, **shape, crop="random").draw([0] * 200, range(200))[0][:, 0, 0, 0, 0] // 8
    assert set(lefts.tolist()) == set(range(17))
    squeezed = clips_of(tmp_path, **shape, crop="none").batch([0])[0, 0]
    assert np.array_equal(squeezed[0, :, 0], 16 * np.arange(16) + 4)
    tall = clips_of(tmp_path, num_frames=2, image_size=(8, 4)).batch([0])[0, 0]
    assert tall.shape == (8, 4, 3)
    assert tall[:, 0, 1].tolist() == [4 + 16 * i for i in range(8)]  # all of the height
    assert tall[0, :, 0].tolist() == [100, 116, 132, 148]  # the middle of the width


def test_half_of_the_clips_are_mirrored_and_none_that_is_held_out(tmp_path):
    np.save(tmp_path / "a.npy", sloped(2))
    clips = clips_of(tmp_path, num_frames=2, flip=True)
    plain = clips_of(tmp_path, num_frames=2).batch([0])[0]
    drawn = clips.draw([0] * 200, range(200))[0]
    same = (drawn == plain).all((1, 2, 3, 4))
    assert (drawn[~same] == plain[:, :, ::-1]).all()
    assert 70 <= same.sum() <= 130
    assert np.array_equal(clips.batch([0])[0], plain)


def test_channels_are_those_of_the_videos_or_are_asked_for(tmp_path):
    np.save(tmp_path / "colour.npy", sloped(10))
    assert clips_of(tmp_path).shape.num_channels == 3
    write_pictures(tmp_path / "grey", numbered(10))
    with pytest.raises(ValueError, match=r"grey is grey and colour.npy is in colour: expected 3"):
        clips_of(tmp_path)
    both = clips_of(tmp_path, num_channels=3).batch([0, 1])
    assert (both[1] == both[1, ..., :1]).all()
    luma = clips_of(tmp_path, num_channels=1, crop="none", image_size=(16, 32)).batch([0])[0, 0, ..., 0]
    red, green, blue = np.moveaxis(sloped(10)[0].astype(int), -1, 0)
    assert np.abs(luma - (0.299 * red + 0.587 * green + 0.114 * blue)).max() <= 1


def test_small_videos_are_enlarged_and_that_is_said(tmp_path):
    np.save(tmp_path / "a.npy", numbered(10, 8, 8))
    clips = clips_of(tmp_path)
    assert clips.batch([0]).shape == (1, 10, 16, 16, 1)
    assert (
        "1 of 1 videos are enlarged to 16×16 pixels (height × width), the first of them a.npy with 8×8"
        in (clips.notes[0])
    )


# ---------------------------------------------------------------------------------------------------------- bad videos
@pytest.fixture
def mixed(tmp_path):
    """Two good videos, one that is too short, and three that are none."""
    for name in ("a", "b"):
        write_mp4(numbered(20), tmp_path / f"{name}.mp4", scale=1)
    write_mp4(numbered(5), tmp_path / "short.mp4", scale=1)
    (tmp_path / "cut.mp4").write_bytes((tmp_path / "a.mp4").read_bytes()[:900])
    (tmp_path / "empty.webm").write_bytes(b"")
    (tmp_path / "page.gif").write_text("<html>not found</html>")
    return tmp_path


def test_bad_videos_are_named_counted_and_left_out(mixed):
    clips = clips_of(mixed)
    assert [video.name for video in clips.videos] == ["a.mp4", "b.mp4"]
    assert clips.notes[0] == f"4 of 6 videos of {mixed} (3 unreadable, 1 too short) are left out:"
    for name in ("cut.mp4", "empty.webm", "page.gif", "short.mp4 has 5 frames, expected at least 10."):
        assert sum(name in note for note in clips.notes[1:]) == 1


def test_bad_videos_are_refused_where_that_is_asked_for(mixed):
    with pytest.raises(ValueError, match=r"4 of 6 videos of .*\(3 unreadable, 1 too short\) cannot be used: cut.mp4"):
        clips_of(mixed, on_bad_video="fail")


def test_where_no_video_serves_the_reason_is_said(mixed, tmp_path):
    with pytest.raises(ValueError, match=r"no video of .* \(3 too short, 3 unreadable\): a.mp4 has 20 frames"):
        clips_of(mixed, num_frames=21)
    with pytest.raises(ValueError, match=r"a.mp4 has 20 frames, expected at least 37 with `frame_stride` 4"):
        clips_of(mixed, frame_stride=4)
    with pytest.raises(ValueError, match=r"a.mp4 spans 2.38 s, expected at least 9 s with `fps` 1"):
        clips_of(mixed, fps=1)
    (tmp_path / "none").mkdir()
    with pytest.raises(ValueError, match="none holds no videos, expected files"):
        clips_of(tmp_path / "none")
    with pytest.raises(FileNotFoundError, match="nowhere"):
        clips_of(tmp_path / "nowhere")


def damaged_later(folder):
    """A video whose header is sound and whose last frames are no pixels."""
    values = numbered(20).astype(np.float32) / 255
    values[10:] = np.nan
    np.save(folder / "b.npy", values)
    for name in ("a.npy", "c.npy"):
        np.save(folder / name, numbered(20))


def test_a_video_that_turns_out_to_be_damaged_is_replaced_by_the_next_the_same_every_time(tmp_path):
    damaged_later(tmp_path)
    clips = clips_of(tmp_path, num_channels=1)
    assert len(clips) == 3
    with pytest.warns(UserWarning, match="b.npy is replaced by the next video: b.npy runs from nan to nan"):
        drawn, used = clips.draw([0, 1, 2], [4, 4, 4])
    assert used.tolist() == [0, 2, 2]
    assert np.array_equal(drawn[1], drawn[2])
    with pytest.warns(UserWarning, match="replaced"):
        again, _ = clips_of(tmp_path, num_channels=1).draw([1], [4])
    assert np.array_equal(again[0], drawn[1])
    with pytest.raises(ValueError, match=r"b.npy runs from nan to nan"):
        clips_of(tmp_path, num_channels=1, on_bad_video="fail").draw([1], [4])


def test_a_cache_finds_damage_at_the_start(tmp_path):
    damaged_later(tmp_path)
    clips = clips_of(tmp_path, num_channels=1, cache="memory")
    assert [video.name for video in clips.videos] == ["a.npy", "c.npy"]
    assert "1 of 3 videos" in clips.notes[0]
    with pytest.raises(ValueError, match=r"b.npy runs from nan to nan"):
        clips_of(tmp_path, num_channels=1, cache="memory", on_bad_video="fail")


# -------------------------------------------------------------------------------------------------------------- caches
@pytest.mark.parametrize("crop", ["center", "random", "none"])
def test_caches_change_no_pixel(zoo, tmp_path, crop):
    options = {"crop": crop, "flip": True, "image_size": (8, 16)}
    plain, rows, epochs = clips_of(zoo, **options), list(range(9)) * 2, [0] * 9 + [5] * 9
    for cache in ("memory", "disk"):
        kept = clips_of(zoo, **options, cache=cache, cache_dir=tmp_path)
        assert np.array_equal(kept.draw(rows, epochs)[0], plain.draw(rows, epochs)[0])
        assert np.array_equal(kept.batch(range(9)), plain.batch(range(9)))


def test_the_disk_is_read_again_until_a_file_changes(tmp_path, monkeypatch):
    np.save(tmp_path / "a.npy", numbered(12))
    np.save(tmp_path / "b.npy", numbered(11))
    options = {"cache": "disk", "cache_dir": tmp_path / "kept", "num_channels": 1}
    first = clips_of(tmp_path / "a.npy", **options).batch([0])
    files = sorted((tmp_path / "kept").iterdir())
    assert len(files) == 1
    written = files[0].stat().st_mtime_ns
    assert np.array_equal(clips_of(tmp_path / "a.npy", **options).batch([0]), first)
    assert files[0].stat().st_mtime_ns == written
    np.save(tmp_path / "a.npy", numbered(12)[::-1])
    assert numbers_in(clips_of(tmp_path / "a.npy", **options).batch([0])[0]) == list(range(10, 0, -1))
    assert len(list((tmp_path / "kept").iterdir())) == 2
    clips_of(tmp_path / "a.npy", **options | {"image_size": 8})
    assert len(list((tmp_path / "kept").iterdir())) == 3


def test_a_cache_that_has_no_room_is_refused(tmp_path, monkeypatch):
    np.save(tmp_path / "a.npy", numbered(20))
    monkeypatch.setattr("video_diffusion.data.decoded.free_memory", lambda: 5000)
    with pytest.raises(ValueError, match=r"`video_cache` needs 0.0 GiB, and the memory has 0.0 GiB free"):
        clips_of(tmp_path, cache="memory")
    assert len(clips_of(tmp_path, cache="memory", image_size=8)) == 1


# ------------------------------------------------------------------------------------------------------------ captions
def test_captions_stand_beside_the_videos_or_in_a_table(tmp_path):
    np.save(tmp_path / "a.npy", numbered(10))
    write_pictures(tmp_path / "b", numbered(10))
    (tmp_path / "a.txt").write_text("a wall gets brighter\n")
    (tmp_path / "README.txt").write_text("about this folder")
    with pytest.raises(ValueError, match=r"1 of 2 videos of .* have no caption .* the first of them b"):
        clips_of(tmp_path).captions("caption")
    (tmp_path / "b.txt").write_text("another wall")
    assert clips_of(tmp_path).captions("caption") == ["a wall gets brighter", "another wall"]
    (tmp_path / "c.txt").write_text("no such video")
    with pytest.raises(ValueError, match=r"1 text files without a video, the first of them c.txt"):
        clips_of(tmp_path).captions("caption")
    rows = [{"file_name": "a.npy", "text": "one"}, {"file_name": "b", "text": "two"}]
    (tmp_path / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert clips_of(tmp_path).captions("text") == ["one", "two"]


def test_captions_of_videos_that_are_not_there_and_columns_that_are_not_there_are_refused(tmp_path):
    np.save(tmp_path / "a.npy", numbered(10))
    with pytest.raises(ValueError, match="there is no text file, and it has no metadata table"):
        clips_of(tmp_path).captions("caption")
    (tmp_path / "metadata.csv").write_text("file_name,text\na.npy,one\n")
    with pytest.raises(ValueError, match=r"`caption_column` is 'caption', .* has the columns \['text'\]"):
        clips_of(tmp_path).captions("caption")
    (tmp_path / "metadata.csv").write_text("file_name,text\na.npy,one\nz.npy,two\n")
    with pytest.raises(ValueError, match="names 1 files that are not there"):
        clips_of(tmp_path)


def test_a_clip_that_replaces_another_brings_its_own_number(tmp_path):
    damaged_later(tmp_path)
    for name in "abc":
        (tmp_path / f"{name}.txt").write_text(name)
    clips = clips_of(tmp_path, num_channels=1)
    with pytest.warns(UserWarning, match="replaced"):
        _, used = clips.draw([1], [4])
    assert clips.captions("caption")[used[0]] == "c"


# -------------------------------------------------------------------------------------------------------------- tables
def test_columns_of_videos_bytes_paths_and_pictures_are_read(tmp_path):
    write_mp4(numbered(12), tmp_path / "a.mp4", scale=1)
    content = (tmp_path / "a.mp4").read_bytes()
    pictures = [encoded(frame) for frame in numbered(12)]
    write_pictures(tmp_path / "clip", numbered(12))
    paths = [str(tmp_path / "clip" / f"{i}.png") for i in range(12)]
    images = [Image.fromarray(frame.squeeze()) for frame in numbered(12)]
    picture = datasets.List(datasets.Image())
    columns = {
        "the Video feature": table([{"bytes": content, "path": None}], datasets.Video(decode=False)),
        "its paths": table([{"bytes": None, "path": str(tmp_path / "a.mp4")}], datasets.Video(decode=False)),
        "bytes": table([content]),
        "paths": table([str(tmp_path / "a.mp4")]),
        "folders": table([str(tmp_path / "clip")]),
        "encoded pictures": table([pictures]),
        "paths of pictures": table([paths]),
        "PIL images": table([images], picture),
        "a shown feature": table([images], picture).cast_column("video", datasets.List(datasets.Image(decode=False))),
    }
    for kind, column in columns.items():
        clips = VideoClips(VideoTable(column), ClipShape(10, 16, 16))
        assert clips.shape.num_channels == 1, kind
        drawn = [numbers_in(clip) for clip in clips.draw([0] * 9, range(9))[0]]
        assert {numbers[0] for numbers in drawn} == {0, 1, 2}, kind
        assert all(np.diff(numbers).tolist() == [1] * 9 for numbers in drawn), kind


def test_paths_of_a_dataset_are_relative_to_its_folder(tmp_path):
    write_mp4(numbered(12), tmp_path / "clips" / "a.mp4", scale=1)
    table(["clips/a.mp4"]).to_parquet(tmp_path / "set" / "data" / "train-00000-of-00001.parquet")
    (tmp_path / "clips").rename(tmp_path / "set" / "clips")
    stored = VideoTable(table(["clips/a.mp4"]), base=tmp_path / "set")
    assert numbers_in(VideoClips(stored, ClipShape(10, 16, 16)).batch([0])[0]) == list(range(1, 11))


def test_a_dataset_that_was_built_anew_is_read_anew(tmp_path):
    videos = {"split": "test", "image_size": 32, "num_videos": 2}
    for frames in (3, 5):
        shutil.rmtree(tmp_path / "my-clips", ignore_errors=True)
        write_parquet(tmp_path / "my-clips", MovingMNIST(num_frames=frames, **videos))
        clips = load_videos(tmp_path / "my-clips", "test", num_frames=3, image_size=32)
        assert [video.num_frames for video in clips.videos] == [frames] * 2


@pytest.mark.parametrize("nested", [True, False])
def test_channels_may_be_first_or_last_and_storage_nested_lists_or_arrays(nested):
    video = np.random.default_rng(0).integers(0, 256, (5, 6, 6, 3), np.uint8)
    for layout in (video, np.moveaxis(video, -1, 1)):
        feature = None if nested else datasets.Array4D(layout.shape, "uint8")
        assert np.array_equal(of_table([layout.tolist()] * 2, feature).batch([1]), video[None])
    for layout in (video[..., :1], np.moveaxis(video[..., :1], -1, 1), video[..., 0]):
        assert np.array_equal(of_table([layout.tolist()]).batch([0]), video[None, ..., :1])


def test_a_shuffled_or_selected_table_keeps_its_order():
    videos = [np.full((3, 4, 4), value).tolist() for value in range(10)]
    clips = VideoClips(VideoTable(table(videos).select([7, 2, 9])), ClipShape(3, 4, 4))
    assert clips.batch([2, 0])[:, 0, 0, 0, 0].tolist() == [9, 7]


GOOD = np.zeros((5, 6, 6), int)


def test_rows_of_other_sizes_are_resized_and_shorter_ones_left_out():
    clips = of_table([GOOD.tolist(), (GOOD[:, :3] + 9).tolist(), GOOD[:4].tolist()])
    assert clips.batch([0, 1])[:, 0, 0, 0, 0].tolist() == [0, 9]
    assert len(clips) == 2
    assert "row 2 has 4 frames, expected at least 5." in clips.notes[1]
    with pytest.raises(IndexError, match="expected 0 to 1"):
        clips.batch([2])


@pytest.mark.parametrize(
    ("row", "words"),
    [
        (np.zeros((5, 6), int).tolist(), r"row 0 has shape \(5, 6\), expected \[F, H, W\]"),
        (GOOD[:4].tolist(), "row 0 has 4 frames, expected at least 5"),
        ((GOOD + 256).tolist(), r"row 0 runs from 256 to 256, expected whole numbers in \[0, 255\]"),
        ((GOOD - 1).tolist(), "row 0 runs from -1 to -1"),
        ([[[0] * 6] * 6] * 4 + [[[0] * 5] * 6], "row 0 has lists of the lengths"),
        ([[[None, 1, 1, 1, 1, 1]] * 6] * 5, "row 0 has 5 empty values|row 0 has 30 empty values"),
        ([[["x"] * 6] * 6] * 5, "row 0 holds lists of string, expected numbers"),
        ("no/such/file.mp4", "no/such/file.mp4"),
        (b"no video", "row 0 is not a video"),
        ([b"no picture"], "row 0, picture 0, is not a video|row 0, picture 0, is"),
    ],
)
def test_rows_that_are_no_videos_are_refused_by_number(row, words):
    with pytest.raises(ValueError, match=rf"no video of the data set can be used \(1 [\w ]+\): .*({words})"):
        of_table([row])


def test_unfit_columns_are_refused():
    with pytest.raises(ValueError, match=r"columns \['clip'\], expected one named 'video'"):
        VideoTable(datasets.Dataset.from_dict({"clip": [GOOD.tolist()]}))
    with pytest.raises(ValueError, match="no rows"):
        of_table([])
    with pytest.raises(ValueError, match="the column 'video' holds int64, expected in each row an encoded video"):
        of_table([1, 2])
    with pytest.raises(ValueError, match="`num_frames` is 0, expected at least 1"):
        of_table([GOOD.tolist()], num_frames=0)
