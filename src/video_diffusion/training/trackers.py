"""Trackers of accelerate: which there are, how one is started, and how each of them is given videos.

A tracker that shows videos gets a GIF; any other a sheet of frames, one row for each row of clips. The files
stay in `logs/samples` of the output folder, so a run without a tracker has them too.
"""

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers
from accelerate.utils import LoggerType
from tqdm.auto import tqdm

from video_diffusion.data.video_io import Clip, tile, to_channels, write_gif

if TYPE_CHECKING:
    from video_diffusion.training.run import Run

FPS = 8.0  # of samples, where the clips have no rate of their own
ABOUT = 96  # pixels of a frame's height in the files
PROJECT = "video-diffusion"
PACKAGES = {"comet_ml": "comet-ml"}  # where the package is called otherwise than the tracker


@dataclass(frozen=True)
class Shown:
    """Clips that are shown together.

    Args:
        rows: uint8 `[N, F, H, W, C]` each; clips in a column belong together.
        caption: what is to be seen.
    """

    rows: Sequence[Clip]
    caption: str

    @property
    def video(self) -> Clip:
        """All clips as one, uint8 `[F, H', W', C]`."""
        return tile([clip for row in self.rows for clip in row], len(self.rows[0]))

    @property
    def sheet(self) -> Clip:
        """All frames as one picture, uint8 `[H', W', 3]`: a row for each clip, those of a column below each other."""
        clips = np.stack(self.rows, 1)  # [N, rows, F, H, W, C]
        clips = clips.reshape(-1, *clips.shape[2:])
        n, frames, height, width, channels = clips.shape
        sheet = clips.transpose(0, 2, 1, 3, 4).reshape(1, n * height, frames * width, channels)
        return to_channels(sheet, 3)[0]


# ------------------------------------------------------------------------------------------------------------ starting
def known_trackers() -> list[str]:
    """What accelerate can log with, those that were registered with it too, and "none"."""
    return ["none", *sorted(map(str, LOGGER_TYPE_TO_CLASS))]


def check_tracker(name: str) -> None:
    """Refuses a tracker that accelerate does not know, or whose package is missing: it would log nothing.

    Raises:
        ValueError: naming those that there are.
    """
    known = known_trackers()
    if name not in known:
        raise ValueError(f"`tracker` is {name!r}, expected one of {', '.join(known)}.")
    builtin = name in LoggerType.list()
    if builtin and name not in map(str, get_available_trackers()):
        package = PACKAGES.get(name, name)
        raise ValueError(f"`tracker` is {name!r}, whose package is not installed: pip install {package}")


def start_tracker(run: "Run") -> None:
    """Starts the run's tracker and gives it the run's arguments.

    Raises:
        ValueError: if it does not start: no account, no connection, …
    """
    name = run.args.tracker
    if name == "none":
        return
    in_folder = LOGGER_TYPE_TO_CLASS[name].requires_logging_directory
    options: dict[str, Any] = {}
    if name in ("wandb", "trackio"):
        options[name] = {"name": run.output.name}
    if name == "wandb":
        options[name]["dir"] = str(run.output / "logs")
        (run.output / "logs").mkdir(parents=True, exist_ok=True)
    try:
        run.accelerator.init_trackers("training" if in_folder else PROJECT, settings(run.config), options)
    except Exception as error:  # of any kind: each tracker has its own
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"`tracker` is {name!r}, which does not start: {reason}") from error


def settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a run as every tracker takes them: numbers, texts, yes and no."""
    simple = (bool, int, float, str)
    return {
        key: value if isinstance(value, simple) else str(value) for key, value in config.items() if value is not None
    }


# ------------------------------------------------------------------------------------------------------------- logging
def log_videos(run: "Run", videos: Mapping[str, Shown], step: int) -> None:
    """Writes videos into `logs/samples` and gives them to the run's tracker; one that cannot take them ends no run."""
    folder, fps = run.output / "logs" / "samples", min(run.data.fps or FPS, 50.0)
    for name, shown in videos.items():
        video, file = shown.video, folder / f"{name}-{step:07}.gif"
        scale = max(1, round(ABOUT / shown.rows[0].shape[2]))
        write_gif(video, file, fps, scale)
        for tracker in run.accelerator.trackers:
            try:
                WRITERS.get(tracker.name, _other)(tracker, f"samples/{name}", shown, file, step)
            except Exception as error:  # of any kind: each tracker has its own
                reason = " ".join(str(error).split()) or type(error).__name__
                tqdm.write(
                    f"{tracker.name} did not take the {name} samples of step {step}: {reason}. They are in {file}."
                )


def _tensorboard(tracker: Any, name: str, shown: Shown, file: Path, step: int) -> None:
    """A GIF among the images: TensorBoard moves it. Its own `add_video` needs moviepy to make the same."""
    from tensorboard.compat.proto.summary_pb2 import Summary

    height, width = shown.video.shape[1:3]
    image = Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=file.read_bytes())
    tracker.writer._get_file_writer().add_summary(Summary(value=[Summary.Value(tag=name, image=image)]), step)
    tracker.writer.add_text(f"{name}/caption", shown.caption, step)
    tracker.writer.flush()


def _with_class(tracker: Any, name: str, shown: Shown, file: Path, step: int) -> None:
    """W&B, Trackio, SwanLab: their `Video` takes the path of a GIF; W&B's needs moviepy for an array."""
    video = importlib.import_module(tracker.name).Video(str(file), caption=shown.caption)
    tracker.log({name: video}, step=step)


def _comet(tracker: Any, name: str, shown: Shown, file: Path, step: int) -> None:
    tracker.writer.log_video(str(file), name=f"{name}-{step}.gif", step=step)


def _mlflow(tracker: Any, name: str, shown: Shown, file: Path, step: int) -> None:
    tracker.log_artifact(str(file), artifact_path=name)


def _clearml(tracker: Any, name: str, shown: Shown, file: Path, step: int) -> None:
    title, _, series = name.partition("/")
    tracker.task.get_logger().report_media(title=title, series=series, iteration=step, local_path=str(file))


def _aim(tracker: Any, name: str, shown: Shown, file: Path, step: int) -> None:
    tracker.log_images({name: (shown.sheet, shown.caption)}, step=step)


def _dvclive(tracker: Any, name: str, shown: Shown, file: Path, step: int) -> None:
    tracker.live.log_image(f"{name}-{step}.png", shown.sheet)


def _other(tracker: Any, name: str, shown: Shown, file: Path, step: int) -> None:
    """A tracker that was registered with accelerate: its `log_videos`, else its `log_images`, where it has one."""
    if hasattr(tracker, "log_videos"):
        tracker.log_videos({name: shown.video}, step=step)
    elif hasattr(tracker, "log_images"):
        tracker.log_images({name: shown.sheet[None]}, step=step)


WRITERS: dict[str, Callable[[Any, str, Shown, Path, int], None]] = {
    "tensorboard": _tensorboard,
    "wandb": _with_class,
    "trackio": _with_class,
    "swanlab": _with_class,
    "comet_ml": _comet,
    "mlflow": _mlflow,
    "clearml": _clearml,
    "aim": _aim,
    "dvclive": _dvclive,
}
