"""
Times and sizes of three denoisers at equal parameters (see `benchmarks.peers`): what a pass costs and how that grows.

    python -m benchmarks.denoiser [--quick]

`forward` is a pass without gradient; `training_step` is forward, backward and (fused) AdamW. Both in float32 on noise.
Ratios are of clips per second, ours over theirs. `exponents` are p of seconds ∝ frames^p at 64×64 and of seconds ∝
pixels^p at 10 frames, forward. `flops` counts the matrix products and convolutions of one forward pass of one clip,
two for each multiplication and addition. `memory` is what one training step adds to the resident memory of a process
that holds the model and AdamW's state.
"""

import argparse
import json
from collections.abc import Callable
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.measure import (
    Options,
    add_options,
    clock,
    exponent,
    in_process,
    interleaved,
    options_of,
    part_main,
    peak_mb,
    rounded,
    spread,
    words_of,
)
from benchmarks.peers import Denoiser, available, clips, make, parameters

Case = tuple[str, int, int, int]  # kind, clips, frames, pixels of a side
FORWARD: list[Case] = [
    ("forward", 1, 5, 64),
    ("forward", 1, 10, 64),
    ("forward", 1, 20, 64),
    ("forward", 1, 10, 32),
    ("forward", 1, 10, 48),
]
TRAINING: list[Case] = [("training_step", 2, 10, 64), ("training_step", 4, 10, 32)]
QUICK: list[Case] = [("forward", 2, 5, 32), ("training_step", 2, 5, 32)]
MEMORY = (1, 10, 64)


def build_run(model: Denoiser, optimizer: torch.optim.Optimizer, case: Case, device: str) -> Callable[[], None]:
    """One forward pass or one training step of a model on fixed clips."""
    kind, *shape = case
    sample, timestep = clips(*shape, device)

    @torch.no_grad()
    def forward() -> None:
        model(sample, timestep)

    def training_step() -> None:
        (model(sample, timestep).sample - sample).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    return {"forward": forward, "training_step": training_step}[kind]


def throughput(models: dict[str, Denoiser], cases: list[Case], options: Options) -> list[dict[str, Any]]:
    """Clips per second of each model in each case, and the ratios of ours to the others."""
    optimizers = {name: torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True) for name, model in models.items()}
    for name, model in models.items():  # once for all cases: libraries set themselves up, AdamW makes its state
        build_run(model, optimizers[name], ("training_step", 1, 2, 32), options.device)()
    rows = []
    for case in cases:
        kind, batch, frames, size = case
        runs = {name: build_run(model, optimizers[name], case, options.device) for name, model in models.items()}
        seconds = interleaved(runs, options.repeats, clock(options), warm_up=options.quick)
        rates = {name: spread([batch / value for value in values]) for name, values in seconds.items()}
        row = {"kind": kind, "batch_size": batch, "num_frames": frames, "image_size": size, "clips_per_second": rates}
        row["ratios"] = {
            name: rounded(rates["ours"]["median"] / rate["median"], 3)
            for name, rate in rates.items()
            if name != "ours"
        }
        rows.append(row)
    return rows


def exponents(rows: list[dict[str, Any]], names: list[str]) -> dict[str, dict[str, float]]:
    """How the seconds of a forward pass of one clip grow with frames and with pixels."""
    passes = [row for row in rows if (row["kind"], row["batch_size"]) == ("forward", 1)]
    found: dict[str, dict[str, float]] = {"frames": {}, "pixels": {}}
    for name in names:
        for axis, chosen in (
            ("frames", [(row["num_frames"], row) for row in passes if row["image_size"] == 64]),
            ("pixels", [(row["image_size"] ** 2, row) for row in passes if row["num_frames"] == 10]),
        ):
            costs = [1 / row["clips_per_second"][name]["median"] for _, row in chosen]
            found[axis][name] = exponent([size for size, _ in chosen], costs)
    return found


@torch.no_grad()
def flops(model: Denoiser, frames: int, size: int, device: str) -> int:
    """Of one forward pass of one clip."""
    with FlopCounterMode(display=False) as counter:
        model(*clips(1, frames, size, device))
    return counter.get_total_flops()


def memory(name: str, options: Options) -> dict[str, float]:
    """MB that a training step adds in this process, once a small one has set up the libraries and AdamW's state."""
    model = make(name).to(options.device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    build_run(model, optimizer, ("training_step", 1, 2, 32), options.device)()
    run = build_run(model, optimizer, ("training_step", *MEMORY), options.device)
    if options.device == "cuda":
        loaded = torch.cuda.memory_allocated() / 2**20
        torch.cuda.reset_peak_memory_stats()
        run()
        peak = torch.cuda.max_memory_allocated() / 2**20
    else:
        loaded = peak_mb()
        run()
        peak = peak_mb()
    return {"loaded_mb": rounded(loaded), "peak_mb": rounded(peak), "added_mb": rounded(peak - loaded)}


def run(options: Options) -> dict[str, Any]:
    """All of it."""
    names, notes = available()
    models = {name: make(name).to(options.device) for name in names}
    sizes = {name: parameters(model) for name, model in models.items()}
    if max(sizes.values()) / min(sizes.values()) > 1.1:
        raise ValueError(f"the models have {sizes} parameters, expected equal numbers to 10 %.")
    report: dict[str, Any] = {"parameters": sizes, "notes": notes}
    if options.quick:
        return report | {"rows": throughput(models, QUICK, options)}
    report["flops"] = {name: flops(model, 10, 64, options.device) for name, model in models.items()}
    report["rows"] = throughput(models, FORWARD + TRAINING, options)
    report["exponents"] = exponents(report["rows"], names)
    report["memory"] = {
        name: in_process("benchmarks.denoiser", "--memory", name, *words_of(options)) for name in names
    }
    return report


def main() -> None:
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--memory", help="the peak of this one, in this process")
    add_options(parser)
    args, _ = parser.parse_known_args()
    if args.memory is None:
        part_main(run, __doc__)
    else:
        torch.set_num_threads(args.threads)
        print(json.dumps(memory(args.memory, options_of(args))))


if __name__ == "__main__":
    main()
