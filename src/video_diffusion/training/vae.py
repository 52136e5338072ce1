"""Training of a VAE of diffusers on the clips that a denoiser is trained on: `training/train_vae.py`.

The loss is the mean of |x − x̂|, plus LPIPS and the Kullback-Leibler divergence of the posterior from N(0, 1) by
their weights. Data, loop, average of the weights and checkpoints are those of any training here. At the end the scale
of the latents is measured and stands in the config, so that they have zero mean and unit variance.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from diffusers import AutoencoderKL, AutoencoderKLWan
from einops import rearrange
from torch import Tensor, nn

from video_diffusion.metrics.functional import psnr
from video_diffusion.metrics.lpips import LPIPS, check_lpips_frames
from video_diffusion.model.autoencoding import LatentSpace
from video_diffusion.training.arguments import DataArguments, LoopArguments, check_data, check_loop
from video_diffusion.training.batches import Batch, to_model
from video_diffusion.training.fields import argument, group, one_of, real, text, whole
from video_diffusion.training.flags import flag_parser, resolve
from video_diffusion.training.latents import check_clips
from video_diffusion.training.run import Run
from video_diffusion.training.validation import held_out

CLASSES = ("AutoencoderKL", "AutoencoderKLWan")
LOGVAR = (-30.0, 20.0)  # the bounds of diffusers' posteriors


# ------------------------------------------------------------------------------------------------------ the arguments
@group
class VaeModelArguments:
    """The VAE that is trained."""

    vae_class: str = argument(
        "AutoencoderKLWan",
        "AutoencoderKL: frame by frame; AutoencoderKLWan: over time too.",
        one_of(*CLASSES),
        "agrees",
    )
    spatial_compression: int = argument(8, "Pixels along the edge of a latent.", one_of(2, 4, 8, 16), "agrees")
    temporal_compression: int = argument(
        4, "Frames of a latent frame, behind the first; 1 for AutoencoderKL.", one_of(1, 2, 4, 8), "agrees"
    )
    latent_channels: int = argument(4, "Channels of the latents.", whole(1, 1024), "agrees")
    width: int = argument(
        32, "Channels of the first level; the others have 2 and 4 times as many.", whole(1, 1024), "agrees"
    )
    layers_per_block: int = argument(1, "Residual blocks of a level.", whole(1, 16), "agrees")


@group
class VaeTrainArguments(LoopArguments):
    """The loss, optimisation, checkpoints and reports."""

    output_dir: str = argument("runs/vae", "Where everything is written.", text(), "applies")
    reconstruction: str = argument(
        "l1",
        "Mean of |x − x̂|, l1, or of (x − x̂)², l2, which leaves a plain background earlier.",
        one_of("l1", "l2"),
        "agrees",
    )
    kl_weight: float = argument(1e-6, "Of the divergence, in nats for each value of a clip.", real(0, 100), "agrees")
    lpips_weight: float = argument(0.0, "Of LPIPS, whose weights must be there; 0: none.", real(0, 100), "agrees")

    # What the loop asks of each run, and a VAE has no choice of.
    optimizer, adam_learning_rate, text_encoder_lr_scale = "adamw", None, 1.0
    attention_backend, compile, sample_steps, sample_prompts = None, False, 0, None


GROUPS = (VaeModelArguments, DataArguments, VaeTrainArguments)


def parse_vae(argv: Sequence[str]) -> list[Any]:
    """Resolves the training of a VAE: defaults, then `--config FILE.yaml`, then flags.

    Raises:
        ValueError: if a flag or a key is unknown, a value is not allowed, or two do not fit each other.
    """
    model, data, args = resolve(flag_parser("train_vae", "Trains a VAE.", GROUPS, presets=False), GROUPS, argv)
    check_data(data)
    check_loop(args)
    if model.vae_class == "AutoencoderKL" and model.temporal_compression != 1:
        raise ValueError(
            f"`temporal_compression` is {model.temporal_compression}, expected 1: AutoencoderKL takes frame by frame."
        )
    if model.temporal_compression > model.spatial_compression:
        raise ValueError(
            f"`temporal_compression` is {model.temporal_compression}, expected at most `spatial_compression`, "
            f"{model.spatial_compression}."
        )
    if data.num_images:
        raise ValueError(f"`num_images` is {data.num_images}, expected 0: a VAE is trained on the clips alone.")
    return [model, data, args]


# ------------------------------------------------------------------------------------------------------------ the VAE
def build_vae(model: VaeModelArguments, channels: int) -> Any:
    """An untrained VAE of diffusers for clips of so many channels."""
    halvings = int(math.log2(model.spatial_compression))
    multiples = [min(2**level, 4) for level in range(halvings + 1)]
    if model.vae_class == "AutoencoderKL":
        levels = len(multiples)
        return AutoencoderKL(
            in_channels=channels,
            out_channels=channels,
            latent_channels=model.latent_channels,
            block_out_channels=tuple(model.width * multiple for multiple in multiples),
            down_block_types=("DownEncoderBlock2D",) * levels,
            up_block_types=("UpDecoderBlock2D",) * levels,
            layers_per_block=model.layers_per_block,
            norm_num_groups=math.gcd(model.width, 32),
            mid_block_add_attention=False,
        )
    in_time = int(math.log2(model.temporal_compression))
    return AutoencoderKLWan(
        base_dim=model.width,
        z_dim=model.latent_channels,
        dim_mult=multiples,
        num_res_blocks=model.layers_per_block,
        temperal_downsample=[level >= halvings - in_time for level in range(halvings)],
        latents_mean=[0.0] * model.latent_channels,
        latents_std=[1.0] * model.latent_channels,
        in_channels=channels,
        out_channels=channels,
        scale_factor_temporal=model.temporal_compression,
        scale_factor_spatial=model.spatial_compression,
    )


class VaeLearner(nn.Module):
    """A VAE as one module for the optimiser and for DDP.

    Args:
        vae: with `latent_dist`, of images or videos.
    """

    def __init__(self, vae: Any) -> None:
        super().__init__()
        self.vae, self.is_video = vae, LatentSpace(vae).is_video

    def forward(self, x: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Clips `[B, C, F, H, W]` decoded from a draw of the posterior; its mean and log variance.

        Args:
            x: in [-1, 1].
            noise: ε of the draw, `[B, c, f, h, w]`.
        """
        batch = len(x)
        if not self.is_video:
            x, noise = (rearrange(value, "b c f h w -> (b f) c h w") for value in (x, noise))
        posterior = self.vae.encode(x).latent_dist
        logvar = posterior.logvar.clamp(*LOGVAR)
        decoded = self.vae.decode(posterior.mean + (0.5 * logvar).exp() * noise).sample
        if not self.is_video:
            decoded = rearrange(decoded, "(b f) c h w -> b c f h w", b=batch)
        return decoded, posterior.mean, logvar


# ----------------------------------------------------------------------------------------------------------- the run
class VaeRun(Run):
    """A training of a VAE.

    Args:
        arguments: of `parse_vae`.

    Raises:
        ValueError: if they do not fit each other, or what they name.
        OSError: if a file that they name is not there, the weights of LPIPS among them.
    """

    name = "train_vae"
    groups = GROUPS
    args: Any

    def open_space(self) -> None:
        """None: this run works on pixels."""

    def open_text(self) -> None:
        """None: a VAE reads no text."""

    def open_model(self) -> Any:
        """The VAE; checks that it and LPIPS can take the clips."""
        vae = build_vae(self.arguments[0], self.data.channels)
        check_clips(LatentSpace(vae), self.data)
        self.lpips: LPIPS | None = None
        if self.args.lpips_weight:
            check_lpips_frames(torch.empty(1, 1, 3, *self.data.height_width), "alex", None)
            self.lpips = LPIPS.from_pretrained(device=self.accelerator.device)
        return vae, None

    def with_text(self, denoiser: nn.Module, encoder: nn.Module | None) -> nn.Module:
        """The VAE as what learns."""
        return VaeLearner(denoiser)

    def loss(self, batch: Batch, index: int) -> tuple[Tensor, Tensor]:
        """The loss and the squared error of pass `index`, each averaged over this process's clips."""
        x = to_model(batch.clips, self.accelerator.device)
        shape = LatentSpace(self.denoiser).shape(*x.shape[2:])
        generator = torch.Generator(x.device).manual_seed((self.args.seed * 0x9E3779B1 + index) % 2**63)
        noise = torch.randn((self.global_batch, *shape), generator=generator, device=x.device)
        first = self.accelerator.process_index * len(x)
        decoded, mean, logvar = self.model(x, noise[first : first + len(x)])
        decoded, mean, logvar = decoded.float(), mean.float(), logvar.float()
        divergence = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).sum() / x.numel()
        difference = decoded - x
        squared = difference.square().mean()
        loss = difference.abs().mean() if self.args.reconstruction == "l1" else squared
        loss = loss + self.args.kl_weight * divergence
        if self.lpips is not None:
            pair = (rearrange(clip, "b c f h w -> (b f) c h w") / 2 + 0.5 for clip in (decoded, x))
            loss = loss + self.args.lpips_weight * self.lpips.distance(*pair).mean()
        return loss, squared.detach()

    def averaged(self) -> Any:
        """A copy of the VAE with the averaged weights."""
        vae = type(self.denoiser).from_config(self.denoiser.config).to(self.accelerator.device).eval()
        self.ema.copy_to(VaeLearner(vae).parameters())
        return vae.requires_grad_(False)

    def result(self) -> Any:
        """The averaged VAE with the scale of its latents, measured on clips, in its config."""
        vae = self.averaged()
        space = LatentSpace(vae)
        latents = space.unscale(torch.cat([space.encode(x, 16) for x in self._clips(self.train_source)]))
        dims = (0, 2, 3, 4)
        if type(vae) is AutoencoderKL:
            mean, std = latents.mean().item(), latents.std().clamp(min=1e-6).item()
            vae.register_to_config(scaling_factor=1 / std, shift_factor=mean)
        else:
            means, deviations = latents.mean(dims), latents.std(dims).clamp(min=1e-6)
            vae.register_to_config(latents_mean=means.tolist(), latents_std=deviations.tolist())
        return vae

    def _clips(self, source: Any) -> Any:
        """Some clips `[B, C, F, H, W]` in [-1, 1] of a source, batch by batch."""
        for clips in held_out(self, self.args.validation_videos, source).split(8):
            yield to_model(clips, self.accelerator.device)


@torch.no_grad()
def measure(run: VaeRun) -> dict[str, float]:
    """PSNR (peak 1, dB) of held-out clips that the averaged VAE has encoded and decoded, mean over frames."""
    space, found = LatentSpace(run.averaged()), []
    for x in run._clips(run.validation_source):
        decoded = space.decode(space.encode(x, 16), 16).clamp(-1, 1)
        ours, theirs = (rearrange(clip, "b c f h w -> b f c h w") / 2 + 0.5 for clip in (decoded, x))
        found.append(psnr(ours, theirs, "none").flatten())
    return {"validation/psnr": torch.cat(found).mean().item()}
