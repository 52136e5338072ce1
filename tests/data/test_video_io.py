import numpy as np
import pytest
from PIL import Image

from video_diffusion.data import video_io
from video_diffusion.data.reading import read_video
from video_diffusion.data.video_io import (
    contact_sheet,
    drop_equal_channels,
    resize,
    tile,
    to_channels,
    to_uint8,
    upscale,
    write_gif,
    write_mp4,
)


def moving_square(frames=6, size=16, channels=1):
    """A square that steps right by two pixels a frame, on black; in colour each channel has its own brightness."""
    video = np.zeros((frames, size, size, channels), np.uint8)
    for i in range(frames):
        video[i, 4:10, 2 * i : 2 * i + 4] = np.array([255, 130, 60])[:channels]
    return video


# ----------------------------------------------------------------------------------------------------- there and back
def test_a_grey_gif_reads_back_bit_for_bit_at_its_upscaled_size(tmp_path):
    video = moving_square()
    write_gif(video, tmp_path / "clip.gif", fps=8, scale=4)
    back = read_video(tmp_path / "clip.gif")
    assert np.array_equal(back, upscale(video, 4))
    assert np.array_equal(resize(back, 16, 16), video)


def test_a_gif_keeps_its_speed_and_frames_that_repeat(tmp_path):
    video = moving_square(4)[[0, 0, 1, 2, 2, 2, 3]]
    write_gif(video, tmp_path / "clip.gif", fps=8, scale=1)
    assert np.array_equal(read_video(tmp_path / "clip.gif"), video)
    with Image.open(tmp_path / "clip.gif") as image:
        image.seek(1)
        assert image.info["duration"] == 120
        assert image.info["loop"] == 0


@pytest.mark.parametrize("channels", [1, 3])
def test_an_mp4_reads_back_within_its_compression(tmp_path, channels):
    video = moving_square(channels=channels)
    write_mp4(video, tmp_path / "clip.mp4", scale=8)
    back = read_video(tmp_path / "clip.mp4")
    assert back.shape == (6, 128, 128, channels)
    assert np.abs(resize(back, 16, 16).astype(int) - video).mean() < 3


@pytest.mark.parametrize("name", ["clip", "clip.gif", "clip.bin"])
def test_an_mp4_is_read_whatever_it_is_called(tmp_path, name):
    write_mp4(moving_square(), tmp_path / "clip.mp4", scale=2)
    expected = read_video(tmp_path / "clip.mp4")
    (tmp_path / "clip.mp4").rename(tmp_path / name)
    assert np.array_equal(read_video(tmp_path / name), expected)


def test_an_mp4_of_odd_size_keeps_its_frames_and_gains_a_copied_edge(tmp_path):
    write_mp4(moving_square(size=15), tmp_path / "clip.mp4", scale=3)
    back = read_video(tmp_path / "clip.mp4")
    assert back.shape[:3] == (6, 46, 46)


def test_npy_arrays_of_bytes_and_of_floats_are_the_same_clip(tmp_path):
    video = moving_square()
    for name, array in {"a": video, "b": video[..., 0], "c": video / 255, "d": (video / 255).astype("f4")}.items():
        np.save(tmp_path / f"{name}.npy", array)
        assert np.array_equal(read_video(tmp_path / f"{name}.npy"), video)


def test_a_folder_of_pngs_reads_in_the_order_of_names(tmp_path):
    video = moving_square(channels=3)
    for i in (5, 0, 3, 1, 4, 2):
        Image.fromarray(video[i]).save(tmp_path / f"{i:03d}.png")
    assert np.array_equal(read_video(tmp_path), video)


def test_content_and_not_the_name_decides_how_a_file_is_read(tmp_path):
    video = moving_square()
    write_gif(video, tmp_path / "clip.gif", scale=1)
    (tmp_path / "clip.gif").rename(tmp_path / "clip.mp4")
    assert np.array_equal(read_video(tmp_path / "clip.mp4"), video)


# ------------------------------------------------------------------------------------------------------ pure functions
def test_box_resizing_undoes_upscaling_and_keeps_the_mean():
    video = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3)).astype(np.uint8)
    assert np.array_equal(resize(upscale(video, 5), 8, 8), video)
    assert abs(resize(video, 4, 4).mean() - video.mean()) < 1


def test_channels_convert_as_pillow_converts_and_grey_survives_both_ways():
    colour, grey = moving_square(channels=3), moving_square()
    expected = np.stack([np.asarray(Image.fromarray(frame).convert("L")) for frame in colour])
    assert np.array_equal(to_channels(colour, 1)[..., 0], expected)
    assert np.array_equal(to_channels(to_channels(grey, 3), 1), grey)
    assert np.array_equal(drop_equal_channels(to_channels(grey, 3)), grey)
    assert np.array_equal(drop_equal_channels(colour), colour)


def test_floats_round_to_the_nearest_byte_and_only_within_the_unit_range():
    assert to_uint8(np.array([[[[0.0, 0.5, 1.0]]]])).tolist() == [[[[0, 128, 255]]]]
    with pytest.raises(ValueError, match=r"`video` runs from -0.1 to 1, expected floats in \[0, 1\]"):
        to_uint8(np.array([-0.1, 1.0]))


def test_tiles_stand_row_by_row_with_black_for_what_is_missing():
    clips = [np.full((2, 4, 4, 1), value, np.uint8) for value in (10, 20, 30)]
    tiled = tile(clips, 2)
    assert tiled.shape == (2, 8, 8, 1)
    assert tiled[0, ::4, ::4, 0].tolist() == [[10, 20], [30, 0]]


# ------------------------------------------------------------------------------------------------------- contact sheet
def test_a_sheet_shows_each_frame_of_each_clip_in_its_place_and_frames_only_given_ones(tmp_path):
    clips = [np.full((3, 16, 16, 1), 10 * (row + 1), np.uint8) for row in range(2)]
    for clip in clips:
        clip += np.arange(3, dtype=np.uint8)[:, None, None, None]
    contact_sheet(clips, np.array([True, False, True]), tmp_path / "sheet.png", scale=1)
    sheet = np.asarray(Image.open(tmp_path / "sheet.png")).astype(int)
    for row in range(2):
        for column in range(3):
            y, x = 22 + row * 22, 6 + column * 22
            assert (sheet[y : y + 16, x : x + 16] == 10 * (row + 1) + column).all()
            edge = tuple(sheet[y - 1, x + 8])
            assert edge == (video_io.FRAME_COLOUR if column != 1 else video_io.SHEET_COLOUR)
            assert (sheet[y + 16, x + 8] == edge).all()


def test_a_sheet_has_frame_numbers_on_top_and_labels_on_the_left(tmp_path):
    clip, mask = moving_square(3), np.zeros(3, bool)
    contact_sheet([clip], mask, tmp_path / "plain.png")
    contact_sheet([clip], mask, tmp_path / "labelled.png", ["truth"])
    plain, labelled = (np.asarray(Image.open(tmp_path / f"{name}.png")) for name in ("plain", "labelled"))
    for column in range(3):
        x = 6 + column * 70
        assert (plain[:20, x : x + 64] != video_io.SHEET_COLOUR).any()
    contact_sheet([clip], mask, tmp_path / "named.png", columns=["0", "25", "2"])
    named = np.asarray(Image.open(tmp_path / "named.png"))
    changed = np.flatnonzero((named != plain).any((0, 2)))
    assert 76 <= changed.min() <= changed.max() < 76 + 64  # the second column alone
    wider = labelled.shape[1] - plain.shape[1]
    assert wider > 20
    assert np.array_equal(labelled[:, -plain.shape[1] + 6 :], plain[:, 6:])
    assert (labelled[:, : wider + 2] != video_io.SHEET_COLOUR).any()


def test_a_mask_for_each_row_frames_each_row_by_its_own(tmp_path):
    contact_sheet([moving_square(2)] * 2, np.array([[True, False], [False, True]]), tmp_path / "sheet.png", scale=1)
    sheet = np.asarray(Image.open(tmp_path / "sheet.png"))
    framed = [
        [tuple(sheet[22 + 22 * row - 1, 6 + 22 * column + 8]) == video_io.FRAME_COLOUR for column in range(2)]
        for row in range(2)
    ]
    assert framed == [[True, False], [False, True]]


# -------------------------------------------------------------------------------------------------------------- errors
def test_what_is_no_video_is_refused_with_the_name_of_the_file(tmp_path):
    np.save(tmp_path / "range.npy", np.full((2, 4, 4, 1), 3.0))
    np.save(tmp_path / "shape.npy", np.zeros((4, 4), np.uint8))
    np.save(tmp_path / "type.npy", np.zeros((2, 4, 4, 1), np.int32))
    np.save(tmp_path / "objects.npy", np.array([{}], dtype=object), allow_pickle=True)
    (tmp_path / "text.gif").write_text("no video at all")
    (tmp_path / "empty.mp4").write_bytes(b"")
    (tmp_path / "folder").mkdir()
    write_gif(moving_square(), tmp_path / "whole.gif")
    write_mp4(moving_square(), tmp_path / "whole.mp4", scale=8)
    for name in ("gif", "mp4"):
        data = (tmp_path / f"whole.{name}").read_bytes()
        (tmp_path / f"cut.{name}").write_bytes(data[: len(data) // 3])
    messages = {
        "range.npy": r"runs from 3 to 3, expected floats in \[0, 1\]",
        "shape.npy": r"shape \(4, 4\), expected \[F, H, W\], \[F, H, W, C\]",
        "type.npy": "int32, expected an array of uint8",
        "objects.npy": "has object of shape",
        "text.gif": "is not a video: expected a GIF, an MP4, WebM, MOV or AVI, an npy array or a folder",
        "empty.mp4": "is not a video",
        "folder": "holds no pictures",
        "cut.gif": "broken or truncated",
        "cut.mp4": "broken or truncated",
    }
    for name, message in messages.items():
        with pytest.raises(ValueError, match=message) as caught:
            read_video(tmp_path / name)
        assert name in str(caught.value)
    with pytest.raises(OSError, match=r"nowhere.gif"):
        read_video(tmp_path / "nowhere.gif")


def test_arguments_of_the_writers_are_checked_before_a_file_appears(tmp_path):
    video = moving_square()
    refused = [
        (lambda: write_gif(video, tmp_path / "a.gif", fps=0), "`fps` is 0"),
        (lambda: write_mp4(video, tmp_path / "a.mp4", fps=1000), "`fps` is 1000"),
        (lambda: write_gif(video, tmp_path / "a.gif", scale=0), "`scale` is 0"),
        (lambda: write_gif(video / 255, tmp_path / "a.gif"), "`video` is float64, expected an array of uint8"),
        (lambda: write_gif(video[0], tmp_path / "a.gif"), r"`video` has shape \(16, 16, 1\)"),
        (lambda: contact_sheet([], np.zeros(6, bool), tmp_path / "a.png"), "`videos` is empty"),
        (lambda: contact_sheet([video], np.zeros(5, bool), tmp_path / "a.png"), r"`given_mask` has shape \(5,\)"),
        (lambda: contact_sheet([video], np.zeros(6), tmp_path / "a.png"), "dtype float64, expected bool"),
        (lambda: contact_sheet([video], np.zeros(6, bool), tmp_path / "a.png", ["a", "b"]), "`labels` has 2 words"),
        (
            lambda: contact_sheet([video], np.zeros(6, bool), tmp_path / "a.png", columns=["a"]),
            "`columns` has 1 words, expected one for each of 6 frames",
        ),
        (lambda: contact_sheet([video, video[:, :8]], np.zeros(6, bool), tmp_path / "a.png"), "of sizes"),
    ]
    for call, message in refused:
        with pytest.raises(ValueError, match=message):
            call()
    assert not list(tmp_path.iterdir())


def test_an_interrupted_write_leaves_the_old_file_and_no_draft(tmp_path, monkeypatch):
    (tmp_path / "clip.gif").write_bytes(b"old")

    def interrupted(self, file, **options):
        file.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(Image.Image, "save", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_gif(moving_square(), tmp_path / "clip.gif")
    assert [(file.name, file.read_bytes()) for file in tmp_path.iterdir()] == [("clip.gif", b"old")]
