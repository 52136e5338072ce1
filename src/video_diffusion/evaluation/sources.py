"""What is scored: the interface, and a pipeline that predicts, in windows where a clip is longer than its training."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from einops import rearrange
from numpy.typing import NDArray

from video_diffusion.evaluation.protocols import Protocol
from video_diffusion.video_io import to_channels, to_uint8
from video_diffusion.windows import Window, plan_windows

if TYPE_CHECKING:
    from video_diffusion.pipeline import VideoDiffusionPipeline

Clips = NDArray[np.uint8]


class Source(ABC):
    """Something that has S clips for each clip of a protocol.

    Args:
        identity: what it is, for the report; JSON.
        settings: what changes its clips, for the report; JSON.
        image_size: H = W of its frames.
    """

    identity: dict[str, Any]
    settings: dict[str, Any]
    image_size: int

    @abstractmethod
    def check(self, protocol: Protocol, num_videos: int, num_samples: int, lengths: Sequence[int]) -> None:
        """Raises a ValueError, before anything is computed, where it cannot serve the protocol."""

    @abstractmethod
    def clips(
        self, indices: Sequence[int], given: Clips, num_samples: int, lengths: Sequence[int]
    ) -> dict[int, Clips]:
        """Its clips.

        Args:
            indices: numbers of the protocol's clips, `[n]`.
            given: their given frames, uint8 `[n, k, H, W, 1]`.
            num_samples: S.
            lengths: F, frames of the whole clips, in ascending order.

        Returns:
            for each length uint8 `[n, S, F, H, W, 1]`, the given frames in front.
        """

    def cost(self, num_given: int, lengths: Sequence[int]) -> dict[str, Any]:
        """`windows` and `network_calls_per_clip` by length; nothing where no network is called."""
        return {}


# ---------------------------------------------------------------------------------------------------------- a pipeline
def clip_generator(seed: int, clip: int, sample: int, length: int) -> torch.Generator:
    """The randomness of one clip: a pure function of these numbers, so that batches and processes do not matter."""
    state = np.random.SeedSequence([seed, clip, sample, length]).generate_state(2)
    return torch.Generator().manual_seed(int(state[0]) << 31 | int(state[1]) >> 1)


class PipelineSource(Source):
    """A pipeline.

    Args:
        pipeline: on its device, with its sampler.
        identity: as in `Source`.
        steps: network calls of a window.
        seed: of the noise.
        sampler: the sampler's name, for the report.
        batch_size: clips at once.
        history_guidance: w of the guidance on given frames; 1: none.
    """

    def __init__(
        self,
        pipeline: "VideoDiffusionPipeline",
        identity: dict[str, Any],
        *,
        steps: int = 50,
        seed: int = 0,
        sampler: str = "ancestral",
        batch_size: int = 16,
        history_guidance: float = 1.0,
    ) -> None:
        self.pipeline, self.identity, self.batch_size = pipeline, identity, batch_size
        self.steps, self.seed, self.history_guidance = steps, seed, history_guidance
        scheduler = pipeline.scheduler
        self.settings = {
            "sampler": sampler,
            "scheduler": type(scheduler).__name__,
            "gamma": scheduler.config.get("gamma"),
            "steps": steps,
            "seed": seed,
        }
        if history_guidance != 1:
            self.settings["history_guidance"] = history_guidance
        height, width = pipeline.resolve_shape(1, None, None)[1:]
        if height != width:
            raise ValueError(f"The model's frames are {width}×{height}, expected square ones.")
        self.image_size = height
        pipeline.set_progress_bar_config(disable=True)

    def check(self, protocol: Protocol, num_videos: int, num_samples: int, lengths: Sequence[int]) -> None:
        """Raises a ValueError where the model cannot be given frames and the protocol needs it, or the other way."""
        unet, channels = self.pipeline.unet, self.pipeline.latent_channels
        plans = {length: self._windows(protocol.num_given, length) for length in lengths}
        if self.history_guidance != 1 and not any(window.given for plan in plans.values() for window in plan):
            raise ValueError(
                f"`--history-guidance` is {self.history_guidance:g}, expected none: in clips of "
                f"{' and '.join(map(str, lengths))} frames nothing is given."
            )
        for length, windows in plans.items():
            if any(window.given for window in windows) and unet.config.in_channels == channels:
                raise ValueError(
                    f"The model has no channels for given frames (in_channels {channels}, not {2 * channels + 1}), "
                    f"expected them for clips of {length} frames, {protocol.num_given} of them given, by a model "
                    f"trained on {unet.config.get('num_frames')}."
                    + (" Pass `--num-frames` with lengths it was trained on." if protocol.num_given == 0 else "")
                )

    def clips(
        self, indices: Sequence[int], given: Clips, num_samples: int, lengths: Sequence[int]
    ) -> dict[int, Clips]:
        """As `Source.clips`; nothing but the seed, the clip and the sample decides about a clip."""
        jobs = [(row, sample) for row in range(len(indices)) for sample in range(num_samples)]
        made: dict[int, list[Clips]] = {length: [] for length in lengths}
        for first in range(0, len(jobs), self.batch_size):
            batch = jobs[first : first + self.batch_size]
            frames = self._given([given[row] for row, _ in batch]) if given.shape[1] else None
            for length in lengths:
                generators = [clip_generator(self.seed, indices[row], sample, length) for row, sample in batch]
                told = frames is not None or len(self._windows(0, length)) > 1
                output: Any = self.pipeline(
                    video=frames,
                    num_frames=length,
                    history_guidance_scale=self.history_guidance if told else 1.0,
                    num_inference_steps=self.steps,
                    num_videos_per_prompt=len(batch) if frames is None else 1,
                    generator=generators,
                    output_type="pt",
                )
                made[length].append(self.to_grey(output.frames))
        return {
            length: rearrange(np.concatenate(parts), "(n s) f h w c -> n s f h w c", s=num_samples)
            for length, parts in made.items()
        }

    def _windows(self, num_given: int, length: int) -> list[Window]:
        """The pipeline's own plan for a clip whose first frames are given."""
        return list(plan_windows(length, self.pipeline.unet.config.get("num_frames"), given=range(num_given)))

    def _given(self, clips: list[Clips]) -> torch.Tensor:
        """Grey clips uint8 `[k, H, W, 1]` as the model reads them: `[B, k, C, H, W]` in [0, 1]."""
        frames = np.stack([to_channels(clip, self.pipeline.pixel_channels) for clip in clips])
        return rearrange(torch.from_numpy(frames).float() / 255, "b f h w c -> b f c h w")

    def to_grey(self, video: torch.Tensor) -> Clips:
        """`[B, F, C, H, W]` in [0, 1] as uint8 `[B, F, H, W, 1]`."""
        frames = to_uint8(rearrange(video, "b f c h w -> b f h w c").numpy())
        return np.stack([to_channels(clip, 1) for clip in frames])

    def cost(self, num_given: int, lengths: Sequence[int]) -> dict[str, Any]:
        """Counted on the sampler's own timesteps, which may be more or fewer than the steps asked for."""
        windows = {length: self._windows(num_given, length) for length in lengths}
        self.pipeline.scheduler.set_timesteps(self.steps)
        calls, guided = len(self.pipeline.scheduler.timesteps), self.history_guidance != 1
        totals = {n: calls * sum(2 if guided and w.given else 1 for w in plan) for n, plan in windows.items()}
        return {
            "windows": {str(n): [[len(w.given), len(w.made)] for w in plan] for n, plan in windows.items()},
            "network_calls_per_clip": {str(length): total for length, total in totals.items()},
        }
