"""What is scored: the interface, and a pipeline that predicts, in windows where a clip is longer than its training."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from einops import rearrange
from numpy.typing import NDArray

from video_diffusion.data.arrays import ArrayVideo, axes_of, open_array
from video_diffusion.data.folders import VIDEO_ENDINGS, list_picture_folders
from video_diffusion.data.frames import natural_order
from video_diffusion.data.pictures import list_pictures
from video_diffusion.data.reading import read_video
from video_diffusion.data.video_io import resize, to_channels, to_uint8
from video_diffusion.evaluation.protocols import IMAGE_SIZE, Protocol
from video_diffusion.hub.configs import INDEX
from video_diffusion.hub.finding import embedded_adapters, embedded_models, find_folder, is_adapter, resolve_model
from video_diffusion.hub.loading import weights_digest
from video_diffusion.model.steps import resolve_steps
from video_diffusion.model.windows import Window, plan_windows
from video_diffusion.sampling import OWN_SAMPLER, frame_size, load_pipeline, sampler_name

if TYPE_CHECKING:
    from video_diffusion.model.pipeline import VideoDiffusionPipeline

Clips = NDArray[np.uint8]
PROCESS = ("schedule", "logsnr_min", "logsnr_max", "shift", "prediction_type")  # of the scheduler's config


class Source(ABC):
    """Something that has S clips for each clip of a protocol.

    Args:
        identity: what it is, for the report; JSON.
        settings: what changes its clips, for the report; JSON.
        image_size: H = W of its frames.
    """

    identity: dict[str, Any]
    settings: dict[str, Any]
    image_size: int

    @abstractmethod
    def check(self, protocol: Protocol, num_videos: int, num_samples: int, lengths: Sequence[int]) -> None:
        """Raises a ValueError, before anything is computed, where it cannot serve the protocol."""

    @abstractmethod
    def clips(
        self, indices: Sequence[int], given: Clips, num_samples: int, lengths: Sequence[int]
    ) -> dict[int, Clips]:
        """Its clips.

        Args:
            indices: numbers of the protocol's clips, `[n]`.
            given: their given frames, uint8 `[n, k, H, W, C]`.
            num_samples: S.
            lengths: F, frames of the whole clips, in ascending order.

        Returns:
            for each length uint8 `[n, S, F, H, W, C]`, the given frames in front.
        """

    def cost(self, num_given: int, lengths: Sequence[int]) -> dict[str, Any]:
        """`windows` and `network_calls_per_clip` by length; nothing where no network is called."""
        return {}


# ---------------------------------------------------------------------------------------------------------- a pipeline
def clip_generator(seed: int, clip: int, sample: int, length: int) -> torch.Generator:
    """The randomness of one clip: a pure function of these numbers, so that batches and processes do not matter."""
    state = np.random.SeedSequence([seed, clip, sample, length]).generate_state(2)
    return torch.Generator().manual_seed(int(state[0]) << 31 | int(state[1]) >> 1)


def to_clips(video: torch.Tensor, channels: int = 1) -> Clips:
    """`[B, F, C, H, W]` in [0, 1] as uint8 `[B, F, H, W, channels]`."""
    frames = to_uint8(rearrange(video, "b f c h w -> b f h w c").numpy())
    return np.stack([to_channels(clip, channels) for clip in frames])


class PipelineSource(Source):
    """A pipeline.

    Args:
        pipeline: on its device, with its sampler.
        identity: as in `Source`.
        steps: network calls of a window.
        seed: of the noise.
        sampler: the sampler's name, for the report.
        batch_size: clips at once.
        history_guidance: w of the guidance on given frames; 1: none.
    """

    def __init__(
        self,
        pipeline: "VideoDiffusionPipeline",
        identity: dict[str, Any],
        *,
        steps: int = 50,
        seed: int = 0,
        sampler: str = "ancestral",
        batch_size: int = 16,
        history_guidance: float = 1.0,
    ) -> None:
        self.pipeline, self.identity, self.batch_size = pipeline, identity, batch_size
        self.steps, self.seed, self.history_guidance = steps, seed, history_guidance
        scheduler = pipeline.scheduler
        self.settings = {
            "sampler": sampler,
            "scheduler": type(scheduler).__name__,
            "gamma": scheduler.config.get("gamma") if sampler == OWN_SAMPLER else None,
            "steps": steps,
            "seed": seed,
            "dtype": str(pipeline.unet.dtype).removeprefix("torch."),
            "process": {name: scheduler.config.get(name) for name in PROCESS if name in scheduler.config},
        }
        if history_guidance != 1:
            self.settings["history_guidance"] = history_guidance
        for key, places in zip(("timesteps", "logsnr_spacing"), resolve_steps(pipeline, steps)[1:], strict=True):
            if places is not None:
                self.settings[key] = list(pipeline.generation_config[key])
        height, width = frame_size(pipeline)
        if height != width:
            raise ValueError(f"The model's frames are {width}×{height}, expected square ones.")
        self.image_size = height
        pipeline.set_progress_bar_config(disable=True)

    def check(self, protocol: Protocol, num_videos: int, num_samples: int, lengths: Sequence[int]) -> None:
        """Raises a ValueError where the model cannot be given frames and the protocol needs it, or the other way."""
        from video_diffusion.model.guidance import reads_frames

        unet, channels = self.pipeline.unet, self.pipeline.latent_channels
        plans = {length: self._windows(protocol.num_given, length) for length in lengths}
        if self.history_guidance != 1 and not any(window.given for plan in plans.values() for window in plan):
            raise ValueError(
                f"`--history-guidance` is {self.history_guidance:g}, expected none: in clips of "
                f"{' and '.join(map(str, lengths))} frames nothing is given."
            )
        for length, windows in plans.items():
            if any(window.given for window in windows) and not reads_frames(unet.config):
                raise ValueError(
                    f"The model has no channels for given frames (in_channels {channels}, not {2 * channels + 1}), "
                    f"expected them for clips of {length} frames, {protocol.num_given} of them given, by a model "
                    f"trained on {unet.config.get('num_frames')}."
                    + (" Pass `--num-frames` with lengths it was trained on." if protocol.num_given == 0 else "")
                )

    def clips(
        self, indices: Sequence[int], given: Clips, num_samples: int, lengths: Sequence[int]
    ) -> dict[int, Clips]:
        """As `Source.clips`; nothing but the seed, the clip and the sample decides about a clip."""
        jobs = [(row, sample) for row in range(len(indices)) for sample in range(num_samples)]
        made: dict[int, list[Clips]] = {length: [] for length in lengths}
        for first in range(0, len(jobs), self.batch_size):
            batch = jobs[first : first + self.batch_size]
            frames = self._given([given[row] for row, _ in batch]) if given.shape[1] else None
            for length in lengths:
                generators = [clip_generator(self.seed, indices[row], sample, length) for row, sample in batch]
                told = frames is not None or len(self._windows(0, length)) > 1
                output: Any = self.pipeline(
                    video=frames,
                    num_frames=length,
                    history_guidance_scale=self.history_guidance if told else 1.0,
                    num_inference_steps=self.steps,
                    num_videos_per_prompt=len(batch) if frames is None else 1,
                    generator=generators,
                    output_type="pt",
                )
                made[length].append(to_clips(output.frames, given.shape[-1]))
        return {
            length: rearrange(np.concatenate(parts), "(n s) f h w c -> n s f h w c", s=num_samples)
            for length, parts in made.items()
        }

    def _windows(self, num_given: int, length: int) -> list[Window]:
        """The pipeline's own plan for a clip whose first frames are given."""
        trained, grid = self.pipeline.unet.config.get("num_frames"), self.pipeline.frame_grid
        given = range(grid.length(num_given) if num_given else 0)
        return list(plan_windows(grid.length(length), trained, given=given))

    def _given(self, clips: list[Clips]) -> torch.Tensor:
        """Clips uint8 `[k, H, W, C]` as the model reads them: `[B, k, C, H, W]` in [0, 1]."""
        frames = np.stack([to_channels(clip, self.pipeline.pixel_channels) for clip in clips])
        return rearrange(torch.from_numpy(frames).float() / 255, "b f h w c -> b f c h w")

    def cost(self, num_given: int, lengths: Sequence[int]) -> dict[str, Any]:
        """Counted on the sampler's own timesteps, which may be more or fewer than the steps asked for."""
        windows = {length: self._windows(num_given, length) for length in lengths}
        self.pipeline.scheduler.set_timesteps(self.steps)
        calls, guided = len(self.pipeline.scheduler.timesteps), self.history_guidance != 1
        totals = {n: calls * sum(2 if guided and w.given else 1 for w in plan) for n, plan in windows.items()}
        return {
            "windows": {str(n): [[len(w.given), len(w.made)] for w in plan] for n, plan in windows.items()},
            "network_calls_per_clip": {str(length): total for length, total in totals.items()},
        }


# ------------------------------------------------------------------------------------------------- a folder of videos
def list_videos(folder: Path) -> list[Path]:
    """The videos of a folder, files or folders of pictures, in natural order.

    Raises:
        ValueError: where the files are of several kinds.
    """
    files = [file for file in folder.iterdir() if file.is_file() and file.suffix.lower() in VIDEO_ENDINGS]
    files = [file for file in files if not file.name.startswith(".")]
    kinds = sorted({file.suffix.lower() for file in files})
    if len(kinds) > 1:
        raise ValueError(f"`--model` is the folder {folder} with {' and '.join(kinds)} files, expected one kind.")
    return sorted(files, key=natural_order) or list_picture_folders(folder)


def files_of(video: Path) -> list[Path]:
    """The files that a video is made of."""
    return list_pictures(video) if video.is_dir() else [video]


@lru_cache(maxsize=4)
def read_clips(path: Path) -> list[Clips]:
    """The clips of one file, uint8 `[F, H, W, C]`: one, or as many as an npz array has. Raises ValueError, OSError."""
    if path.suffix.lower() != ".npz":
        return [read_video(path)]
    array = open_array(path)
    axes = axes_of(array.shape, str(path), "NFHW" if array.ndim == 4 else None, ("NFHW", "NFHWC", "NFCHW"))
    return [ArrayVideo(clip, str(path), axes.removeprefix("N")).read() for clip in array]


class FolderSource(Source):
    """A folder of videos: one file a clip, in the order of the numbers in their names.

    The i-th file (a container such as MP4, a GIF, an npy; or the i-th row of the arrays in npz files), or the i-th
    subfolder with a picture for each frame, is the i-th clip of the protocol. It holds the predicted frames only, or
    all frames; given frames are then taken from the truth. Several predictions of each clip: one subfolder each.
    Frames are 64×64 or a whole multiple, which is averaged down; uint8, or floats in [0, 1] in arrays.

    Args:
        folder: where they are.

    Raises:
        ValueError: where there are no videos, of several kinds, or not equally many in each subfolder.
    """

    image_size = IMAGE_SIZE

    def __init__(self, folder: Path) -> None:
        direct = list_videos(folder)
        subfolders = sorted((path for path in folder.iterdir() if path.is_dir()), key=natural_order)
        found = [files for files in ([direct] if direct else map(list_videos, subfolders)) if files]
        if not found:
            raise ValueError(
                f"`--model` is the folder {folder}, expected one with a model_index.json, or with videos "
                f"({', '.join(VIDEO_ENDINGS)}), or with subfolders of videos."
            )
        self.rows = [[(file, i) for file in files for i in range(self._count(file))] for files in found]
        if len({len(rows) for rows in self.rows}) > 1:
            raise ValueError(
                f"{folder} has subfolders with {[len(rows) for rows in self.rows]} videos, expected equal."
            )
        digest = hashlib.sha256()
        for file in (file for videos in found for video in videos for file in files_of(video)):
            digest.update(f"{file.relative_to(folder)}\n".encode() + hashlib.sha256(file.read_bytes()).digest())
        self.identity = {"kind": "videos", "name": str(folder), "revision": None, "sha256": digest.hexdigest()}
        self.settings = {"files": files_of(found[0][0])[0].suffix.lower()}

    @staticmethod
    def _count(file: Path) -> int:
        return len(read_clips(file)) if file.suffix.lower() == ".npz" else 1

    @property
    def num_videos(self) -> int:
        """How many clips there are."""
        return len(self.rows[0])

    @property
    def num_samples(self) -> int:
        """How many predictions of each."""
        return len(self.rows)

    def check(self, protocol: Protocol, num_videos: int, num_samples: int, lengths: Sequence[int]) -> None:
        """Raises a ValueError where there are too few videos or samples."""
        for name, asked, there in (
            ("num-videos", num_videos, self.num_videos),
            ("num-samples", num_samples, self.num_samples),
        ):
            if asked > there:
                raise ValueError(
                    f"`--{name}` is {asked}, expected at most the {there} that {self.identity['name']} has."
                )

    def clips(
        self, indices: Sequence[int], given: Clips, num_samples: int, lengths: Sequence[int]
    ) -> dict[int, Clips]:
        """As `Source.clips`. Raises a ValueError where a video has other frames than the protocol's."""
        return {
            length: np.stack(
                [
                    np.stack([self._clip(*self.rows[s][i], first, length) for s in range(num_samples)])
                    for i, first in zip(indices, given, strict=True)
                ]
            )
            for length in lengths
        }

    def _clip(self, file: Path, row: int, given: Clips, length: int) -> Clips:
        """One clip uint8 `[F, H, W, C]` of F = `length` frames, the true given frames in front."""
        clip, k, size = read_clips(file)[row], len(given), self.image_size
        height, width = clip.shape[1:3]
        if height != width or height % size:
            raise ValueError(f"{file} has frames of {width}×{height}, expected {size}×{size} or a multiple.")
        if k == 0 and len(clip) >= length:
            clip = clip[:length]
        elif len(clip) not in (length, length - k):
            wanted = f"{length - k} (predicted) or {length} (all)" if k else f"at least {length}"
            raise ValueError(f"{file} has {len(clip)} frames, expected {wanted}.")
        predicted = to_channels(resize(clip, size, size), given.shape[-1])[len(clip) - (length - k) :]
        return np.concatenate([given, predicted])


# ----------------------------------------------------------------------------------------------------------- by name
def open_source(
    model: str,
    *,
    sampler: str | None = None,
    gamma: float | None = None,
    steps: int | None = None,
    seed: int = 0,
    batch_size: int = 16,
    history_guidance: float = 1.0,
    device: str | None = None,
    dtype: str = "auto",
) -> Source:
    """What a name means: a pipeline with its sampler on its device, or a folder of videos.

    Args:
        model: an embedded model's name, a folder (of a pipeline or of videos) or a Hub id.
        sampler: as in `sampling.load_pipeline`; so are `gamma` and `device`.
        gamma: see there.
        steps: as in `PipelineSource`, None: those of the model's generation config, else 50; so are the rest.
        seed: see there.
        batch_size: see there.
        history_guidance: see there.
        device: see `sampling.load_pipeline`; so is `dtype`.
        dtype: see there.

    Raises:
        ValueError: where there is no such model, or an argument is refused.
    """
    from video_diffusion.model.pipeline import VideoDiffusionPipeline

    folder = Path(model)
    embedded = embedded_models() | embedded_adapters()
    if model not in embedded and folder.is_dir() and not (folder / INDEX).is_file() and not is_adapter(folder):
        return FolderSource(folder)
    found = Path(resolve_model(model))
    folder = found if found.is_dir() else find_folder(VideoDiffusionPipeline, str(found), {})
    identity = {
        "kind": "pipeline",
        "name": model,
        "revision": folder.name if folder.parent.name == "snapshots" else None,
        "weights": weights_digest(folder),
    }
    pipeline = load_pipeline(str(folder), sampler, gamma, device, dtype)
    return PipelineSource(
        pipeline,
        identity,
        steps=steps or pipeline.generation_config.get("num_inference_steps", 50),
        seed=seed,
        sampler=sampler_name(pipeline),
        batch_size=batch_size,
        history_guidance=history_guidance,
    )
