"""A pipeline as ONNX, for runtimes without PyTorch: networks as graphs, the sampler as a table of numbers.

`export_onnx` writes `unet.onnx` and, where the model reads text, `text_encoder.onnx`, each with any batch, any number
of frames and of tokens, and `sampler.json`: for each number of network calls the timesteps, α, σ and λ of a multistep
solver (Lu et al. 2022, "DPM-Solver++", 2M), so that a loop of a dozen lines in any language makes the same clips.
Weights are stored in half precision and used in single precision.
"""

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from video_diffusion.model.guidance import guidance_embedding, has_frame_times, reads_guidance

if TYPE_CHECKING:
    from video_diffusion.model.pipeline import VideoDiffusionPipeline

OPSET = 20
CALLS = (1, 2, 4, 6, 8, 12, 16, 20, 32, 50)
LARGE = 1024  # numbers from which on a tensor of weights is stored in half precision


class Denoiser(nn.Module):
    """The denoiser's call with positions in the place of names.

    Args:
        unet: the network.
        names: of the inputs, in their order.
    """

    def __init__(self, unet: nn.Module, names: Sequence[str]) -> None:
        super().__init__()
        self.unet, self.names = unet, names

    def forward(self, *inputs: Tensor) -> Tensor:
        """`[B, C, F, H, W]`, `[B]` and what else the network reads; see `export_onnx`."""
        options = dict(zip(self.names, inputs, strict=True))
        if "guidance_scale" in options:
            width: int = self.unet.config.time_cond_proj_dim  # type: ignore[union-attr, assignment]
            options["timestep_cond"] = guidance_embedding(options.pop("guidance_scale"), width)
        return self.unet(**options, return_dict=False)[0]


class TextEncoder(nn.Module):
    """The text encoder's states, by position."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """`[B, L]` token numbers and their mask → `[B, L, D]`."""
        return self.encoder(input_ids, attention_mask=attention_mask).last_hidden_state


def export_onnx(
    pipeline: "VideoDiffusionPipeline", out: str | os.PathLike[str], calls: Sequence[int] = CALLS
) -> dict[str, Path]:
    """Writes the networks of a pipeline as ONNX graphs and its sampler as a table.

    The inputs of `unet.onnx` are `sample` `[B, C, F, H, W]`, `timestep` `[B]`, for a network that reads text
    `encoder_hidden_states` `[B, L, D]` and `attention_mask` `[B, L]`, and for one that was distilled with its guidance
    `guidance_scale` `[B]`.

    Args:
        pipeline: without a VAE, its scheduler a `VPContinuousScheduler`.
        out: the folder to write into; made where it is missing.
        calls: for how many network calls the table has a row.

    Returns:
        the files by name.

    Raises:
        ImportError: where onnx or onnxscript is missing.
        ValueError: where the pipeline has a VAE or another scheduler, or `calls` holds what is no number of calls.
    """
    check_exportable(pipeline, calls)
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    unet, config = pipeline.unet, pipeline.unet.config
    frames, width = max(config.get("num_frames") or 2, 2), config.get("cross_attention_dim")
    size = config.sample_size
    height, across = (size, size) if isinstance(size, int) else size
    dynamic = torch.export.Dim.DYNAMIC
    clips = torch.zeros(2, config.in_channels, frames, height, across)
    inputs: tuple[Tensor, ...] = (clips, torch.tensor([300.0, 700.0]))
    names, shapes = ["sample", "timestep"], [{0: dynamic, 2: dynamic}, {0: dynamic}]
    if width is not None:
        inputs = (*inputs, torch.zeros(2, 4, width), torch.ones(2, 4, dtype=torch.bool))
        names += ["encoder_hidden_states", "attention_mask"]
        shapes += [{0: dynamic, 1: dynamic}, {0: dynamic, 1: dynamic}]
    if reads_guidance(unet):
        inputs = (*inputs, torch.tensor([1.0, 4.0]))
        names += ["guidance_scale"]
        shapes += [{0: dynamic}]
    files = {"unet": out / "unet.onnx"}
    _write(Denoiser(unet, names), inputs, names, (tuple(shapes),), "out_sample", files["unet"])
    if pipeline.text_encoder is not None:
        files["text_encoder"] = out / "text_encoder.onnx"
        tokens = (torch.ones(2, 4, dtype=torch.long), torch.ones(2, 4, dtype=torch.long))
        both = ({0: dynamic, 1: dynamic}, {0: dynamic, 1: dynamic})
        _write(
            TextEncoder(pipeline.text_encoder),
            tokens,
            ["input_ids", "attention_mask"],
            both,
            "states",
            files["text_encoder"],
        )
    files["sampler"] = out / "sampler.json"
    files["sampler"].write_text(json.dumps(sampler_table(pipeline, calls), indent=1) + "\n", encoding="utf-8")
    return files


def check_exportable(pipeline: "VideoDiffusionPipeline", calls: Sequence[int]) -> None:
    """Refuses what `export_onnx` could not write, with its errors."""
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ImportError("ONNX export needs onnx and onnxscript: pip install 'video-diffusion[onnx]'.") from error
    if pipeline.vae is not None:
        raise ValueError("`pipeline` has a VAE, expected one whose diffusion runs in pixels.")
    if not hasattr(pipeline.scheduler, "as_diffusers"):
        name = type(pipeline.scheduler).__name__
        raise ValueError(f"`pipeline.scheduler` is a {name}, expected a VPContinuousScheduler.")
    if has_frame_times(pipeline.unet.config):
        raise ValueError("`pipeline.unet` has a time for each frame, expected one for a clip.")
    if not calls or any(isinstance(n, bool) or not isinstance(n, int) or n < 1 for n in calls):
        raise ValueError(f"`calls` is {list(calls)}, expected integers of at least 1.")


def sampler_table(pipeline: "VideoDiffusionPipeline", calls: Sequence[int] = CALLS) -> dict[str, Any]:
    """The rows of DPM-Solver++ 2M on the model's schedule, and what a loop must know beside them.

    Returns:
        `solver_order`: 2, or 1 for a model whose scheduler is `deterministic`: then the loop leaves the last x̂ out,
        which makes it DDIM's; `reads_guidance`: whether the scale of guidance is an input; `prediction_type`,
        `clip_sample` (whether x̂ is held in [-1, 1]), the shape of a clip, and `steps`: for each number of calls n its
        `timesteps` and, at these and at the end, n + 1 `alpha`, `sigma` and `logsnr_half` (λ/2 = log α/σ, null at the
        end, where it is infinite). `free_steps` has the same for clips without given frames, where the model's
        `logsnr_spacing` places their steps.
    """
    scheduler, config = pipeline.scheduler, pipeline.unet.config
    rows = {str(n): _rows(scheduler, n, pipeline.generation_config) for n in calls}
    free = {n: row for n, (_, row) in rows.items() if row is not None}
    return {
        "solver_order": 1 if scheduler.config.deterministic else 2,
        "reads_guidance": reads_guidance(pipeline.unet),
        "prediction_type": scheduler.config.prediction_type,
        "clip_sample": bool(scheduler.config.clip_sample),
        "in_channels": config.in_channels,
        "out_channels": config.out_channels,
        "num_frames": config.get("num_frames"),
        "sample_size": config.sample_size,
        "steps": {n: row for n, (row, _) in rows.items()},
        **({"free_steps": free} if free else {}),
    }


def _rows(
    scheduler: Any, calls: int, config: Mapping[str, Any]
) -> tuple[dict[str, list[Any]], dict[str, list[Any]] | None]:
    """The numbers of a loop of so many calls where frames are given, and where none are, if these are others."""
    from diffusers import DPMSolverMultistepScheduler

    from video_diffusion.model.steps import usual_timesteps

    solver = scheduler if scheduler.config.deterministic else scheduler.as_diffusers(DPMSolverMultistepScheduler)
    places, free = usual_timesteps(config, solver, calls)
    return _row(solver, calls, places), None if free is None else _row(solver, calls, free)


def _row(solver: Any, calls: int, places: list[float] | None) -> dict[str, list[Any]]:
    """The numbers of a loop at these timesteps, by default the solver's own."""
    if hasattr(solver, "as_diffusers"):  # distilled: k/n, where its network was trained
        scale = solver.config.num_train_timesteps
        timesteps = places or [scale * (1 - i / calls) for i in range(calls)]
        half = [solver.logsnr(torch.tensor(t / scale, dtype=torch.float64)).item() / 2 for t in timesteps]
    else:
        solver.set_timesteps(calls if places is None else None, timesteps=places)
        half = [-math.log(s) for s in solver.sigmas.tolist()[:-1]]  # σ/α, as diffusers keeps them
        timesteps = solver.timesteps.tolist()
    return {
        "timesteps": [float(t) for t in timesteps],
        "alpha": [*(1 / math.sqrt(1 + math.exp(-2 * h)) for h in half), 1.0],
        "sigma": [*(1 / math.sqrt(1 + math.exp(2 * h)) for h in half), 0.0],
        "logsnr_half": [*half, None],
    }


def _write(
    module: nn.Module, inputs: tuple[Tensor, ...], names: list[str], shapes: tuple[Any, ...], output: str, file: Path
) -> None:
    """One graph, with its large weights in half precision."""
    import onnx

    module = module.eval()
    kept = [(p, p.requires_grad) for p in module.parameters()]
    dtype = next(module.parameters()).dtype
    try:
        for parameter, _ in kept:
            parameter.requires_grad_(False)
        nn.Module.to(module, torch.float32)
        captured = torch.export.export(module, inputs, dynamic_shapes=shapes, strict=False)
        program: Any = torch.onnx.export(
            captured,
            dynamo=True,
            input_names=names,
            output_names=[output],
            opset_version=OPSET,
            verbose=False,
        )
    finally:
        nn.Module.to(module, dtype)
        for parameter, needed in kept:
            parameter.requires_grad_(needed)
    graph = program.model_proto
    _halve(graph)
    told = (graph.graph.node, graph.graph.initializer, graph.graph.value_info)
    for part in (graph, graph.graph, *(item for items in told for item in items)):
        del part.metadata_props[:]  # lines of code with their folders: a tenth of the file
    onnx.save(graph, str(file))


def _halve(model: Any) -> None:
    """Stores large weights as float16; a cast in the graph gives them back as float32."""
    from onnx import TensorProto, helper, numpy_helper

    graph, casts = model.graph, []
    for tensor in graph.initializer:
        if tensor.data_type == TensorProto.FLOAT and np.prod(tensor.dims, dtype=int) >= LARGE:
            name = tensor.name
            half = numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float16), f"{name}.half")
            tensor.CopyFrom(half)
            casts.append(helper.make_node("Cast", [f"{name}.half"], [name], to=TensorProto.FLOAT))
    nodes = [*casts, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)
