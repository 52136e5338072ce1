"""KTH and BAIR from their published layouts, on miniature copies."""

import shutil
import struct

import numpy as np
import pytest

from published import brightness, example, make_bair, make_kth, plain, write_records
from video_diffusion.data import load_videos, open_videos
from video_diffusion.data.kth import read_ranges
from video_diffusion.data.tfrecords import find_records, masked_crc32c


@pytest.fixture(scope="module")
def kth(tmp_path_factory):
    return make_kth(tmp_path_factory.mktemp("data") / "kth")


@pytest.fixture(scope="module", params=["records", "pictures"])
def bair(request, tmp_path_factory):
    return make_bair(tmp_path_factory.mktemp("data") / "bair", request.param)


# ----------------------------------------------------------------------------------------------------------------- KTH
def test_kth_gives_the_ranges_of_the_persons_of_a_split_each_from_its_first_frame_on(kth):
    train, test = (open_videos(kth, split) for split in ("train", "test"))
    assert [train.name(i) for i in range(len(train))] == [
        "boxing/person01_boxing_d1_uncomp.avi",
        "walking/person02_walking_d3_uncomp.avi",
    ]
    found = [video for place in range(len(test)) for video in test.open(place)]
    assert [video.name.partition("person")[2] for video in found] == [
        "17_boxing_d4_uncomp.avi, frames 1-51",
        "17_boxing_d4_uncomp.avi, frames 52-200",
        "17_running_d1_uncomp.avi, frames 1-40",
        "17_running_d1_uncomp.avi, frames 61-115",
        "25_walking_d2_uncomp.avi, frames 3-60",
    ]
    assert [video.num_frames for video in found] == [51, 64, 40, 55, 58]  # the second ends with its file
    assert brightness(found[3].read([0, 1, 54])) == pytest.approx([2 * 60 + 2, 2 * 61 + 2, 2 * 114 + 2], abs=1)
    assert found[3].times[1] == pytest.approx(0.04)


def test_kth_trains_as_grey_clips_with_its_actions_as_captions(kth):
    videos = load_videos(kth, num_frames=50, image_size=64)
    assert videos.num_channels == 1
    assert videos.captions("caption") == ["a person boxing"] * 2 + ["a person walking"]
    assert videos.captions("action") == ["boxing", "boxing", "walking"]
    clips, _ = videos.draw([0, 1, 2], [0, 0, 0])
    assert clips.shape == (3, 50, 64, 64, 1)
    with pytest.raises(ValueError, match="`caption_column` is 'text', expected caption or action for KTH"):
        videos.captions("text")


def test_kth_is_kept_by_the_cache_of_decoded_videos_range_by_range(kth, tmp_path):
    options = {"split": "test", "num_frames": 40, "image_size": 32}
    plain, kept = load_videos(kth, **options), load_videos(kth, **options, cache="disk", cache_dir=tmp_path)
    assert len(list(tmp_path.iterdir())) == 5
    assert np.array_equal(plain.batch(range(5)), kept.batch(range(5)))


def test_kth_without_a_split_or_a_video_says_so(kth, tmp_path):
    with pytest.raises(ValueError, match=r"`split` is 'validation', expected train \(persons 1 to 16\) or test"):
        open_videos(kth, "validation")
    copy = shutil.copytree(kth, tmp_path / "copy")
    shutil.rmtree(copy / "running")
    videos = load_videos(copy, "test", num_frames=50, image_size=32)
    assert "running/person17_running_d1_uncomp.avi" in "".join(videos.notes)


@pytest.mark.parametrize("line", ["person01_boxing_d1 frames 1-95; 96-185", "person01_boxing_d1 frames 9-5"])
def test_ranges_that_are_none_are_refused_with_their_line(tmp_path, line):
    (tmp_path / "00sequences.txt").write_text(f"notes\n{line}\n")
    with pytest.raises(ValueError, match=r"00sequences.txt has 'person01_boxing_d1 .*' in line 2, expected ranges"):
        read_ranges(tmp_path / "00sequences.txt")


# ---------------------------------------------------------------------------------------------------------------- BAIR
@pytest.mark.parametrize("inside", [False, True], ids=["folder", "its data"])
def test_bair_gives_the_videos_of_a_split_in_both_layouts(bair, inside):
    source = next(bair.iterdir()) if inside else bair
    for split, numbers in (("train", [0, 10]), ("test", [20, 30, 40])):
        videos = load_videos(source, split, num_frames=16, image_size=64, num_channels=3)
        assert brightness(videos.ends(range(len(numbers)))[:, 0]) == numbers
        assert brightness(videos.ends(range(len(numbers)), last=True)[:, 0]) == [number + 4 for number in numbers]
    with pytest.raises(ValueError, match="`split` is 'validation', expected train or test of BAIR"):
        open_videos(bair, "validation")


def test_both_layouts_of_bair_give_the_same_pixels(tmp_path):
    clips = []
    for kind in ("records", "pictures"):
        make_bair(tmp_path / kind, kind)
        clips.append(load_videos(tmp_path / kind, num_frames=16, image_size=64, num_channels=3).batch([0, 1]))
    assert np.array_equal(*clips)


def test_the_checksum_is_crc_32c():
    value = (0xE3069283 >> 15 | 0xE3069283 << 17) + 0xA282EAD8 & 0xFFFFFFFF  # the published check value, masked
    assert masked_crc32c(b"123456789") == value


def damaged(path, how):
    content = bytearray(path.read_bytes())
    if how == "cut":
        del content[-100:]
    elif how == "length":
        content[0] ^= 1
    elif how == "huge":
        head = struct.pack("<Q", 2**62)
        content[:12] = head + struct.pack("<I", masked_crc32c(head))
    elif how == "inside":
        content[12:20] = b"\xff" * 8
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ("cut", "is truncated: .* bytes for record 1 of"),
        ("length", "is no record file, or broken: record 0 has no valid length"),
        ("huge", "is truncated: .* bytes for record 0 of 4611686018427387908"),
        ("inside", "holds no Example"),
    ],
)
def test_a_broken_record_file_is_named_with_the_reason(tmp_path, how, reason):
    file = tmp_path / "softmotion30_44k" / "train" / "traj.tfrecords"
    write_records(file, [example(plain(2, 64, 64))] * 2)
    damaged(file, how)
    with pytest.raises(ValueError, match=f"traj.tfrecords.*{reason}"):
        load_videos(tmp_path, num_frames=2, image_size=64)


def test_records_of_other_data_are_refused(tmp_path):
    file = tmp_path / "softmotion30_44k" / "train" / "traj.tfrecords"
    write_records(file, [example(plain(2, 32, 32))])
    with pytest.raises(ValueError, match=r"frames of \[3072\] bytes, expected 12288: 64×64 RGB, raw"):
        load_videos(tmp_path, num_frames=2, image_size=64)
    write_records(file, [example(plain(2, 64, 64)), example(plain(1, 64, 64))])
    assert len(find_records(file)) == 2
    videos = load_videos(tmp_path, num_frames=2, image_size=64)
    with pytest.warns(UserWarning, match="record 1 has 1 frames, expected 2 as in the first one"):
        videos.batch([1])
    (tmp_path / "softmotion30_44k" / "test").mkdir()
    with pytest.raises(ValueError, match="holds no record files, expected softmotion30_44k/train"):
        open_videos(tmp_path, "test")
