"""The benchmarks' table, from the JSON they wrote."""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

PEERS = {"diffusers": "diffusers' `UNet3DConditionModel`", "lucidrains": "lucidrains' `Unet3D`"}
TRAINING_GOAL = {"cpu": {"diffusers": 15.0, "lucidrains": 30.0}, "cuda": {"diffusers": 5.0, "lucidrains": 5.0}}
GENERATOR_GOAL, CALLS_GOAL = 20.0, 20


class Row(NamedTuple):
    """One line: what, ours, theirs, the ratio ours : theirs, and the ratio that was aimed at."""

    what: str
    ours: str
    theirs: str
    ratio: str
    goal: str = "–"


def number(value: float) -> str:
    """Three digits, no exponent."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def times(value: float) -> str:
    """A ratio."""
    return f"{number(value)}×"


def shape(row: Mapping[str, Any]) -> str:
    """`2 × 10 × 64×64`."""
    size = row["image_size"]
    return f"{row['batch_size']} × {row['num_frames']} × {size}×{size}"


def denoiser(part: Mapping[str, Any], device: str) -> Iterator[Row]:
    """Clips a second, growth, FLOPs and memory."""
    for row in part["rows"]:
        training = row["kind"] == "training_step"
        goals = TRAINING_GOAL[device] if training else {}
        for peer, ratio in row["ratios"].items():
            ours, theirs = (row["clips_per_second"][name]["median"] for name in ("ours", peer))
            what = f"{'training step' if training else 'forward'}, {shape(row)}, clips/s, against {PEERS[peer]}"
            goal = f"≥ {goals[peer]:g}×" if peer in goals else "–"
            yield Row(what, number(ours), number(theirs), times(ratio), goal)
    for axis, label in (("frames", "frames, 64×64"), ("pixels", "pixels of a frame, 10 frames")):
        for peer, theirs in ((name, value) for name, value in part.get("exponents", {}).get(axis, {}).items()):
            if peer != "ours":
                what = f"exponent of a forward pass's cost in {label}, against {PEERS[peer]}"
                ours = part["exponents"][axis]["ours"]
                yield Row(what, number(ours), number(theirs), times(ours / theirs))
    for peer in (name for name in part.get("flops", {}) if name != "ours"):
        ours, theirs = part["flops"]["ours"], part["flops"][peer]
        what = f"forward, 1 × 10 × 64×64, GFLOP, against {PEERS[peer]}"
        yield Row(what, number(ours / 1e9), number(theirs / 1e9), times(ours / theirs))
    for peer in (name for name in part.get("memory", {}) if name != "ours"):
        ours, theirs = (part["memory"][name]["added_mb"] for name in ("ours", peer))
        what = f"memory of a training step, 1 × 10 × 64×64, MB, against {PEERS[peer]}"
        yield Row(what, number(ours), number(theirs), times(ours / theirs))


def equal_minutes(part: Mapping[str, Any], device: str) -> Iterator[Row]:
    """Validation v-loss."""
    ours = part["models"]["ours"]
    for peer in (name for name in part["models"] if name != "ours"):
        theirs = part["models"][peer]
        what = f"v-loss after {part['seconds'] / 60:g} min of training each, against {PEERS[peer]}"
        cells = (f"{number(found['v_loss'])} ({found['steps']} steps)" for found in (ours, theirs))
        yield Row(what, *cells, times(ours["v_loss"] / theirs["v_loss"]), "< 1×")


def sampling(part: Mapping[str, Any], device: str) -> Iterator[Row]:
    """Calls for the quality of 1000, and the error at 20."""
    for name, calls in part["calls"].items():
        if name.startswith("ancestral"):
            continue
        tried = [int(n) for n in part["errors"][name]]
        shown = f"> {max(tried)}" if calls is None else str(calls)
        ratio = "–" if calls is None else times(calls / 1000)
        what = f"{name}: calls to an error within 5 % of the 1000-step ancestral sampler's"
        yield Row(what, shown, "1000", ratio, f"≤ {CALLS_GOAL} calls")
    for name in ("DDIM", "DPM++ 2M", "UniPC"):
        error, reference = part["errors"][name]["20"], part["reference_error"]
        what = f"{name}: error after 20 calls, of the data's standard deviation, against 1000 ancestral steps"
        yield Row(what, f"{100 * error:.2g} %", f"{100 * reference:.2g} %", times(error / reference))


def data_generators(part: Mapping[str, Any], device: str) -> Iterator[Row]:
    """Clips a second."""
    for row in part["rows"]:
        clip = row["microseconds_per_clip"]
        for ours, with_what in (("ours", "with numba" if part["numba"] else "NumPy"), ("ours_numpy", "NumPy alone")):
            if ours not in clip:
                continue
            what = f"{row['variant']} Moving MNIST, batch {row['batch_size']}, {with_what}, clips/s, against the"
            ratio = times(row["ratios"][f"published / {ours}"])
            goal = f"≥ {GENERATOR_GOAL:g}×"
            cells = (number(1e6 / clip[ours]), number(1e6 / clip["published"]))
            yield Row(f"{what} published loop", *cells, ratio, goal)


def loading(part: Mapping[str, Any], device: str) -> Iterator[Row]:
    """Import and first clip."""
    ours, theirs = (part["import_seconds"][name]["median"] for name in ("ours", "diffusers"))
    ratio = times(part["ours / diffusers"])
    yield Row("import, s, against the same classes of diffusers", number(ours), number(theirs), ratio, "≤ 1.1×")
    first = part["first_clip"]["clip"]["median"]
    yield Row("from a fresh process to the first clip (15 calls), s", number(first), "–", "–")


def long_video(part: Mapping[str, Any], device: str) -> Iterator[Row]:
    """Cost of the longest against the shortest, default scheme."""
    rows = [row for row in part["rows"] if row["scheme"] == "autoregressive"]
    rows = [row for row in rows if row["reconstruction_guidance_scale"] is None]
    short = rows[0]
    for row in rows[1:]:
        lengths = f"{row['frames']} frames against {short['frames']}"
        yield Row(
            f"long video, {lengths}: s a window",
            number(row["seconds"] / row["windows"]),
            number(short["seconds"] / short["windows"]),
            times(row["seconds"] / row["windows"] / (short["seconds"] / short["windows"])),
        )
        ratio = times(row["peak_mb"] / short["peak_mb"])
        yield Row(f"long video, {lengths}: peak MB", number(row["peak_mb"]), number(short["peak_mb"]), ratio)


def metrics(part: Mapping[str, Any], device: str) -> Iterator[Row]:
    """Clips a second; no peer."""
    names = {"fvd_features": "FVD features (I3D)", "lpips_alex": "LPIPS (AlexNet)"}
    for name, rate in part.get("clips_per_second", {}).items():
        yield Row(f"{names[name]}, clips of 10 frames a second", number(rate["median"]), "–", "–")


SECTIONS = {
    "denoiser": denoiser,
    "equal_minutes": equal_minutes,
    "sampling": sampling,
    "data_generators": data_generators,
    "loading": loading,
    "long_video": long_video,
    "metrics": metrics,
}


def rows_of(report: Mapping[str, Any]) -> Iterator[Row]:
    """All lines, part by part."""
    device = "cuda" if "gpu" in report["machine"] else "cpu"
    for name, section in SECTIONS.items():
        part = report["parts"].get(name)
        if part is not None and "error" not in part:
            yield from section(part, device)


def machine_line(report: Mapping[str, Any]) -> str:
    """The machine in words."""
    found = report["machine"]
    where = f"{found['gpu']}, {found['processor']}" if "gpu" in found else found["processor"]
    versions = ", ".join(f"{name} {found[name]}" for name in ("torch", "diffusers", "numpy", "numba") if found[name])
    return f"{where}, {found['cores']} cores, {found['threads']} thread(s); Python {found['python']}, {versions}"


def notes_of(report: Mapping[str, Any]) -> Iterator[str]:
    """What is to be said: parts left out, and what parts noted."""
    notes = list(report.get("notes", []))
    for name, part in report["parts"].items():
        notes += part.get("notes", [])
        notes += [f"{name}: left out, {part['error']}"] if "error" in part else []
    yield from dict.fromkeys(notes)  # each once


def table(report: Mapping[str, Any]) -> str:
    """The Markdown table with the machine above it and the notes below."""
    lines = [machine_line(report) + ".", "", "| what | ours | theirs | ours : theirs | goal |"]
    lines += ["| --- | ---: | ---: | ---: | ---: |", *("| " + " | ".join(row) + " |" for row in rows_of(report))]
    notes = [f"* {note[0].upper()}{note[1:]}." for note in notes_of(report)]
    return "\n".join([*lines, *([""] if notes else []), *notes])
