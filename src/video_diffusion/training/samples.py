"""What a run shows of itself: always the same held-out clips and prompts, from the same noise."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from video_diffusion.data.streams import VideoStream
from video_diffusion.model.guidance import reads_frames
from video_diffusion.training.batches import open_captions
from video_diffusion.training.run import Run
from video_diffusion.training.trackers import Shown, log_videos
from video_diffusion.training.validation import half, held_out, states_of

STEPS = 20  # of the sampler, where the model recommends none


def show_samples(run: Run, step: int) -> None:
    """Samples the averaged weights and gives what comes out to the tracker; on one process."""
    if run.accelerator.is_main_process:
        log_videos(run, sample_videos(run), step)


@torch.no_grad()
def sample_videos(run: Run) -> dict[str, Shown]:
    """`predicted`: held-out clips above what the model makes of their first half; `generated`: what it makes of the
    prompts, those of `sample_prompts` or the captions of the same clips.
    """
    pipe, clips = run.pipeline(), held_out(run, run.args.sample_videos)
    pipe.set_progress_bar_config(disable=True)
    count, found = half(run), {}
    if 0 < count < clips.shape[1] and reads_frames(pipe.unet.config):
        given = clips[:, :count].permute(0, 1, 4, 2, 3).float() / 255
        rows = [clips.numpy(), _call(pipe, len(clips), video=given)]
        found["predicted"] = Shown(rows, f"The truth above; below its first {count} frames were given.")
    texts = prompts(run, len(clips))
    if texts is None:
        generated, caption = _call(pipe, len(clips), num_videos_per_prompt=len(clips)), "Without text."
    else:
        generated, caption = _call(pipe, len(texts), prompt_embeds=states_of(run, pipe, texts)), " | ".join(texts)
    return found | {"generated": Shown([generated], caption)}


def prompts(run: Run, count: int) -> list[str] | None:
    """The texts of the samples: as asked, or captions of the first held-out clips; None without text."""
    if run.text is None:
        return None
    if run.args.sample_prompts is not None:
        return run.args.sample_prompts
    for source in (run.validation_source, run.train_source):
        try:
            if isinstance(source, VideoStream):
                said = [text for text in source.captions(run.data.caption_column) if text][:count]
            else:
                said = open_captions(source, run.data, run.args.seed)(np.arange(min(count, len(source))))
        except ValueError:  # the held-out videos may have no captions
            continue
        if said:
            return said
    return None


def _call(pipe: Any, count: int, **options: Any) -> NDArray[np.uint8]:
    """Clips uint8 `[N, F, H, W, C]`, clip i from seed i."""
    generators = [torch.Generator().manual_seed(seed) for seed in range(count)]
    steps = pipe.generation_config.get("num_inference_steps", STEPS)
    made = pipe(num_inference_steps=steps, generator=generators, output_type="np", **options).frames
    return np.rint(made.clip(0, 1) * 255).astype(np.uint8)
