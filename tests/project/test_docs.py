"""Pages whose figures and names come from elsewhere say what is said there."""

import json
import re
import runpy
import shlex
import shutil
import sys
from pathlib import Path

import pytest
import yaml

from video_diffusion.cli import build_parser

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
ADDRESS = runpy.run_path(str(DOCS / "address.py"))


def read(name):
    return (ROOT / name).read_text(encoding="utf-8")


@pytest.mark.parametrize("page", ["docs/limits.md", "docs/prompts.md"])
def test_every_figure_of_a_page_is_one_of_the_results(page):
    figures = set(re.findall(r"\d+\.\d+", read(page)))
    assert len(figures) >= 10
    assert figures <= set(re.findall(r"\d+\.\d+", read("docs/results.md")))


def test_the_figures_of_the_page_in_the_browser_are_those_that_were_measured():
    report = json.loads(read("benchmarks/results/browser.json"))
    table = read("docs/browser.md").split("<!-- browser -->")[1].split("<!-- /browser -->")[0]
    rows = [f"| {run['calls']} | {run['seconds']:g} | {run['difference']:.1e} |" for run in report["runs"]]
    assert table.strip().splitlines()[2:] == rows
    assert (report["frames"], report["cores"], report["threads"], report["backend"]) == (10, 2, 2, "wasm")
    assert max(run["seconds"] for run in report["runs"]) <= 20
    assert max(run["difference"] for run in report["runs"]) <= 1e-3


def test_the_site_has_every_page_in_its_menu():
    class Loader(yaml.SafeLoader):
        pass

    Loader.add_multi_constructor("tag:yaml.org,2002:python/", lambda *_: None)
    nav = yaml.load(read("mkdocs.yml"), Loader)["nav"]

    def pages(item):
        inside = item.values() if isinstance(item, dict) else item
        return {item} if isinstance(item, str) else {page for part in inside for page in pages(part)}

    assert pages(nav) == {page.relative_to(DOCS).as_posix() for page in DOCS.rglob("*.md")}


@pytest.mark.parametrize("page", sorted(DOCS.rglob("*.md")), ids=lambda page: page.relative_to(DOCS).as_posix())
def test_every_command_in_a_block_is_one_that_the_parser_takes(page):
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    for block in re.findall(r"^ *```bash\n(.*?)^ *```", text, flags=re.MULTILINE | re.DOTALL):
        for line in block.splitlines():
            words = shlex.split(line, comments=True)
            if words[:1] == ["video-diffusion"] and words[1] not in ("train", "train-lora"):
                build_parser().parse_args(words[1:])  # those two hand their flags on


@pytest.fixture
def clone(tmp_path, monkeypatch):
    for name in (*ADDRESS["PAGES"], "mkdocs.yml", "pyproject.toml"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    monkeypatch.setitem(ADDRESS["main"].__globals__, "ROOT", tmp_path)
    return tmp_path


def test_one_setting_fills_the_address_in_all_places_and_again_after_a_move(clone, monkeypatch):
    import tomllib

    assert all("git clone" in read(page) for page in ADDRESS["PAGES"])
    clones = {
        p.relative_to(ROOT).as_posix()
        for p in [*ROOT.glob("*.md"), *DOCS.rglob("*.md")]
        if "git clone" in p.read_text()
    }
    assert clones == set(ADDRESS["PAGES"])
    for address in ("https://example.org/you/video-diffusion", "git@example.org:they/moved.git"):
        monkeypatch.setattr(sys, "argv", ["address.py", address])
        ADDRESS["main"]()
        for page in ADDRESS["PAGES"]:
            text = (clone / page).read_text()
            assert f"git clone {address} video-diffusion" in text
            assert ADDRESS["PLACEHOLDER"] not in text
        assert f"\nrepo_url: {address}\n" in (clone / "mkdocs.yml").read_text()
        project = tomllib.loads((clone / "pyproject.toml").read_text())
        assert project["project"]["urls"] == {"Repository": address}
        assert project["project"]["scripts"]
    assert (clone / "mkdocs.yml").read_text().count("repo_url") == 1


def test_what_is_no_address_is_refused_and_nothing_is_written(clone, monkeypatch):
    before = {file: file.read_text() for file in clone.rglob("*.*") if file.is_file()}
    monkeypatch.setattr(sys, "argv", ["address.py", "video-diffusion"])
    with pytest.raises(SystemExit, match=r"expected https://… or git@…"):
        ADDRESS["main"]()
    assert {file: file.read_text() for file in before} == before
