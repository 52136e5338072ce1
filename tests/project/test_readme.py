"""What README.md says is what the files say."""

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
REPORTS = sorted((ROOT / "pipelines").glob("*/evaluation/*.json"))
each_report = pytest.mark.parametrize("file", REPORTS, ids=lambda file: f"{file.parts[-3]}-{file.stem}")


def test_the_embedded_models_were_measured():
    measured = {(file.parts[-3], file.stem) for file in REPORTS}
    assert {("moving-mnist", "paper"), ("moving-mnist", "text")} <= measured
    assert {model for model, _ in measured} == {folder.name for folder in (ROOT / "pipelines").iterdir()}


@each_report
def test_the_tables_are_those_of_the_evaluation(file):
    text = file.with_suffix(".md").read_text(encoding="utf-8")
    tables = re.findall(r"(?:^\|.*\n)+", text, flags=re.MULTILINE)
    assert tables
    for table in tables:
        assert table.count("\n") > 3
        assert table in README


@each_report
def test_the_evaluated_weights_are_the_embedded_ones(file):
    import hashlib

    report = json.loads(file.read_text(encoding="utf-8"))
    for name, digest in report["model"]["sha256"].items():
        assert hashlib.sha256((file.parents[2] / name).read_bytes()).hexdigest() == digest


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
