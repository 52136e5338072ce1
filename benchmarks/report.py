"""The benchmarks' table, from the JSON they wrote."""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

PEERS = {"diffusers": "diffusers' `UNet3DConditionModel`", "lucidrains": "lucidrains' `Unet3D`"}
INTRODUCTION = (
    "Denoisers at equal parameters, ours, " + " and ".join(PEERS.values()) + "; "
    "a shape is clips × frames × pixels. Figures are medians."
)
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


def peers_of(values: Mapping[str, Any]) -> list[str]:
    """The peers among the models of a measurement."""
    return [name for name in PEERS if name in values]


def against(what: str, values: Mapping[str, float], goal: str = "–") -> Row:
    """A row of one value for each model: peers side by side, and the ratio of ours to each."""
    names = peers_of(values)
    whom = " / ".join(names)
    ratios = " / ".join(times(values["ours"] / values[name]) for name in names)
    theirs = " / ".join(number(values[name]) for name in names)
    return Row(f"{what}, against {whom}", number(values["ours"]), theirs, ratios, goal)


def denoiser(part: Mapping[str, Any], device: str) -> Iterator[Row]:
    """Clips a second, growth, FLOPs and memory."""
    for row in part["rows"]:
        rates = {name: rate["median"] for name, rate in row["clips_per_second"].items()}
        kind, goal = "forward", "–"
        if row["kind"] == "training_step":
            goals = [f"≥ {TRAINING_GOAL[device][name]:g}×" for name in peers_of(rates)]
            kind, goal = "training step", " / ".join(goals)
        yield against(f"{kind}, {shape(row)}, clips/s", rates, goal)
    for axis, label in (("frames", "frames, 64×64"), ("pixels", "pixels of a frame, 10 frames")):
        if "exponents" in part:
            yield against(f"forward: exponent of its cost in {label}", part["exponents"][axis])
    if "flops" in part:
        yield against("forward, 1 × 10 × 64×64, GFLOP", {name: n / 1e9 for name, n in part["flops"].items()})
    if "memory" in part:
        added = {name: found["added_mb"] for name, found in part["memory"].items()}
        yield against("training step, 1 × 10 × 64×64, MB it adds", added)


def equal_minutes(part: Mapping[str, Any], device: str) -> Iterator[Row]:
    """Validation v-loss."""
    steps = " / ".join(str(part["models"][name]["steps"]) for name in ("ours", *peers_of(part["models"])))
    losses = {name: found["v_loss"] for name, found in part["models"].items()}
    zero = number(part["predicting_zero"])
    what = f"held-out v-loss after {part['seconds'] / 60:g} min of training each ({steps} steps; zero scores {zero})"
    yield against(what, losses, "< 1×")


def sampling(part: Mapping[str, Any], device: str) -> Iterator[Row]:
    """Calls for the quality of 1000, and the error of 20."""
    for name, calls in part["calls"].items():
        if name.startswith("ancestral"):
            continue
        tried = [int(n) for n in part["errors"][name]]
        shown = f"> {max(tried)}" if calls is None else str(calls)
        ratio = "–" if calls is None else times(calls / 1000)
        what = f"{name}: calls to an error within 5 % of the 1000-step ancestral sampler's"
        yield Row(what, shown, "1000", ratio, f"≤ {CALLS_GOAL} calls")
    solvers, reference = ("DDIM", "DPM++ 2M", "UniPC"), part["reference_error"]
    errors = [part["errors"][name]["20"] for name in solvers]
    yield Row(
        f"{' / '.join(solvers)}: error after 20 calls, % of the data's deviation, against 1000 ancestral steps",
        " / ".join(f"{100 * error:.2g}" for error in errors),
        f"{100 * reference:.2g}",
        " / ".join(times(error / reference) for error in errors),
    )
    yield enough(part, solvers)


def enough(part: Mapping[str, Any], solvers: tuple[str, ...]) -> Row:
    """Calls to an error that is small against the data, ours being stock solvers on our schedule."""
    calls = {name: part["calls_of_5_percent"][name] for name in (*solvers, "ancestral γ=0")}
    shown = {name: "more than tried" if n is None else str(n) for name, n in calls.items()}
    return Row(
        f"{' / '.join(solvers)}: calls to an error of 5 % of the data's deviation, against ancestral γ = 0",
        " / ".join(shown[name] for name in solvers),
        shown["ancestral γ=0"],
        "–",
    )


def data_generators(part: Mapping[str, Any], device: str) -> Iterator[Row]:
    """Clips a second."""
    for row in part["rows"]:
        clip = row["microseconds_per_clip"]
        ways = [name for name in ("ours", "ours_numpy") if name in clip]
        with_what = "with numba / NumPy alone" if part["numba"] else "NumPy alone"
        yield Row(
            f"{row['variant']} clips of {part['num_frames']} frames, batch {row['batch_size']}, {with_what}, "
            "clips/s, against the published loop",
            " / ".join(number(1e6 / clip[name]) for name in ways),
            number(1e6 / clip["published"]),
            " / ".join(times(row["ratios"][f"published / {name}"]) for name in ways),
            f"≥ {GENERATOR_GOAL:g}×",
        )


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
    lines = [f"{INTRODUCTION} {machine_line(report)}.", "", "| what | ours | theirs | ours : theirs | goal |"]
    lines += ["| --- | ---: | ---: | ---: | ---: |", *("| " + " | ".join(row) + " |" for row in rows_of(report))]
    notes = [f"* {note[0].upper()}{note[1:]}." for note in notes_of(report)]
    return "\n".join([*lines, *([""] if notes else []), *notes])
