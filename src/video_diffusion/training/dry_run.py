"""What a step costs, measured without writing anything."""

import json
import resource
import statistics
import time

import torch
from torch.utils.flop_counter import FlopCounterMode

from video_diffusion.training.batches import passes
from video_diffusion.training.build import whole
from video_diffusion.training.run import Run

STEPS = 3  # that are timed
LOADING = 3.0  # seconds for which the loader is timed


def dry_run(run: Run) -> None:
    """Prints the resolved run and what a step costs, the median of a few; writes nothing."""
    batch, seconds = run.batches[0], []
    for _ in range(1 + STEPS):  # the first compiles and allocates
        start = time.perf_counter()
        run.accelerator.backward(run.loss(batch, 0)[0])
        run.accelerator.clip_grad_norm_(run.model.parameters(), run.args.max_grad_norm)
        run.optimizer.step()
        run.optimizer.zero_grad()
        run.ema.step(whole(run.learned(run.learner)))
        if run.accelerator.device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    median = statistics.median(seconds[1:])
    with FlopCounterMode(display=False) as flops:  # last: what is first called while it counts is never compiled
        run.accelerator.backward(run.loss(batch, 0)[0])
    if not run.accelerator.is_main_process:
        return
    loaded = loader_speed(run)
    parameters = sum(p.numel() for p in run.learned(run.learner))
    if run.accelerator.device.type == "cuda":
        peak = torch.cuda.max_memory_allocated()
    else:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps(run.config, indent=2, ensure_ascii=False))
    print(f"parameters           {parameters:,}")
    print(f"weights, Adam, EMA   {parameters * 4 * 5 / 2**20:,.0f} MiB")
    print(f"peak memory          {peak / 2**20:,.0f} MiB in this process")
    print(f"clips per step       {run.global_batch * run.args.gradient_accumulation_steps}")
    work, clips = flops.get_total_flops() / 1e9, run.args.per_device_batch_size
    print(f"seconds per step     {median:.3f}, with the optimiser")
    print(f"clips per second     {clips / median:.1f} on one {run.accelerator.device.type}")
    workers = run.data.dataloader_num_workers
    print(f"clips per second     {loaded:.1f} from the loader alone, workers: {workers}")
    if loaded < (2 if workers else 10) * clips / median:
        more = ", or keep decoded videos: `--video_cache memory` or disk" if run.data.source is not None else ""
        print(f"                     Clips may come too slowly: take more `--dataloader_num_workers`{more}.")
    reached = matrix_speed(run.accelerator.device, run.accelerator.mixed_precision)
    print(
        f"arithmetic           {work / clips:.1f} GFLOP a clip, {work / median:,.0f} GFLOP/s: "
        f"{work / median / reached:.0%} of what one large matrix product reaches here"
    )
    for line in run.cost(median):
        print(line)


def loader_speed(run: Run) -> float:
    """Clips a second that the loader of one process prepares, with as many workers as in the run."""
    batches = passes(run.batches, 0, 10**6, run.data.dataloader_num_workers)
    for _ in range(1 + 4 * run.data.dataloader_num_workers):  # those that are prepared ahead
        next(batches)
    start, count = time.perf_counter(), 0
    while time.perf_counter() - start < LOADING and count < 200:
        next(batches)
        count += 1
    return count * run.args.per_device_batch_size / (time.perf_counter() - start)


def matrix_speed(device: torch.device, mixed_precision: str) -> float:
    """GFLOP/s of a product of two square matrices in the precision of a run, the fastest of a few."""
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(mixed_precision, torch.float32)
    size = 8192 if device.type == "cuda" else 1024
    a = torch.randn(size, size, device=device).to(dtype)
    fastest = float("inf")
    for _ in range(1 + STEPS):
        start = time.perf_counter()
        torch.mm(a, a)
        if device.type == "cuda":
            torch.cuda.synchronize()
        fastest = min(fastest, time.perf_counter() - start)
    return 2 * size**3 / fastest / 1e9
