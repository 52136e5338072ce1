"""The command itself: version, help, what it says to a slip of the pen, progress, pictures, completion, doctor."""

import base64
import io
import json
import re
import subprocess
import sys
from importlib.metadata import version

import pytest

from video_diffusion import cli
from video_diffusion.cli import main
from video_diffusion.commands import doctor, progress, terminal


def refused(capsys, *words):
    """What the parser says to words that it refuses."""
    with pytest.raises(SystemExit) as caught:
        main(words)
    assert caught.value.code == 2
    return capsys.readouterr().err


def test_the_version_is_the_packages(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["--version"])
    assert caught.value.code == 0
    assert capsys.readouterr().out == f"video-diffusion {version('video-diffusion')}\n"


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        (["generat"], "generate"),
        (["generate", "--sampler", "dpm+"], "dpm++"),
        (["generate", "--modle", "moving-mnist"], "--model"),
        (["predict", "--from-dataset", "0", "--window-schema=autoregressive"], "--window-scheme"),
        (["dataset", "build", "--out", "x", "--varient", "classic"], "--variant"),
        (["completion", "fisch"], "fish"),
    ],
)
def test_a_slip_is_answered_by_the_nearest_name_and_the_way_to_the_help(capsys, words, meant):
    said = refused(capsys, *words)
    assert f"Did you mean {meant}?" in said
    assert re.search(r"See `video-diffusion[\w -]* --help`\.", said)


def test_what_is_near_nothing_is_answered_without_a_guess(capsys):
    assert "Did you mean" not in refused(capsys, "generate", "--zzzzzz")
    assert main(["generate", "--model", "moving-mnits", "--num-videos", "1"]) == 2
    assert "Did you mean moving-mnist?" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (MemoryError(), "the memory does not suffice"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), "the memory does not suffice"),
        (OverflowError("too large"), "too large"),
    ],
)
def test_a_lack_of_memory_is_said_and_another_failure_of_ours_is_not_hidden(capsys, monkeypatch, error, said):
    def fail(args):
        raise error

    monkeypatch.setattr(doctor, "run_doctor", fail)
    assert main(["doctor"]) == 2
    assert said in capsys.readouterr().err
    error = RuntimeError("a bug")
    with pytest.raises(RuntimeError, match="a bug"):
        main(["doctor"])


# ------------------------------------------------------------------------------------------------------------ progress
def test_a_log_gets_a_line_each_ten_seconds_and_the_last_one(monkeypatch):
    from tqdm import tqdm

    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    log = io.StringIO()
    with tqdm(total=100, desc="clips", file=progress.LogLines(log), mininterval=0) as bar:
        for _ in range(100):
            now[0] += 0.35  # 35 seconds in all
            bar.update()
    lines = log.getvalue().splitlines()
    assert [re.search(r"(\d+)%", line)[1] for line in lines] == ["29", "58", "87", "100"]
    assert all(re.search(r"\[\d+:\d+<[\d:?]+, ", line) for line in lines)  # gone and left
    assert "\r" not in log.getvalue()


def test_a_terminal_gets_a_bar_that_moves(monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    assert "file" not in progress.bar_options()
    monkeypatch.setattr(sys.stderr, "isatty", lambda: False, raising=False)
    assert isinstance(progress.bar_options()["file"], progress.LogLines)


# ------------------------------------------------------------------------------------------------------------ pictures
@pytest.mark.parametrize(
    ("environment", "kind"),
    [
        ({"TERM_PROGRAM": "iTerm.app"}, "iterm2"),
        ({"TERM_PROGRAM": "WezTerm", "TERM": "xterm-256color"}, "iterm2"),
        ({"LC_TERMINAL": "iTerm2"}, "iterm2"),
        ({"TERM": "xterm-kitty"}, "kitty"),
        ({"TERM": "xterm-kitty", "TMUX": "/tmp/t"}, None),
        ({"TERM": "screen-256color", "TERM_PROGRAM": "iTerm.app"}, None),
        ({"TERM": "xterm-256color"}, None),
        ({}, None),
    ],
)
def test_a_terminal_says_by_its_environment_which_pictures_it_draws(environment, kind):
    assert terminal.protocol(environment) == kind


def test_a_sequence_carries_the_whole_picture():
    png = bytes(range(256)) * 40
    text = terminal.sequence(png, "iterm2")
    head, data = re.fullmatch(r"\x1b\]1337;File=([^:]*):([\w+/=]*)\x07\n", text).groups()
    assert "inline=1" in head
    assert base64.b64decode(data) == png
    parts = re.findall(r"\x1b_G([^;]*);([\w+/=]*)\x1b\\", terminal.sequence(png, "kitty"))
    assert base64.b64decode("".join(data for _, data in parts)) == png
    assert all(len(data) <= terminal.CHUNK for _, data in parts)
    assert [head for head, _ in parts] == ["a=T,f=100,m=1", *["m=1"] * (len(parts) - 2), "m=0"]


def test_a_file_gets_no_picture(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("TERM_PROGRAM", "iTerm.app")
    monkeypatch.delenv("TMUX", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    (tmp_path / "a.png").write_bytes(b"png")
    terminal.show_picture(tmp_path / "a.png")
    assert capsys.readouterr().out == ""
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    terminal.show_picture(tmp_path / "a.png")
    assert base64.b64encode(b"png").decode() in capsys.readouterr().out


# ---------------------------------------------------------------------------------------------------------- completion
@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_shell_gets_a_script_of_all_commands(capsys, shell):
    pytest.importorskip("shtab")
    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    assert all(name in script for name in ("generate", "interpolate", "doctor", "from-dataset", "dpm++"))


def test_bash_completes_with_the_script(capsys, tmp_path):
    pytest.importorskip("shtab")
    main(["completion", "bash"])
    script = tmp_path / "completion"
    script.write_text(capsys.readouterr().out)
    ask = "COMP_WORDS=(video-diffusion generate --from --sa); COMP_CWORD=3; COMP_WORDS[2]=--json; "
    run = f"source {script}; {ask} _shtab_video_diffusion video-diffusion --sa; echo ${{COMPREPLY[@]}}"
    answer = subprocess.run(["bash", "-c", run], capture_output=True, text=True, check=True)
    assert answer.stdout.split() == ["--sampler"]


# -------------------------------------------------------------------------------------------------------------- doctor
def test_the_doctor_says_what_is_here(capsys, monkeypatch):
    monkeypatch.setattr(doctor, "size", lambda folder: 0)
    monkeypatch.setattr(doctor, "SIDE", 64)  # bfloat16 may be slow here
    assert main(["doctor", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert list(found) == list(doctor.CHECKS)
    import torch

    assert found["versions"]["installed"]["torch"] == torch.__version__
    assert found["precision"]["auto"] in ("float32", "bfloat16")
    assert "moving-mnist" in found["models"]["embedded"]
    assert main(["doctor"]) == 0
    assert "speed of bfloat16: " in capsys.readouterr().out


def test_the_doctor_says_what_to_do(monkeypatch, tmp_path):
    from huggingface_hub import constants

    monkeypatch.setitem(doctor.PACKAGES, "no-such-package", "demo")
    assert doctor.versions()["advice"] == "pip install 'video-diffusion[demo]' brings no-such-package"
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    found = doctor.hub()
    assert found["reachable"] is False
    assert "refused" in found["reason"]
    monkeypatch.setattr(doctor, "ENOUGH", 1e30)
    assert "make room" in doctor.disk()["advice"]
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "apt-get install chromium" in doctor.browser()["advice"]


def test_the_hub_is_reachable_where_something_answers(monkeypatch):
    import threading
    from http.server import BaseHTTPRequestHandler, HTTPServer

    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with HTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as server:  # answers 501 to everything
        threading.Thread(target=server.handle_request, daemon=True).start()
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        assert doctor.hub()["reachable"] is True


def test_sizes_count_each_file_once(tmp_path):
    (tmp_path / "blobs").mkdir()
    (tmp_path / "blobs" / "a").write_bytes(bytes(1000))
    (tmp_path / "link").symlink_to("blobs/a")
    assert doctor.size(tmp_path) == 1000


def test_every_command_that_reports_takes_json():
    reports_in_files = {"evaluate", "train", "train-lora", "distill", "latents"}
    silent = {"completion", "demo", *reports_in_files}
    import argparse

    def commands(parser, name=()):
        for action in parser._actions:
            if isinstance(action, argparse._SubParsersAction):
                for word, below in action.choices.items():
                    yield from commands(below, (*name, word))
                return
        yield name, parser

    found = dict(commands(cli.build_parser()))
    assert len(found) > 10
    without = {name for name, parser in found.items() if "--json" not in parser._option_string_actions}
    assert {name[0] for name in without} <= silent
