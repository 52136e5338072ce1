"""
Memory and time of long videos: one clip of 20, 100 and 500 frames by each window scheme, with and without guidance.

    python -m benchmarks.long_video [--quick]

The network is small and untrained (64×64 pixels, trained length 10): what is measured is how the cost of the windows
grows with the length, not the quality. Each figure comes from a process of its own. `peak_mb` is the highest memory of
the process (on a GPU: of torch on it), `added_mb` what the call added to that of the loaded pipeline, `video_mb` the
size of the video that comes back, float32. It is held twice, as latents and as pixels, and grows with the length of
necessity.
"""

import argparse
import json
from typing import Any

from benchmarks.measure import Options, add_options, clock, in_process, options_of, part_main, peak_mb, words_of

LENGTHS = (20, 100, 500)
TRAINED, SIZE, STEPS = 10, 64, 2
CASES = (("autoregressive", None), ("hierarchy-2", None), ("interpolate", None), ("autoregressive", 1.0))


def measure(options: Options, frames: int, scheme: str, scale: float | None) -> dict[str, Any]:
    """One call in this process: a free video, by a model without mask channels where a guidance scale is given."""
    import torch

    from video_diffusion import VideoDiffusionPipeline, VideoUNet3DConditionModel, VPContinuousScheduler
    from video_diffusion.model.windows import plan_windows

    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    unet = VideoUNet3DConditionModel(
        sample_size=SIZE,
        num_frames=TRAINED,
        in_channels=3 if scale is None else 1,
        patch_size=4,
        block_out_channels=(32, 64),
    )
    pipeline = VideoDiffusionPipeline(unet.eval(), VPContinuousScheduler(prediction_type="v_prediction"))
    pipeline.to(options.device)
    pipeline.set_progress_bar_config(disable=True)

    def call(num_frames: int) -> Any:
        guided = {} if scale is None else {"reconstruction_guidance_scale": scale}
        return pipeline(
            num_frames=num_frames,
            num_inference_steps=STEPS,
            window_scheme=scheme,
            generator=torch.Generator().manual_seed(0),
            output_type="pt",
            **guided,
        ).frames

    def peak() -> float:
        return torch.cuda.max_memory_allocated() / 2**20 if options.device == "cuda" else peak_mb()

    call(TRAINED + 1)  # libraries allocate their working memory once
    now = clock(options)
    loaded, start = peak(), now()
    video = call(frames)
    seconds = now() - start
    assert video.shape[1] == frames
    return {
        "frames": frames,
        "scheme": scheme,
        "reconstruction_guidance_scale": scale,
        "windows": len(list(plan_windows(frames, TRAINED, None, scheme))),
        "seconds": round(seconds, 3),
        "peak_mb": round(peak(), 1),
        "added_mb": round(peak() - loaded, 1),
        "video_mb": round(video.nbytes / 2**20, 2),
    }


def run(options: Options) -> dict[str, Any]:
    """Every case at every length; the quick run has the default scheme at two."""
    cases = [(frames, *case) for case in CASES for frames in LENGTHS]
    if options.quick:
        cases = [(frames, *CASES[0]) for frames in LENGTHS[:2]]
    words = words_of(options)
    rows = [in_process("benchmarks.long_video", "--one", json.dumps(case), *words) for case in cases]
    return {"trained_frames": TRAINED, "image_size": SIZE, "steps_of_a_window": STEPS, "rows": rows}


def main() -> None:
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--one", help="the arguments of `measure`, as JSON")
    add_options(parser)
    args, _ = parser.parse_known_args()
    if args.one is None:
        part_main(run, __doc__)
    else:
        print(json.dumps(measure(options_of(args), *json.loads(args.one))))


if __name__ == "__main__":
    main()
