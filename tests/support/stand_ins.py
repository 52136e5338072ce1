"""What stands for models and metric networks in the tests of the evaluation."""

import numpy as np
import torch
from einops import rearrange

from video_diffusion.evaluation import Run, Scorer, Source, evaluate
from video_diffusion.metrics.accumulators import FrameMetric

SIZE = 36


class AbsoluteError(FrameMetric):
    """Stands for LPIPS."""

    names = ("lpips",)

    def measure(self, predictions, references):
        return (predictions - references).abs().double().mean(dim=(2, 3, 4))[None].cpu()


def some_pixels(video):
    """Stands for I3D: 400 features that are some of the pixels."""
    flat = video.flatten(1)
    return flat[:, :: flat.shape[1] // 400][:, :400]


class Noisy(Source):
    """The truth with noise that depends on the clip and the sample only."""

    def __init__(self, protocol, strength=40, size=SIZE, stop_after=None):
        self.protocol, self.strength, self.image_size, self.stop_after = protocol, strength, size, stop_after
        self.identity, self.settings, self.asked = {"kind": "noisy", "name": "noisy"}, {"strength": strength}, []

    def check(self, protocol, num_videos, num_samples, lengths):
        pass

    def clips(self, indices, given, num_samples, lengths):
        if self.stop_after is not None and len(self.asked) >= self.stop_after:
            raise KeyboardInterrupt
        self.asked += indices
        return {length: np.stack([self._samples(i, num_samples, length) for i in indices]) for length in lengths}

    def _samples(self, i, num_samples, length):
        truth = self.protocol.truth([i], self.image_size)[0, :length].astype(int)
        clips = []
        for sample in range(num_samples):
            noise = np.random.default_rng([i, sample]).integers(-self.strength, self.strength + 1, truth.shape)
            noise[: self.protocol.num_given] = 0
            clips.append(np.clip(truth + noise, 0, 255).astype(np.uint8))
        return np.stack(clips)


def run_with(protocol, out, source=None, workers=None, **options):
    """The report of a run with the stand-ins for the networks."""
    source = source or Noisy(protocol)
    run = Run.of(source, protocol, **options)
    scorer = Scorer(protocol, run.lengths, features=some_pixels, lpips=AbsoluteError())
    return evaluate(source, run, out, scorer, workers=workers, progress=False)


def unit(clips):
    return rearrange(torch.from_numpy(clips).float() / 255, "... f h w c -> ... f c h w")
