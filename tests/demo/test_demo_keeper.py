"""The server is started again where it was killed, and not where it ended by itself or was told to."""

import signal
import subprocess
import sys
import textwrap
import time

import pytest

from video_diffusion.demo import keeper

DIES = """
    import os, pathlib, signal, sys
    log = pathlib.Path(sys.argv[1])
    starts = log.read_text().count("start") if log.exists() else 0
    log.write_text("start " * (starts + 1))
    if starts < int(sys.argv[2]):
        os.kill(os.getpid(), signal.SIGKILL)
    sys.exit(int(sys.argv[3]))
"""


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.setattr(keeper, "REST", 0.0)

    def run(deaths, code):
        words = [sys.executable, "-c", textwrap.dedent(DIES), str(tmp_path / "log"), str(deaths), str(code)]
        return keeper.keep(words), (tmp_path / "log").read_text().count("start")

    return run


@pytest.mark.parametrize(
    ("deaths", "code", "expected"), [(0, 0, (0, 1)), (0, 2, (2, 1)), (2, 0, (0, 3)), (99, 0, (1, 5))]
)
def test_it_starts_again_after_a_kill_up_to_a_number_of_deaths(run, deaths, code, expected, capfd):
    assert run(deaths, code) == expected
    said = capfd.readouterr().err
    assert said.count("It starts again.") == expected[1] - 1
    assert ("giving up" in said) == (expected[0] == 1)


def test_the_end_that_is_asked_for_is_the_end_of_both(tmp_path):
    mark = tmp_path / "started"
    server = f"import pathlib, time; pathlib.Path({str(mark)!r}).touch(); time.sleep(60)"
    code = (
        f"from video_diffusion.demo.keeper import keep; raise SystemExit(keep([{sys.executable!r}, '-c', {server!r}]))"
    )
    process = subprocess.Popen([sys.executable, "-c", code])
    end = time.monotonic() + 60
    while not mark.exists():
        assert time.monotonic() < end
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 128 + signal.SIGTERM
