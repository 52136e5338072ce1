"""Trainings small enough for tests: their flags, in this process or in one of their own, and what came of them."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from video_diffusion.training import command

ROOT = Path(__file__).parents[2]
SCRIPT = str(ROOT / "training" / "train.py")
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "CUDA_VISIBLE_DEVICES": ""}
TINY = [
    *("--block_out_channels", "32", "32", "--patch_size", "8", "--num_frames", "3", "--image_size", "32"),
    *("--num_images", "1", "--num_digits", "1", "--text_encoder", "small-bert", "--max_text_length", "16"),
    *("--caption_dropout", "0.5", "--lr_scheduler", "constant", "--warmup_steps", "0", "--log_steps", "1"),
    *("--validation_steps", "0"),
]


def flags_of(digits, output, *more):
    return [*TINY, "--digits", str(digits), "--output_dir", str(output), *map(str, more)]


def train(digits, output, *more):
    """The exit code of a part of a training in this process; the handlers of signals and the threads stay."""
    handlers, threads = {n: signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)}, torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return command.main(flags_of(digits, output, *more))
    finally:
        torch.set_num_threads(threads)
        for number, handler in handlers.items():
            signal.signal(number, handler)


def command_line(digits, output, *more, launcher=(sys.executable,), script=SCRIPT):
    return [*launcher, script, *flags_of(digits, output, *more)]


def in_own_process(words, **kwargs):
    return subprocess.run(words, env=ENVIRONMENT, capture_output=True, text=True, timeout=240, **kwargs)


def weights(output):
    unet = load_file(output / "unet" / "diffusion_pytorch_model.safetensors")
    return unet | load_file(output / "text_encoder" / "model.safetensors")


def scalars(output, name="loss"):
    events = EventAccumulator(str(output / "logs" / "training"))
    events.Reload()
    return [event.value for event in events.Scalars(name)]
