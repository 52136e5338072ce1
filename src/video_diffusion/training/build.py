"""What a run is built of: denoiser and scheduler, saved weights to start from, the optimiser and its schedule."""

from collections.abc import Iterable
from typing import Any, cast

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from diffusers.optimization import get_scheduler
from torch import nn
from torch.distributed.tensor import DTensor

from video_diffusion import VideoDiffusionPipeline, VideoUNet3DConditionModel, VPContinuousScheduler
from video_diffusion.hub.finding import resolve_model
from video_diffusion.model.autoencoding import LatentSpace
from video_diffusion.training.arguments import DataArguments, ModelArguments, TrainArguments

ARCHITECTURE = (
    *("in_channels", "out_channels", "patch_size", "block_out_channels"),
    *("attention_head_dim", "norm_num_groups", "temporal_shift", "spatial_attention", "temporal_attention"),
    *("transformer_layers", "attention_pattern", "cross_attention_every", "frame_timesteps"),
)


def build_model(
    model: ModelArguments, data: DataArguments, text_width: int | None = None, space: LatentSpace | None = None
) -> tuple[VideoUNet3DConditionModel, VPContinuousScheduler]:
    """The denoiser, attending to text states of `text_width` channels and in a VAE's latents if given; the scheduler.

    The scheduler clips x̂ where it is of pixels; latents have no bounds.
    """
    spatial, temporal = tuple(map(bool, model.spatial_attention)), tuple(map(bool, model.temporal_attention))
    depths, clip = tuple(model.layers_per_block), (data.channels, data.num_frames, *data.height_width)
    channels, frames, height, width = clip if space is None else space.shape(*clip[1:])
    denoiser = VideoUNet3DConditionModel(
        sample_size=height if height == width else (height, width),
        num_frames=frames,
        in_channels=channels if model.given_frames == "time" else 2 * channels + 1,
        out_channels=channels,
        patch_size=model.patch_size,
        block_out_channels=tuple(model.block_out_channels),
        layers_per_block=depths[0] if len(depths) == 1 else depths,
        attention_head_dim=model.attention_head_dim,
        norm_num_groups=model.norm_num_groups,
        temporal_shift=model.temporal_shift,
        spatial_attention=spatial[0] if len(spatial) == 1 else spatial,
        temporal_attention=temporal[0] if len(temporal) == 1 else temporal,
        transformer_layers=model.transformer_layers,
        attention_pattern=tuple(model.attention_pattern),
        cross_attention_every=model.cross_attention_every,
        cross_attention_dim=text_width,
        frame_timesteps=model.given_frames == "time",
    )
    scheduler = VPContinuousScheduler(
        schedule=model.schedule,
        logsnr_min=model.logsnr_min,
        logsnr_max=model.logsnr_max,
        shift=model.shift,
        prediction_type=model.prediction_type,
        gamma=model.gamma,
        clip_sample=space is None,
    )
    return denoiser, scheduler


def compile_blocks(denoiser: VideoUNet3DConditionModel, **options: Any) -> None:
    """Compiles each block for its own shapes; `options` are those of `torch.compile`.

    Left to itself, torch compiles the blocks after the first few for any shape; that code is slower, and does not
    compile at all for some attention backends.
    """
    blocks = sum(type(module).__name__ in denoiser._repeated_blocks for module in denoiser.modules())
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, 4 * blocks)
    denoiser.compile_repeated_blocks(dynamic=False, **options)


def load_pretrained(
    denoiser: VideoUNet3DConditionModel, text_encoder: nn.Module | None, scheduler: VPContinuousScheduler, name: str
) -> None:
    """Puts the weights of a saved pipeline into the denoiser and, where both have one, into the text encoder.

    Attention to text that the pipeline lacks starts anew, and so does nothing at first. A deeper denoiser starts as
    the function that the shallower one is (Chen, Goodfellow and Shlens 2016, "Net2Net"): see `deepen`.

    Raises:
        ValueError: if the pipeline's architecture or parametrisation is another, or its levels are deeper.
    """
    pipe = VideoDiffusionPipeline.from_pretrained(resolve_model(name))
    if pipe.unet.config.time_cond_proj_dim is not None:
        raise ValueError(f"`pretrained_model_name_or_path` is {name!r}, a distilled model, expected one to train on.")
    pairs = {key: (denoiser.config[key], pipe.unet.config[key]) for key in ARCHITECTURE}
    pairs["prediction_type"] = (scheduler.config.prediction_type, pipe.scheduler.config.prediction_type)
    for key, (ours, theirs) in pairs.items():
        if str(ours).strip("()[]") != str(theirs).strip("()[]"):  # a saved tuple comes back as a list
            raise ValueError(f"`{key}` is {ours}, expected {theirs}, what {name} was trained with.")
    saved, own = deepen(pipe.unet, denoiser), denoiser.state_dict()
    if pipe.unet.config.cross_attention_dim is None:
        saved |= {key: value for key, value in own.items() if key not in saved}
    for key, value in saved.items():
        if key not in own or own[key].shape != value.shape:
            raise ValueError(
                f"`text_encoder` gives {denoiser.config.cross_attention_dim} channels, expected "
                f"{pipe.unet.config.cross_attention_dim}, what {name} was trained with."
            )
    denoiser.load_state_dict(saved)
    if text_encoder is not None and pipe.text_encoder is not None:
        text_encoder.load_state_dict(pipe.text_encoder.state_dict())


def deepen(shallow: VideoUNet3DConditionModel, deep: VideoUNet3DConditionModel) -> dict[str, torch.Tensor]:
    """The weights that make `deep` compute what `shallow` computes; they differ in `layers_per_block` alone.

    Blocks that are added stand after a level's last block on the way down, and after its first on the way up, where
    they are the identity: a new block's residual branches end in zeros, and its shortcut drops the skip connection.

    Raises:
        ValueError: if a level of `shallow` has more blocks.
    """
    saved, own = shallow.state_dict(), deep.state_dict()
    levels = len(deep.down_blocks)
    weights = {key: value for key, value in saved.items() if not key.startswith(("down_blocks.", "up_blocks."))}
    for level in range(levels):
        up = levels - 1 - level
        few, many = (len(cast(nn.ModuleList, model.down_blocks[level])) for model in (shallow, deep))
        if few > many:
            raise ValueError(f"`layers_per_block` is {many} at level {level}, expected at least {few}.")
        for side, added in ((f"down_blocks.{level}", range(few, many)), (f"up_blocks.{up}", range(1, 1 + many - few))):
            places = [place for place in range(many) if place not in added]
            renamed = {f"{side}.{place}.": f"{side}.{number}." for number, place in enumerate(places)}
            for key, value in own.items():
                prefix = ".".join(key.split(".")[:3]) + "."
                if not prefix.startswith(f"{side}."):
                    continue
                if prefix in renamed:
                    old = renamed[prefix] + key.removeprefix(prefix)
                    weights |= {key: saved[old]} if old in saved else {}
                elif key.endswith("conv_shortcut.weight"):
                    weights[key] = torch.eye(*value.shape[:2])[:, :, None, None]
                else:
                    weights[key] = torch.zeros_like(value) if key.endswith("conv_shortcut.bias") else value
    return weights


def ready_to_shard(learner: nn.Module, accelerator: Accelerator, args: TrainArguments) -> None:
    """What FSDP and DeepSpeed need before `accelerator.prepare`; does nothing in other runs.

    Raises:
        ValueError: if the optimiser needs whole matrices.
    """
    if accelerator.distributed_type not in (DistributedType.FSDP, DistributedType.DEEPSPEED):
        return
    if args.optimizer != "adamw":
        raise ValueError(f"`optimizer` is {args.optimizer!r}, expected adamw where weights are sharded.")
    for parameter in learner.parameters():  # neither takes channels-last weights
        parameter.data = parameter.data.clone(memory_format=torch.contiguous_format)
    if accelerator.distributed_type == DistributedType.DEEPSPEED:  # it clips and steps by itself
        settings = accelerator.state.deepspeed_plugin.deepspeed_config
        settings["train_micro_batch_size_per_gpu"] = args.per_device_batch_size
        settings["gradient_accumulation_steps"] = args.gradient_accumulation_steps
        settings["gradient_clipping"] = args.max_grad_norm


def whole(parameters: Iterable[nn.Parameter]) -> list[torch.Tensor]:
    """The weights, gathered from all processes where FSDP shards them; all processes call it together."""
    return [p.full_tensor() if isinstance(p, DTensor) else p for p in parameters]


def build_lr_scheduler(optimizer: torch.optim.Optimizer, args: TrainArguments) -> Any:
    """One of diffusers' schedules, or the trapezoid: its middle does not depend on `max_steps`, so a run can be made
    longer or shorter while it goes on (Hägele et al. 2024).
    """
    if args.lr_scheduler != "trapezoid":
        return get_scheduler(
            args.lr_scheduler, optimizer, num_warmup_steps=args.warmup_steps, num_training_steps=args.max_steps
        )

    def factor(step: int) -> float:
        up, down = (step + 1) / max(args.warmup_steps, 1), (args.max_steps - step) / args.cooldown_steps
        return max(0.0, min(1.0, up, down))

    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
