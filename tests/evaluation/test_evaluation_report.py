import numpy as np
import pytest
from PIL import Image

from stand_ins import SIZE, run_with
from video_diffusion.data.video_io import FRAME_COLOUR
from video_diffusion.evaluation import PROTOCOLS
from video_diffusion.evaluation.figure import write_figure
from video_diffusion.evaluation.report import markdown, rows
from video_diffusion.evaluation.run import read_clips

PAPER = PROTOCOLS["paper"]


@pytest.mark.parametrize("name", PROTOCOLS)
def test_the_table_has_a_row_for_every_known_number_and_a_column_for_every_baseline(tmp_path, name):
    protocol = PROTOCOLS[name]
    report = run_with(protocol, tmp_path, num_videos=2, num_samples=min(protocol.num_samples, 2))
    report["network_calls_per_clip"] = {str(length): 7 for length in protocol.lengths}
    keys = {row.key for row in rows(report)}
    assert {known["row"] for known in report["known"]} <= keys
    text = markdown(report)
    for known in report["known"]:
        assert known["value"] in text
        assert known["source"] in text
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert all(title in lines[0] for title in ("ours", "black frame", "last frame repeated", "real against real"))
    assert len({line.count("|") for line in lines}) == 1
    assert len(lines) == 2 + len(keys)
    assert f"2 clips; the protocol has {protocol.num_videos}" in text
    assert "36 pixels along an edge; the protocol has 64" in text


def test_the_network_calls_of_a_figure_are_those_of_all_the_samples_it_needs(tmp_path):
    report = run_with(PROTOCOLS["mcvd"], tmp_path, num_videos=2, num_samples=3)
    report["network_calls_per_clip"] = {"15": 8}
    (row,) = (row for row in rows(report) if row.key == "network_calls/15")
    assert row.values == {"one_sample": 8, "best_of_samples": 24}


def test_the_picture_shows_given_frames_and_a_line_for_each_column(tmp_path):
    report = run_with(PAPER, tmp_path, num_videos=3)
    truth, clips = PAPER.truth(range(3), SIZE), read_clips(tmp_path / "paper-parts", 3, 10)[:, 0]
    write_figure(report, truth, clips, tmp_path / "paper.png")
    picture = np.asarray(Image.open(tmp_path / "paper.png"))
    for colour in (FRAME_COLOUR, (96, 165, 250), (148, 148, 158), (250, 204, 21), (74, 222, 128)):
        assert (picture == colour).all(axis=-1).any()
    nothing_given = {**report, "num_given": 0}
    write_figure(nothing_given, truth, clips, tmp_path / "free.png")
    assert not (np.asarray(Image.open(tmp_path / "free.png")) == FRAME_COLOUR).all(axis=-1).any()
