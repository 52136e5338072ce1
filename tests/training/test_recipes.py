"""The recipes and the configurations of accelerate: what the tools read, and a recipe that runs in parts."""

import os
import shlex
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.utils import DistributedType

from video_diffusion.training.lora import parse_adaptation

ROOT = Path(__file__).parents[2]
RECIPES = sorted((ROOT / "training" / "recipes").glob("*.sh"))
CONFIGS = sorted((ROOT / "training" / "accelerate").glob("*.yaml"))


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_accelerate_reads_its_configuration(config):
    parsed = load_config_from_file(str(config))
    assert parsed.num_processes >= 2
    assert parsed.distributed_type in set(DistributedType)
    named = str(config.relative_to(ROOT))
    assert f"--config_file {named}" in config.read_text(encoding="utf-8")  # the comment says how it is used


def test_fsdp_wraps_the_class_that_the_model_repeats():
    from video_diffusion import VideoUNet3DConditionModel

    config = load_config_from_file(str(ROOT / "training" / "accelerate" / "fsdp.yaml"))
    assert config.fsdp_config["fsdp_transformer_layer_cls_to_wrap"] in VideoUNet3DConditionModel._no_split_modules


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_is_a_script_that_the_shell_reads(recipe):
    assert subprocess.run(["bash", "-n", str(recipe)], capture_output=True).returncode == 0


def test_a_recipe_runs_in_parts_and_ends_with_figures_and_a_card(tmp_path):
    """The real recipe, with a model of nothing and the evaluation left to a stand-in that notes what it is asked."""
    digits = tmp_path / "digits.npz"
    np.savez(digits, images=np.zeros((20, 28, 28), np.uint8), labels=np.arange(20) % 10)
    asked, bin_ = tmp_path / "asked", tmp_path / "bin"
    bin_.mkdir()
    (bin_ / "video-diffusion").write_text(f'#!/bin/sh\necho "$@" >> {asked}\n')
    (bin_ / "video-diffusion").chmod(0o755)
    environment = os.environ | {
        "PATH": f"{bin_}{os.pathsep}{os.environ['PATH']}",
        "SCALE": "tiny-cpu",
        "OUT": str(tmp_path / "runs"),
        "TRAIN": f"{sys.executable} training/train.py",
        "OMP_NUM_THREADS": "1",
    }
    flags = [
        *("--digits", str(digits), "--block_out_channels", "64", "64", "--layers_per_block", "1", "0"),
        *("--transformer_layers", "1", "--max_steps", "3", "--per_device_batch_size", "1", "--num_frames", "2"),
        *("--image_size", "32", "--num_digits", "1", "--validation_steps", "0"),
    ]
    recipe = ["bash", str(ROOT / "training" / "recipes" / "moving-mnist.sh"), *flags]
    part = subprocess.run(recipe, env=environment | {"PART_MINUTES": "0"}, capture_output=True, text=True)
    assert part.returncode == 3, part.stderr
    assert not asked.exists()
    whole = subprocess.run(recipe, env=environment, capture_output=True, text=True)
    assert whole.returncode == 0, whole.stderr
    assert (tmp_path / "runs" / "tiny-cpu" / "model_index.json").is_file()
    lines = asked.read_text().splitlines()
    assert [line.split()[0] for line in lines] == ["evaluate"] * 4 + ["card"]
    again = subprocess.run(recipe, env=environment, capture_output=True, text=True)  # nothing is trained twice
    assert again.returncode == 0
    assert "step/s" not in again.stderr


@pytest.fixture
def asked(tmp_path):
    """Runs a recipe twice; the command is left to a stand-in that notes what it is asked and makes empty results.

    Returns what was asked, a list of words each time.
    """
    asked, bin_ = tmp_path / "asked", tmp_path / "bin"
    bin_.mkdir()
    (bin_ / "video-diffusion").write_text(f"""#!/bin/bash
        printf '%q ' "$@" >> {shlex.quote(str(asked))}
        echo >> {shlex.quote(str(asked))}
        command=$1
        while [ $# -gt 1 ]; do
            case "$command $1" in
                "train-lora --output_dir") mkdir -p "$2"; echo '{{}}' > "$2/model_index.json" ;;
                "export --out") mkdir -p "$2"; touch "$2/README.md" ;;
            esac
            shift
        done
    """)
    (bin_ / "video-diffusion").chmod(0o755)
    environment = os.environ | {"PATH": f"{bin_}{os.pathsep}{os.environ['PATH']}", "OUT": str(tmp_path / "runs")}

    def run(recipe, *flags):
        words = ["bash", str(ROOT / "training" / "recipes" / recipe), *flags]
        for _ in range(2):  # the second time nothing is trained
            assert subprocess.run(words, env=environment, capture_output=True).returncode == 0
        return [shlex.split(line) for line in asked.read_text().splitlines()]

    return run


def test_the_recipe_of_prompts_trains_each_adapter_on_the_one_before_and_extracts_one_of_all(asked):
    lines = asked("moving-mnist-prompts.sh", "--seed", "7")
    assert [line[0] for line in lines] == ["train-lora"] * 4 + ["export"] + ["evaluate", "evaluate", "card"] * 2
    base = "moving-mnist"
    for line in lines[:4]:
        after = line.index("--pretrained_model_name_or_path") + 1
        assert line[after] == base
        _, args = parse_adaptation([*line[1:after], "moving-mnist", *line[after + 1 :]])
        assert (args.seed, args.merged, args.lora_text_encoder) == (7, True, True)
        base = args.output_dir
    words = dict(pairwise(lines[4]))
    assert (words["--model"], words["--base"]) == (base, "moving-mnist")
    assert lines[5][lines[5].index("--model") + 1] == words["--out"]


def test_the_recipe_of_stochastic_clips_merges_an_adapter_that_learns_to_predict(asked):
    lines = asked("smmnist-adapt.sh", "--lora_rank", "8")
    assert [line[0] for line in lines] == ["train-lora"] + ["evaluate", "card"] * 2
    data, args = parse_adaptation(lines[0][1:])
    assert (data.variant, data.num_frames, args.lora_rank, args.merged) == ("stochastic", 15, 8, True)
    assert args.mask_probabilities[1] > 0.5
    assert args.cooldown_minutes == args.max_minutes // 3
