"""
The denoisers that are compared: ours and two others at equal parameters, all called as `model(sample, timestep)`.

* `ours`: the layout of the embedded checkpoints, narrower and with six transformer blocks in the place of eight,
  without text and channels for given frames.
* `diffusers`: `UNet3DConditionModel` with three levels and attention at its coarsest, 16×16, only, narrow at full
  resolution, where its time goes. Its own pattern, attention at 64×64 too, is ten times slower again. The class
  insists on text, so it gets one zero token.
* `lucidrains`: `Unet3D` of `video-diffusion-pytorch`, its own four levels and defaults, as wide as the parameters
  allow. Four levels put more of them at coarse resolution and make it faster than three.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from video_diffusion import VideoUNet3DConditionModel

TEXT_WIDTH = 32
NAMES = ("ours", "diffusers", "lucidrains")
LUCIDRAINS_ADVICE = (
    "lucidrains' Unet3D is not installed: pip install -c constraints.txt '.[bench]' and then "
    "pip install -c constraints.txt --no-deps video-diffusion-pytorch"
)


class Denoiser(nn.Module):
    """A peer behind our call: a sample `[B, 1, F, H, W]` and timesteps `[B]` in; `.sample`, the same shape, out."""

    def __init__(self, network: nn.Module, name: str) -> None:
        super().__init__()
        self.network, self.name = network, name

    def forward(self, sample: Tensor, timestep: Tensor) -> Any:
        """One forward pass."""
        if self.name == "lucidrains":
            return SimpleNamespace(sample=self.network(sample, timestep))
        if self.name == "diffusers":
            return self.network(sample, timestep, sample.new_zeros(len(sample), 1, TEXT_WIDTH))
        return self.network(sample, timestep)


def make(name: str) -> Denoiser:
    """
    One of `NAMES`, untrained.

    Raises:
        ImportError: if the peer is not installed, saying how to.
    """
    builders = {"ours": _ours, "diffusers": _diffusers, "lucidrains": _lucidrains}
    return Denoiser(builders[name](), name)


def available() -> tuple[list[str], list[str]]:
    """The names of the peers that can be made here, and what is to be said about them."""
    try:
        _lucidrains_class()
    except ImportError:
        return list(NAMES[:2]), [LUCIDRAINS_ADVICE]
    return list(NAMES), [] if _torchvision_loads() else [
        "torchvision does not load here; Unet3D uses it only to read and write GIFs, so a stub stands in its place "
        "while it is imported"
    ]


def parameters(model: nn.Module) -> int:
    """How many numbers are learned."""
    return sum(p.numel() for p in model.parameters())


def _ours() -> nn.Module:
    return VideoUNet3DConditionModel(
        in_channels=1,
        patch_size=4,
        block_out_channels=(128, 256),
        layers_per_block=(2, 0),
        attention_head_dim=64,
        temporal_shift=0.25,
        spatial_attention=False,
        temporal_attention=False,
        transformer_layers=6,
    )


def _diffusers() -> nn.Module:
    from diffusers import UNet3DConditionModel

    blocks = ("DownBlock3D", "DownBlock3D", "CrossAttnDownBlock3D")
    return UNet3DConditionModel(
        sample_size=64,
        in_channels=1,
        out_channels=1,
        down_block_types=blocks,
        up_block_types=tuple(name.replace("Down", "Up") for name in reversed(blocks)),
        block_out_channels=(32, 128, 128),
        layers_per_block=1,
        cross_attention_dim=TEXT_WIDTH,
        attention_head_dim=4,  # a head count, in this class
    )


def _lucidrains() -> nn.Module:
    return _lucidrains_class()(dim=28, channels=1)


def _lucidrains_class() -> Any:
    import diffusers  # noqa: F401  before the stub: it looks whether there is a torchvision

    with torchvision_or_stub():
        from video_diffusion_pytorch import Unet3D
    return Unet3D


def _torchvision_loads() -> bool:
    try:
        import torchvision  # noqa: F401
    except (ImportError, RuntimeError):  # RuntimeError: built for another torch
        return False
    return True


@contextmanager
def torchvision_or_stub() -> Iterator[None]:
    """Puts modules with torchvision's names in its place, where it cannot load, and takes them away again."""
    if _torchvision_loads():
        yield
        return
    names = ("torchvision", "torchvision.transforms", "torchvision.utils")
    stubs = {name: ModuleType(name) for name in names}
    stubs["torchvision"].transforms = stubs["torchvision.transforms"]  # type: ignore[attr-defined]
    stubs["torchvision"].utils = stubs["torchvision.utils"]  # type: ignore[attr-defined]
    for name in ("ToTensor", "ToPILImage"):  # default arguments: called when the module is read
        setattr(stubs["torchvision.transforms"], name, lambda: None)
    sys.modules.update(stubs)
    try:
        yield
    finally:
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]


def clips(batch: int, frames: int, size: int, device: str) -> tuple[Tensor, Tensor]:
    """Noise for a pass: a sample `[B, 1, F, H, W]` and timesteps `[B]`."""
    generator = torch.Generator().manual_seed(0)
    sample = torch.randn(batch, 1, frames, size, size, generator=generator)
    return sample.to(device), torch.linspace(1, 999, batch).to(device)
