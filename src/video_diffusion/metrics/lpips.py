"""
LPIPS (Zhang et al., 2018), version 0.1: AlexNet or VGG16 features under the published linear heads.

A port of the published implementation with the same weights. Its own convolutions are here because torchvision is
not a dependency of this package.
"""

import os
from itertools import pairwise
from typing import Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn

from video_diffusion.metrics.checks import check_choice, check_pair
from video_diffusion.metrics.functional import Reduction, reduce_frames
from video_diffusion.metrics.weights import load

NETS = ("alex", "vgg")
MIN_SIZE = {"alex": 31, "vgg": 16}
_EPSILON = 1e-10
_SHIFT = (-0.030, -0.088, -0.188)
_SCALE = (0.458, 0.448, 0.450)


def _alexnet() -> list[nn.Conv2d]:
    return [
        nn.Conv2d(3, 64, 11, stride=4, padding=2),
        nn.Conv2d(64, 192, 5, padding=2),
        nn.Conv2d(192, 384, 3, padding=1),
        nn.Conv2d(384, 256, 3, padding=1),
        nn.Conv2d(256, 256, 3, padding=1),
    ]


def _vgg16() -> list[nn.Conv2d]:
    widths = [3, 64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512]
    return [nn.Conv2d(i, o, 3, padding=1) for i, o in pairwise(widths)]


# The convolutions, the pool's kernel, the convolutions that a pool precedes, and those whose output counts.
_LAYOUT = {
    "alex": (_alexnet, 3, {1, 2}, (0, 1, 2, 3, 4)),
    "vgg": (_vgg16, 2, {2, 4, 7, 10}, (1, 3, 6, 9, 12)),
}


class LPIPS(nn.Module):
    """
    The perceptual distance of frames; `LPIPS.from_pretrained()` has the real weights.

    d = Σ_l mean over pixels of w_l·(f̂_l(x) − f̂_l(y))², f̂_l the features of layer l, of unit length over channels.

    Args:
        net: "alex" or "vgg".
        resize: side of the square that frames are resized to first (bilinear, half-pixel centres), or `None`.
    """

    def __init__(self, net: Literal["alex", "vgg"] = "alex", resize: int | None = None):
        super().__init__()
        check_lpips_options(net, resize)
        make, self.pool, self.pooled, self.counted = _LAYOUT[net]
        self.net, self.resize = net, resize
        layers = make()
        self.heads = nn.ParameterList(torch.zeros(layers[i].out_channels) for i in self.counted)
        self.convolutions = nn.ModuleList(layers)

    @classmethod
    def from_pretrained(
        cls,
        net: Literal["alex", "vgg"] = "alex",
        resize: int | None = None,
        path: str | os.PathLike[str] | None = None,
        device: torch.device | str = "cpu",
        progress: bool = True,
    ) -> "LPIPS":
        """
        The network with its weights, in evaluation mode.

        Args:
            net: "alex" or "vgg".
            resize: as in the constructor.
            path: where the weights are (`weights.resolve`); found or fetched by default.
            device: where the network goes.
            progress: whether a download shows a progress bar.
        """
        network = cls(net, resize)
        network.load_state_dict(load(f"lpips-{net}", path, progress=progress))
        # nn.Module.to takes memory_format; its stubs do not say so.
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return network.requires_grad_(False).eval().to(device)

    def forward(
        self,
        predictions: torch.Tensor,
        references: torch.Tensor,
        reduction: Reduction = "none",
        batch_size: int = 64,
    ) -> torch.Tensor:
        """
        The distance of each pair of frames; grey is repeated to three channels, values go to [-1, 1].

        Args:
            predictions: `[N, F, C, H, W]` in [0, 1], C 1 or 3.
            references: the same shape and range.
            reduction: "none" `[N, F]`, "clip" `[N]` or "mean".
            batch_size: frames that go through the network at once; memory grows with it and not with N.

        Raises:
            ValueError: if the shapes differ, the frames are too small or have other channels, or a value is NaN or
                outside [0, 1].
        """
        predictions, references = check_pair(predictions, references)
        check_lpips_frames(predictions, self.net, self.resize)
        if batch_size < 1:
            raise ValueError(f"`batch_size` must be at least 1, got {batch_size}")
        with torch.inference_mode(), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            pairs = zip(
                rearrange(predictions, "n f c h w -> (n f) c h w").split(batch_size),
                rearrange(references, "n f c h w -> (n f) c h w").split(batch_size),
                strict=True,
            )
            values = torch.cat([self._distance(x, y) for x, y in pairs])
        return reduce_frames(rearrange(values.double().cpu(), "(n f) -> n f", n=predictions.shape[0]), reduction)

    def distance(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """The distance of each pair of frames `[M, C, H, W]` in [0, 1], with gradients, `[M]`; checks nothing."""
        return self._distance(x, y)

    def _distance(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """`[M, C, H, W]` twice to `[M]`."""
        features = self._features(torch.cat([x, y]))
        distance = torch.zeros(x.shape[0], device=features[0].device)
        for head, feature in zip(self.heads, features, strict=True):
            feature = feature / (feature.square().sum(dim=1, keepdim=True).sqrt() + _EPSILON)
            difference = (feature[: x.shape[0]] - feature[x.shape[0] :]).square()
            distance = distance + torch.einsum("m c h w, c -> m h w", difference, head).mean(dim=(1, 2))
        return distance

    def _features(self, frames: torch.Tensor) -> list[torch.Tensor]:
        """`[M, C, H, W]` in [0, 1] to the outputs of the counted layers."""
        weight = self.heads[0]
        x = frames.to(weight.device, weight.dtype)
        if self.resize is not None:
            x = F.interpolate(x, (self.resize, self.resize), mode="bilinear", align_corners=False)
        shift, scale = (weight.new_tensor(values)[:, None, None] for values in (_SHIFT, _SCALE))
        x = (2.0 * x - 1.0 - shift) / scale
        features = []
        for i, convolution in enumerate(self.convolutions):
            if i in self.pooled:
                x = F.max_pool2d(x, self.pool, stride=2)
            x = F.relu(convolution(x))
            if i in self.counted:
                features.append(x)
        return features


def check_lpips_options(net: str, resize: int | None) -> None:
    """Raises a ValueError unless `net` is known and `resize` is a size that the network can take."""
    check_choice("net", net, NETS)
    if resize is not None and resize < MIN_SIZE[net]:
        raise ValueError(f"`resize` must be None or at least {MIN_SIZE[net]} for {net!r}, got {resize}")


def check_lpips_frames(video: torch.Tensor, net: str, resize: int | None) -> None:
    """Raises a ValueError unless the frames of `video` `[N, F, C, H, W]` fit the network."""
    if resize is None and min(video.shape[-2:]) < MIN_SIZE[net]:
        raise ValueError(
            f"LPIPS with {net!r} needs frames of at least {MIN_SIZE[net]} pixels a side, got "
            f"{video.shape[-2]}×{video.shape[-1]}; pass `resize`"
        )
