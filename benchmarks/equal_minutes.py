"""
Quality after equal minutes: three denoisers at equal parameters learn the same clips under the same loss.

    python -m benchmarks.equal_minutes

Each trains alone for the same processor time (on a GPU: the same seconds) on classic Moving MNIST, 64×64, 10 frames,
one clip a step, with AdamW and a learning rate that rises over the first tenth of the time and falls to zero at its
end. The loss is ‖v − v̂‖² at times drawn uniformly, `video_diffusion.training.objective`, without given frames. Step
k sees the same clip, noise and time in each of them. `v_loss` is that loss on held-out clips at the same noise and
times for all; `predicting_zero` is what an output of zero scores, which is where ours, whose last layer starts at
zero, begins. A minute is a beginning, and favours what takes many steps in it.
"""

import math
from typing import Any

import torch
from torch import Tensor

from benchmarks.measure import Options, clock, part_main, rounded
from benchmarks.peers import Denoiser, available, make
from video_diffusion import VPContinuousScheduler
from video_diffusion.data import MovingMNIST
from video_diffusion.training.objective import diffusion_loss, draw

SECONDS, LEARNING_RATE, WARM_UP = 60.0, 8e-4, 0.1
FRAMES, HELD_OUT, AT_ONCE = 10, 8, 4
GENERATION = (1.0, 0.0, 0.0, 0.0)


def to_model(source: MovingMNIST, indices: range, device: str) -> Tensor:
    """Clips `[B, 1, F, H, W]` in [-1, 1]."""
    return torch.from_numpy(source.batch(indices)).to(device)[:, None].float() / 127.5 - 1


def v_loss(model: Denoiser, scheduler: VPContinuousScheduler, x: Tensor, seed: int, step: int) -> Tensor:
    """The loss of each clip, `[B]`."""
    noise = draw(tuple(x.shape), GENERATION, seed, step, device=x.device)
    return diffusion_loss(model, scheduler, x, noise, "v_prediction", in_channels=1)[0]


def train(model: Denoiser, scheduler: VPContinuousScheduler, options: Options) -> int:
    """Trains for `SECONDS`; gives the steps taken."""
    source = MovingMNIST(split="train", num_frames=FRAMES)
    to_model(source, range(1), "cpu")  # the digits are decoded and the loops compiled before the clock starts
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.99), weight_decay=0.01, fused=True)
    now, step = clock(options), 0
    begin = now()
    while (done := (now() - begin) / SECONDS) < 1:
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * min(1.0, done / WARM_UP) * (1 + math.cos(math.pi * done)) / 2
        v_loss(model, scheduler, to_model(source, range(step, step + 1), options.device), 0, step).mean().backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        step += 1
    return step


@torch.no_grad()
def validate(model: Denoiser, scheduler: VPContinuousScheduler, device: str) -> float:
    """The mean loss on held-out clips; times are stratified over each batch."""
    source = MovingMNIST(split="test", num_frames=FRAMES)
    losses = [
        v_loss(model, scheduler, to_model(source, range(first, first + AT_ONCE), device), 1, first)
        for first in range(0, HELD_OUT, AT_ONCE)
    ]
    return torch.cat(losses).mean().item()


class Zero(Denoiser):
    """Always gives zero."""

    def forward(self, sample: Tensor, timestep: Tensor) -> Any:
        """Zeros, as the other denoisers give their output."""
        output = super().forward(sample[:, :, :1, :32, :32], timestep)
        output.sample = torch.zeros_like(sample)
        return output


def run(options: Options) -> dict[str, Any]:
    """Trains and validates each."""
    names, notes = available()
    scheduler = VPContinuousScheduler(prediction_type="v_prediction")
    report: dict[str, Any] = {"seconds": SECONDS, "learning_rate": LEARNING_RATE, "notes": notes, "models": {}}
    zero = Zero(make("ours").network, "ours").to(options.device)
    report["predicting_zero"] = rounded(validate(zero, scheduler, options.device))
    for name in names:
        torch.manual_seed(0)
        model = make(name).to(options.device)
        steps = train(model, scheduler, options)
        report["models"][name] = {"steps": steps, "v_loss": rounded(validate(model, scheduler, options.device))}
    return report


if __name__ == "__main__":
    part_main(run, __doc__)
