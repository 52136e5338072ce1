"""What README.md and docs/results.md say is what the files say."""

import json
import re
from pathlib import Path

import pytest

from benchmarks import results_page
from video_diffusion.hub.loading import weights_digest

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
REPORTS = sorted((ROOT / "pipelines").glob("*/evaluation/*.json"))
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")), ROOT / "CONTRIBUTING.md"]


def test_the_embedded_models_were_measured():
    measured = {(file.parts[-3], file.stem) for file in REPORTS}
    assert {("moving-mnist", "paper"), ("moving-mnist", "text"), ("smmnist", "mcvd")} <= measured
    assert {model for model, _ in measured} == {folder.name for folder in (ROOT / "pipelines").iterdir()}


def test_the_results_are_what_their_command_writes():
    found = results_page.reports()
    assert (ROOT / "docs" / "results.md").read_text(encoding="utf-8") == results_page.page(found)
    assert results_page.readme(README, results_page.readme_table(found)) == README


def test_the_figures_between_the_tables_are_in_the_results():
    said = README[README.index("<!-- /results -->") : README.index("All tables, with their commands")]
    figures = set(re.findall(r"\d+\.\d+", said))
    assert figures
    assert figures <= set(re.findall(r"\d+\.\d+", (ROOT / "docs" / "results.md").read_text(encoding="utf-8")))


@pytest.mark.parametrize("model", ["moving-mnist", "moving-mnist-4step", "moving-mnist-text", "smmnist"])
def test_the_evaluated_weights_are_the_embedded_ones(model):
    digest = weights_digest(ROOT / "pipelines" / model)
    reports = [file for file in REPORTS if file.parts[-3] == model]
    assert reports
    for file in reports:
        assert json.loads(file.read_text(encoding="utf-8"))["model"]["weights"] == digest


def test_the_readme_is_short():
    assert len(README.split()) <= 1200


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_file_that_is_linked_exists(page):
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), target


def test_every_picture_has_its_command():
    script = (ROOT / "docs" / "samples" / "make.sh").read_text(encoding="utf-8")
    made = {"hero", *(name for name, _ in re.findall(r"^make (\S+) (.*)$", script, flags=re.MULTILINE))}
    assert "python docs/samples/hero.py" in script
    shown = {name for page in PAGES for name in re.findall(r"samples/([\w-]+)\.gif", page.read_text(encoding="utf-8"))}
    assert shown
    assert shown <= made
