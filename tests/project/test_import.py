"""What `import video_diffusion` brings in, seen from a fresh process."""

import json
import subprocess
import sys

import pytest

import video_diffusion

OPTIONAL = ("gradio", "datasets", "evaluate", "imageio", "numba", "pyarrow", "tensorboard")


def modules_after(code: str) -> set[str]:
    """The modules that a fresh process has loaded after running code."""
    code += "\nimport json, sys; print(json.dumps(sorted(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    return set(json.loads(result.stdout.splitlines()[-1]))


def test_the_bare_import_loads_neither_torch_nor_any_module_of_ours():
    modules = modules_after("import video_diffusion; dir(video_diffusion)")
    assert {name for name in modules if name.startswith("video_diffusion")} == {"video_diffusion"}
    assert not modules & {"torch", "numpy", "diffusers"}


def test_the_public_names_bring_in_no_optional_package_and_only_modules_that_they_need():
    names = sorted(video_diffusion.__all__)
    assert len(names) >= 6
    modules = modules_after(f"from video_diffusion import {', '.join(names)}")
    assert not modules & set(OPTIONAL)
    ours = {name.removeprefix("video_diffusion.") for name in modules if name.startswith("video_diffusion.")}
    assert {"model.denoiser", "model.pipeline", "model.scheduler"} <= ours
    assert not {name for name in ours if name.startswith(("data", "metrics", "evaluation", "commands", "cli"))}


def test_the_data_come_without_torch_and_without_the_packages_of_the_builders():
    modules = modules_after("from video_diffusion.data import MovingMNIST")
    assert not modules & {"torch", "diffusers", "datasets", "numba"}


@pytest.mark.parametrize("name", sorted(video_diffusion.__all__))
def test_every_public_name_is_what_its_home_holds(name):
    assert getattr(video_diffusion, name).__name__ == name
    assert name in dir(video_diffusion)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'video_diffusion' has no attribute 'VideoUNet'"):
        _ = video_diffusion.VideoUNet
