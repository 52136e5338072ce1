"""Digits, their trajectories, Moving MNIST, and data sets with a `video` column."""

from video_diffusion.data.builders import build_dataset, build_features, build_iterable_dataset, write_parquet
from video_diffusion.data.clips import ClipShape, VideoClips
from video_diffusion.data.digits import Digits, load_digits, resize_images, save_digits
from video_diffusion.data.moving_mnist import MovingMNIST
from video_diffusion.data.trajectories import classic_positions, stochastic_positions
from video_diffusion.data.videos import load_videos, open_videos, stream_videos

__all__ = [
    "ClipShape",
    "Digits",
    "MovingMNIST",
    "VideoClips",
    "build_dataset",
    "build_features",
    "build_iterable_dataset",
    "classic_positions",
    "load_digits",
    "load_videos",
    "open_videos",
    "resize_images",
    "save_digits",
    "stochastic_positions",
    "stream_videos",
    "write_parquet",
]
