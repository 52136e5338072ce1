"""What README.md says is what the files say."""

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
EVALUATION = ROOT / "pipelines" / "moving-mnist" / "evaluation"
PROTOCOLS = sorted(file.stem for file in EVALUATION.glob("*.json"))


def test_the_embedded_model_was_measured_at_prediction_and_at_text():
    assert {"paper", "text"} <= set(PROTOCOLS)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_the_tables_are_those_of_the_evaluation(protocol):
    text = (EVALUATION / f"{protocol}.md").read_text(encoding="utf-8")
    tables = re.findall(r"(?:^\|.*\n)+", text, flags=re.MULTILINE)
    assert tables
    for table in tables:
        assert table.count("\n") > 3
        assert table in README


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_the_evaluated_weights_are_the_embedded_ones(protocol):
    import hashlib

    report = json.loads((EVALUATION / f"{protocol}.json").read_text(encoding="utf-8"))
    for name, digest in report["model"]["sha256"].items():
        assert hashlib.sha256((EVALUATION.parent / name).read_bytes()).hexdigest() == digest


def test_every_command_beside_a_picture_is_the_one_that_makes_it():
    script = (ROOT / "docs" / "samples" / "make.sh").read_text(encoding="utf-8")
    made = dict(re.findall(r"^make (\S+) (.*)$", script, flags=re.MULTILINE))
    shown = dict(re.findall(r"\(docs/samples/(\S+)\.gif\) \|.*`(video-diffusion .*)`", README))
    assert made == shown
    assert len(shown) > 3


def test_every_file_that_is_linked_exists():
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        if not target.startswith("http"):
            assert (ROOT / target).exists(), target


def test_the_speed_table_is_that_of_the_benchmarks():
    results = ROOT / "benchmarks" / "results"
    table = (results / "cpu.md").read_text(encoding="utf-8")
    assert table.count("\n|") > 20
    assert table in README
    report = json.loads((results / "cpu.json").read_text(encoding="utf-8"))
    assert report["machine"]["processor"] in table
    measured = {part for part, found in report["parts"].items() if "error" not in found}
    assert measured >= {"denoiser", "data_generators", "sampling", "loading", "long_video", "equal_minutes"}
