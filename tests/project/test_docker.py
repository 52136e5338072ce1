"""The Dockerfile against the repository: what it copies is there, what it runs is known. No daemon is needed."""

import json
import re
import tomllib
from fnmatch import fnmatch
from pathlib import Path

import pytest

from video_diffusion.cli import build_parser

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
KNOWN = {"FROM", "WORKDIR", "COPY", "RUN", "ARG", "USER", "EXPOSE", "ENTRYPOINT", "CMD", "ENV"}


@pytest.fixture(scope="module")
def steps():
    """The instructions: name and the rest, lines joined."""
    text = re.sub(r"\\\n", " ", (ROOT / "Dockerfile").read_text(encoding="utf-8"))
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#")]
    return [tuple(line.split(maxsplit=1)) for line in lines]


def of(steps, name):
    return [rest for step, rest in steps if step == name]


def sent(path):
    """Whether a path of the repository reaches the daemon: the last pattern that fits decides, as for Docker."""
    found, parts = True, path.split("/")
    names = ["/".join(parts[: i + 1]) for i in range(len(parts))]
    for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines():
        pattern = line.strip().removeprefix("!")
        anywhere = pattern.startswith("**/")
        tried = parts if anywhere else names
        if pattern and not line.startswith("#") and any(fnmatch(t, pattern.removeprefix("**/")) for t in tried):
            found = line.startswith("!")
    return found


def test_every_instruction_is_one_of_docker(steps):
    assert {name for name, _ in steps} <= KNOWN
    assert steps[0][0] == "FROM"
    stages = [rest.split()[-1] for rest in of(steps, "FROM") if " AS " in rest]
    assert [s for rest in of(steps, "COPY") for s in re.findall(r"--from=(\S+)", rest)] == stages


def test_the_python_is_one_that_the_package_takes(steps):
    lowest = tuple(map(int, re.findall(r"\d+", PROJECT["project"]["requires-python"])))
    assert all(tuple(map(int, re.findall(r"\d+", rest)[:2])) >= lowest for rest in of(steps, "FROM"))


def test_what_it_copies_is_there_and_is_sent(steps):
    sources = [s for rest in of(steps, "COPY") if "--from" not in rest for s in rest.split()[:-1]]
    assert "constraints.txt" in sources
    for source in sources:
        assert (ROOT / source).exists(), source
        assert source == "." or sent(source), source


def test_what_the_wheel_is_made_of_is_sent_and_the_rest_is_not():
    wheel = PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]
    needed = [*wheel["packages"], *wheel["force-include"], "pyproject.toml", PROJECT["project"]["readme"]]
    for path in (*needed, *PROJECT["project"]["license-files"], "pipelines/moving-mnist/unet/config.json"):
        assert (ROOT / path).exists(), path
        assert sent(path), path
    for path in (
        "tests/conftest.py",
        ".git/config",
        "docs/index.md",
        "runs/mine",
        "benchmarks/measure.py",
        ".venv/bin/x",
    ):
        assert not sent(path), path
    assert not sent("src/video_diffusion/__pycache__/cli.pyc")


def test_it_installs_pinned_versions_and_extras_that_exist(steps):
    install = " ".join(of(steps, "RUN"))
    assert "-c /tmp/constraints.txt" in install
    pins = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    assert len([line for line in pins if line.startswith("torch==")]) == 1  # what `grep` finds
    wheel, extras = re.findall(r"/tmp/wheels/(\w+)-\*\.whl\)\[([\w,]+)\]", install)[0]
    assert wheel == PROJECT["project"]["name"].replace("-", "_")
    assert set(extras.split(",")) <= set(PROJECT["project"]["optional-dependencies"])
    assert "$TORCH_INDEX" in install
    assert [rest.split("=")[0] for rest in of(steps, "ARG")] == ["TORCH_INDEX"]


def test_what_it_starts_is_a_command_of_ours_at_the_port_that_it_opens(steps):
    (entry,), (command,), (port,) = (of(steps, name) for name in ("ENTRYPOINT", "CMD", "EXPOSE"))
    assert json.loads(entry)[0] in PROJECT["project"]["scripts"]
    args = build_parser().parse_args(json.loads(command))
    assert (args.host, args.port) == ("0.0.0.0", int(port))
    assert of(steps, "USER") == ["user"]


def test_the_page_about_it_names_what_it_has(steps):
    page = (ROOT / "docs" / "docker.md").read_text(encoding="utf-8")
    (argument,) = {match.split("=")[0] for match in re.findall(r"--build-arg (\S+)", page)}
    assert any(rest.startswith(f"{argument}=") for rest in of(steps, "ARG"))
    for published in re.findall(r"-p \d+:(\d+)", page):
        assert published in of(steps, "EXPOSE")
    for folder in re.findall(r':(/\S+)"', page):
        assert folder.startswith(f"{of(steps, 'WORKDIR')[-1]}/")
