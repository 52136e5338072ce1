"""
I3D (Carreira and Zisserman, 2017), RGB, Kinetics-400: the network that the Fréchet video distance is defined on.

A port of DeepMind's TensorFlow network (tf-hub `deepmind/i3d-kinetics-400/1`) with the same weights. TensorFlow pads
"SAME": the odd pixel goes to the end, which PyTorch's symmetric padding cannot express, so every unit pads by hand.
Batch norms are folded into the convolutions by `video_diffusion.metrics.convert`.
"""

import os
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn

from video_diffusion.metrics.checks import check_video
from video_diffusion.metrics.weights import load

NUM_LOGITS = 400
MIN_FRAMES = 9
FRAME_SIZE = 224
FEW_FRAMES_HINT = (
    "I3D halves time three times and then pools two steps, so a clip needs at least 9 frames; "
    "prepend the context frames to both sides (5 given + 5 predicted = 10) and say so beside the number"
)


def _pad_same(x: torch.Tensor, kernel: Sequence[int], stride: Sequence[int]) -> torch.Tensor:
    """Zero padding of `[B, C, T, H, W]` as TensorFlow's "SAME"; zeros also serve max pools, which follow a ReLU."""
    pads: list[int] = []
    for size, k, s in reversed(list(zip(x.shape[2:], kernel, stride, strict=True))):
        total = max((-(-size // s) - 1) * s + k - size, 0)
        pads += [total // 2, total - total // 2]
    return F.pad(x, pads) if any(pads) else x


def _max_pool(x: torch.Tensor, kernel: Sequence[int], stride: Sequence[int]) -> torch.Tensor:
    return F.max_pool3d(_pad_same(x, kernel, stride), tuple(kernel), tuple(stride))


class Unit(nn.Conv3d):
    """Convolution with "SAME" padding, then ReLU (the batch norm is folded into it)."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int = 1, stride: int = 1):
        super().__init__(in_channels, out_channels, kernel, stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`[B, C, T, H, W]` to `[B, C', T', H', W']`, sizes divided by the stride and rounded up."""
        x = _pad_same(x, self.kernel_size, self.stride)
        return F.conv3d(x, self.weight, self.bias, self.stride).relu_()


class Mixed(nn.Module):
    """
    An inception block: four branches side by side.

    Args:
        in_channels: channels in.
        widths: channels of the six units, in the order of the original.
    """

    def __init__(self, in_channels: int, widths: Sequence[int]):
        super().__init__()
        w0, w1a, w1b, w2a, w2b, w3 = widths
        self.branch_0 = Unit(in_channels, w0)
        self.branch_1 = nn.Sequential(Unit(in_channels, w1a), Unit(w1a, w1b, 3))
        self.branch_2 = nn.Sequential(Unit(in_channels, w2a), Unit(w2a, w2b, 3))
        self.branch_3 = Unit(in_channels, w3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`[B, C, T, H, W]` to `[B, C', T, H, W]`."""
        pooled = _max_pool(x, (3, 3, 3), (1, 1, 1))
        return torch.cat([self.branch_0(x), self.branch_1(x), self.branch_2(x), self.branch_3(pooled)], dim=1)


class I3D(nn.Module):
    """
    Inception-v1 inflated to three dimensions; 400 logits, averaged over time.

    `I3D.from_pretrained()` has the real weights; the constructor alone leaves random ones.
    """

    def __init__(self) -> None:
        super().__init__()
        self.conv3d_1a = Unit(3, 64, 7, 2)
        self.conv3d_2b = Unit(64, 64)
        self.conv3d_2c = Unit(64, 192, 3)
        self.mixed_3b = Mixed(192, (64, 96, 128, 16, 32, 32))
        self.mixed_3c = Mixed(256, (128, 128, 192, 32, 96, 64))
        self.mixed_4b = Mixed(480, (192, 96, 208, 16, 48, 64))
        self.mixed_4c = Mixed(512, (160, 112, 224, 24, 64, 64))
        self.mixed_4d = Mixed(512, (128, 128, 256, 24, 64, 64))
        self.mixed_4e = Mixed(512, (112, 144, 288, 32, 64, 64))
        self.mixed_4f = Mixed(528, (256, 160, 320, 32, 128, 128))
        self.mixed_5b = Mixed(832, (256, 160, 320, 32, 128, 128))
        self.mixed_5c = Mixed(832, (384, 192, 384, 48, 128, 128))
        self.logits = nn.Conv3d(1024, NUM_LOGITS, 1)

    @classmethod
    def from_pretrained(
        cls, path: str | os.PathLike[str] | None = None, device: torch.device | str = "cpu", progress: bool = True
    ) -> "I3D":
        """
        The network with its Kinetics-400 weights, in evaluation mode; arguments and errors as in `weights.resolve`.

        Args:
            path: where the weights are; found or fetched by default.
            device: where the network goes.
            progress: whether a download shows a progress bar.
        """
        with torch.device("meta"):
            network = cls()
        network.load_state_dict(load("i3d", path, progress=progress), assign=True)
        # nn.Module.to takes memory_format (twice as fast on a CPU here); its stubs do not say so.
        network.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
        return network.requires_grad_(False).eval().to(device)

    def forward(self, video: torch.Tensor, batch_size: int = 4) -> torch.Tensor:
        """
        The logits of videos.

        Grey is repeated to three channels, frames are resized to 224×224 (bilinear, half-pixel centres, no
        anti-aliasing) and moved to [-1, 1].

        Args:
            video: `[N, F, C, H, W]` in [0, 1], C 1 or 3, F at least 9.
            batch_size: clips that go through the network at once; memory grows with it and not with N.

        Returns:
            `[N, 400]`, computed in float32 (TF32 is switched off), on the network's device.

        Raises:
            ValueError: if the shape, the range or the number of frames is wrong.
        """
        video = check_i3d_video("video", video)
        if batch_size < 1:
            raise ValueError(f"`batch_size` must be at least 1, got {batch_size}")
        with torch.inference_mode(), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            return torch.cat([self._logits(clips) for clips in video.split(batch_size)])

    def _logits(self, clips: torch.Tensor) -> torch.Tensor:
        weight = self.conv3d_1a.weight
        n = clips.shape[0]
        frames = rearrange(clips.to(weight.device, weight.dtype), "n f c h w -> (n f) c h w")
        frames = F.interpolate(frames, (FRAME_SIZE, FRAME_SIZE), mode="bilinear", align_corners=False)
        x = rearrange(2.0 * frames - 1.0, "(n f) c h w -> n c f h w", n=n)
        x = _max_pool(self._stem(x), (1, 3, 3), (1, 2, 2))
        x = _max_pool(self.conv3d_2c(self.conv3d_2b(x)), (1, 3, 3), (1, 2, 2))
        x = _max_pool(self.mixed_3c(self.mixed_3b(x)), (3, 3, 3), (2, 2, 2))
        for block in (self.mixed_4b, self.mixed_4c, self.mixed_4d, self.mixed_4e, self.mixed_4f):
            x = block(x)
        x = self.mixed_5c(self.mixed_5b(_max_pool(x, (2, 2, 2), (2, 2, 2))))
        return self.logits(F.avg_pool3d(x, (2, 7, 7), stride=1)).mean(dim=(2, 3, 4))

    def _stem(self, x: torch.Tensor) -> torch.Tensor:
        """The first unit. On grey, three equal channels under one kernel are one channel under the kernel's sum."""
        unit = self.conv3d_1a
        weight = unit.weight if x.shape[1] == 3 else unit.weight.sum(dim=1, keepdim=True)
        return F.conv3d(_pad_same(x, unit.kernel_size, unit.stride), weight, unit.bias, unit.stride).relu_()


def check_i3d_video(name: str, video: torch.Tensor) -> torch.Tensor:
    """
    Checks a batch that goes to I3D; needs no network.

    Raises:
        ValueError: as `check_video`, and with a hint where there are fewer than 9 frames.
    """
    video = check_video(name, video)
    if video.shape[1] < MIN_FRAMES:
        raise ValueError(f"`{name}` has {video.shape[1]} frames. {FEW_FRAMES_HINT}")
    return video
