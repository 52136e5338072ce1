"""What a step costs, measured without writing anything."""

import json
import resource
import statistics
import time

import torch
from torch.utils.flop_counter import FlopCounterMode

from video_diffusion.training.build import whole
from video_diffusion.training.run import Run

STEPS = 3  # that are timed


def dry_run(run: Run) -> None:
    """Prints the resolved run and what a step costs, the median of a few; writes nothing."""
    batch, seconds = run.batches[0], []
    for _ in range(1 + STEPS):  # the first compiles and allocates
        start = time.perf_counter()
        run.accelerator.backward(run.loss(batch, 0)[0])
        run.accelerator.clip_grad_norm_(run.model.parameters(), run.args.max_grad_norm)
        run.optimizer.step()
        run.optimizer.zero_grad()
        run.ema.step(whole(run.learner.parameters()))
        if run.accelerator.device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    median = statistics.median(seconds[1:])
    with FlopCounterMode(display=False) as flops:  # last: what is first called while it counts is never compiled
        run.accelerator.backward(run.loss(batch, 0)[0])
    if not run.accelerator.is_main_process:
        return
    parameters = sum(p.numel() for p in run.learner.parameters())
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
    print(f"arithmetic           {work / clips:.1f} GFLOP a clip, {work / median:,.0f} GFLOP/s")
    for line in run.cost(median):
        print(line)
