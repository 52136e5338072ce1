import subprocess
import sys
from importlib.metadata import version

import pytest

from video_diffusion.cli import main


def test_train_takes_the_arguments_of_the_training_and_gives_its_exit_code(capsys):
    assert main(["train", "--preset", "nowhere"]) == 2
    assert "`preset` is 'nowhere', expected one of ['moving-mnist', 'smmnist', 'tiny-cpu']" in capsys.readouterr().err


def test_train_lists_the_arguments_of_the_training(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["train", "--help"])
    assert stopped.value.code == 0
    assert "--transformer_layers" in capsys.readouterr().out


def test_the_parser_comes_without_torch():
    code = "import sys, video_diffusion.cli as c; c.build_parser(); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_version_is_the_packages(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["--version"])
    assert stopped.value.code == 0
    assert version("video-diffusion") in capsys.readouterr().out
