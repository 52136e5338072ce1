"""
Turns the weights of the reference trial into a pipeline folder: the record of where the released weights came from.

    python training/convert_reference.py classic.safetensors OUT --num_frames 20
    python training/convert_reference.py stochastic.safetensors OUT --num_frames 15 --variant stochastic

The file holds the network under `net.` and the BERT that reads captions under `bert.`, in float16. The network is
written in float16 and loads in float32 where no `dtype` is given; transformers would load a float16 file as float16,
so the small text encoder is written in float32, with the same values. The trial's network is
`VideoUNet3DConditionModel` with the config below and other names of the weights.
"""

import argparse
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import BertConfig, BertModel, BertTokenizer

from video_diffusion import VideoDiffusionPipeline, VideoUNet3DConditionModel, VPContinuousScheduler
from video_diffusion.hub.folder import export_folder

BASE = Path(__file__).parents[1] / "pipelines" / "moving-mnist"
NETWORK = {
    "sample_size": 64,
    "in_channels": 3,
    "out_channels": 1,
    "patch_size": 4,
    "block_out_channels": (128, 384),
    "layers_per_block": (2, 0),
    "attention_head_dim": 64,
    "cross_attention_dim": 128,
    "temporal_shift": 0.25,
    "spatial_attention": False,
    "temporal_attention": False,
    "transformer_layers": 8,
}
SCHEDULER = {
    "schedule": "cosine",
    "shift": 2.0,
    "logsnr_min": -20.0,
    "logsnr_max": 20.0,
    "prediction_type": "sample",
}
GENERATION = {  # what measured best at 20 network calls (docs/results.md)
    "sampler": "dpm++",
    "num_inference_steps": 20,
    "guidance_scale": 4.0,
    "history_guidance_scale": 1.0,
}
RENAMED = (  # the beginnings of names there and here; the first that fits counts
    ("time_embedding.0.", "time_embedding.linear_1."),
    ("time_embedding.2.", "time_embedding.linear_2."),
    ("down.", "down_blocks.0."),
    ("up.", "up_blocks.1."),
    ("downsample.", "downsamplers.0."),
    ("upsample.", "upsamplers.0."),
    ("blocks.", "mid_block.transformer_blocks."),
    ("adaln.", "mid_block.adaln_single."),
    ("norm_out.", "mid_block.norm_out."),
    ("pos_embed", "mid_block.pos_embed"),
)


ORIGIN = (
    "The weights were not made by this package's own training loop but by a trial with a loop of its own, on the same "
    "clips, captions and digits: 580 s on one NVIDIA H200, bf16, {clips}. The network is the same; "
    "`training/convert_reference.py` renamed the weights, and `training/LOG.md` tells the whole story. The package's "
    "presets repeat the recipe; they have not been run on a GPU yet."
)
CLIPS = {
    "classic": "418 thousand clips",
    "stochastic": "418 thousand clips of the classic variant before the cool-down, then 20 thousand stochastic ones",
}
RECIPE = {  # of the trial, by the names of this package's arguments
    "num_digits": 2,
    "num_frames": 20,
    "image_size": 64,
    "num_images": 0,
    "mask_probabilities": [0.25, 0.45, 0.15, 0.15],
    "text_encoder": "small-bert",
    "caption_dropout": 0.15,
    "weighting": "clipped_v_prediction",
    "optimizer": "muon",
    "learning_rate": 0.003,
    "weight_decay": 0.01,
    "max_grad_norm": 1.0,
    "ema_decay": 0.998,
    "mixed_precision": "bf16",
}


def renamed(name: str) -> str:
    """The name in `VideoUNet3DConditionModel` of a weight of the trial's network (without `net.`)."""
    for there, here in RENAMED:
        if name.startswith(there):
            name = here + name.removeprefix(there)
            break
    parts = name.split(".")
    if parts[0] in ("down_blocks", "up_blocks"):
        parts.insert(3, "resnet")
    return ".".join(parts).replace("ff.proj.", "ff.net.0.proj.").replace("ff.out.", "ff.net.2.")


def load_exactly(model: nn.Module, weights: Mapping[str, Tensor], source: str) -> None:
    """Puts the weights into the model.

    Args:
        model: gets them, in its own precision.
        weights: by the model's names.
        source: where they come from, for the error.

    Raises:
        ValueError: where a weight is missing, has another shape, or is none of the model's.
    """
    own = model.state_dict()
    for name in sorted(own.keys() | weights.keys()):
        came, expected = (_shape(name, tensors) for tensors in (weights, own))
        if came != expected:
            raise ValueError(f"{source} has {came} for the weight {name!r}, expected {expected}: another layout.")
    model.load_state_dict(dict(weights))


def _shape(name: str, tensors: Mapping[str, Tensor]) -> str:
    return f"shape {tuple(tensors[name].shape)}" if name in tensors else "nothing"


def convert(reference: Path, base: Path, num_frames: int) -> VideoDiffusionPipeline:
    """The reference weights as a pipeline, its network in float16.

    Args:
        reference: a .safetensors file of the trial.
        base: a pipeline's folder, for the tokenizer and the text encoder's config.
        num_frames: frames that the pipeline makes by default.

    Raises:
        ValueError: where the weights are of another layout.
    """
    weights = load_file(reference)
    parts: dict[str, dict[str, Tensor]] = {"net": {}, "bert": {}}
    for name, value in weights.items():
        part, _, rest = name.partition(".")
        if part not in parts:
            raise ValueError(f"{reference} has the weight {name!r}, expected names that begin with 'net.' or 'bert.'.")
        parts[part][rest if part == "bert" else renamed(rest)] = value
    unet = VideoUNet3DConditionModel(**NETWORK, num_frames=num_frames)
    text_encoder: Any = BertModel(BertConfig.from_pretrained(base / "text_encoder"))
    load_exactly(unet, parts["net"], str(reference))
    load_exactly(text_encoder, parts["bert"], str(reference))
    nn.Module.to(unet, torch.float16)  # diffusers' own one warns
    tokenizer = BertTokenizer.from_pretrained(base / "tokenizer")
    scheduler = VPContinuousScheduler(**SCHEDULER)
    pipeline = VideoDiffusionPipeline(unet, scheduler, text_encoder=text_encoder, tokenizer=tokenizer)
    pipeline.generation_config = dict(GENERATION)
    return pipeline


def main(words: Iterable[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("reference", type=Path, help="weights of the trial, .safetensors")
    parser.add_argument("out", type=Path, help="folder to write")
    parser.add_argument("--num_frames", type=int, required=True, help="frames that the pipeline makes by default")
    parser.add_argument("--variant", choices=CLIPS, default="classic", help="of Moving MNIST that it was trained on")
    parser.add_argument("--base", type=Path, default=BASE, help="pipeline with the tokenizer and the encoder's config")
    parser.add_argument("--link", action="store_true", help="link code files to this package, as in pipelines/")
    args = parser.parse_args(None if words is None else list(words))
    pipeline = convert(args.reference, args.base, args.num_frames)
    out = export_folder(pipeline, args.out, max_shard_size="42MB", link=args.link)
    run = {"origin": ORIGIN.format(clips=CLIPS[args.variant]), "variant": args.variant, **RECIPE}
    (out / "run.json").write_text(json.dumps(run, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
