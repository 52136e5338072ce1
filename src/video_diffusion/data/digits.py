"""Digit images: the embedded MNIST, or any data set with the same two columns (`image`, `label`)."""

import io
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

SPLITS = ("train", "test")
EMBEDDED = Path(__file__).parent / "mnist"


@dataclass(frozen=True, eq=False)
class Digits:
    """
    Grey digit images and their classes.

    Args:
        images: uint8 `[N, h, w]` in [0, 255], N ≥ 1; MNIST is `[N, 28, 28]`.
        labels: int64 `[N]`, the class of each image.

    Raises:
        ValueError: if a dtype or a shape is another one.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]

    def __post_init__(self) -> None:
        if self.images.dtype != np.uint8 or self.images.ndim != 3 or 0 in self.images.shape:
            raise ValueError(
                f"`images` is {self.images.dtype} of shape {self.images.shape}; expected uint8 [N, h, w], N ≥ 1"
            )
        if self.labels.dtype != np.int64 or self.labels.shape != self.images.shape[:1]:
            raise ValueError(
                f"`labels` is {self.labels.dtype} of shape {self.labels.shape}; "
                f"expected int64 of shape {self.images.shape[:1]}, one for each image"
            )

    def __len__(self) -> int:
        return len(self.images)

    def __repr__(self) -> str:
        return f"Digits({len(self)} images of {self.images.shape[1]}×{self.images.shape[2]})"


def load_digits(split: str = "train", source: str | Path | None = None) -> Digits:
    """
    Loads the digits of one split; the result is kept in memory and its arrays are read-only.

    The embedded MNIST's 60,000 training images take about 3 s on one CPU core, the test images half a second.

    Args:
        split: `"train"` or `"test"`.
        source: where the digits come from. `None`: the embedded MNIST (LeCun, Cortes, Burges, 1998). An `.npz` file
            with `images` uint8 `[N, h, w]` and `labels` `[N]` (no pyarrow needed; the text `{split}` in its name is
            replaced by the split). A `.parquet` file, a folder or a Hub id (`ylecun/mnist`,
            `zalando-datasets/fashion_mnist`) with the columns `image` and `label`; the last two need `datasets`.

    Returns:
        The images and labels, in the order of the source.

    Raises:
        ValueError: if the split is unknown, the source lacks a column, or its images are not grey and of one size.
        FileNotFoundError: if the source is a path that does not exist.
        ImportError: if a package that the source needs is not installed.
    """
    if split not in SPLITS:
        raise ValueError(f"`split` is {split!r}; expected one of {', '.join(map(repr, SPLITS))}")
    return _load(split, None if source is None else str(source).replace("{split}", split))


@lru_cache(maxsize=4)
def _load(split: str, source: str | None) -> Digits:
    path = EMBEDDED / f"{split}.parquet" if source is None else Path(source)
    if path.suffix in (".npz", ".parquet") and not path.is_file():
        raise FileNotFoundError(f"`source` is {str(path)!r}; there is no such file")
    if path.suffix == ".npz":
        images, labels = _read_npz(path)
    elif path.suffix == ".parquet":
        images, labels = _read_parquet(path)
    else:
        images, labels = _read_dataset(str(path) if path.exists() else str(source), split)
    images.setflags(write=False)
    labels.setflags(write=False)
    return Digits(images, labels)


def save_digits(path: str | Path, digits: Digits) -> None:
    """Writes digits as an `.npz` file that `load_digits(source=path)` reads without pyarrow."""
    if Path(path).suffix != ".npz":
        raise ValueError(f"`path` is {str(path)!r}; expected a name that ends in .npz")
    np.savez_compressed(path, images=digits.images, labels=digits.labels)


def resize_images(images: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """
    Resizes grey images to squares with Pillow's bilinear filter.

    This is what `torchvision.transforms.Resize` does to a PIL image (its default filter), hence what SVG does to its
    digits before it turns them into tensors.

    Args:
        images: uint8 `[N, h, w]`.
        size: height and width of the result, ≥ 1.

    Returns:
        uint8 `[N, size, size]`; `images` itself where it has that size already.
    """
    if size < 1:
        raise ValueError(f"`size` is {size}; expected at least 1")
    if images.shape[1:] == (size, size):
        return images
    resized = np.empty((len(images), size, size), np.uint8)
    for target, image in zip(resized, images, strict=True):
        target[...] = np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.BILINEAR))
    return resized


def _read_npz(path: Path) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    with np.load(path) as arrays:
        if missing := {"images", "labels"} - set(arrays.files):
            raise ValueError(f"`source` {str(path)!r} has the arrays {arrays.files}; {sorted(missing)} missing")
        return arrays["images"], arrays["labels"].astype(np.int64)


def _read_parquet(path: Path) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise ImportError(
            "digits in parquet need pyarrow: pip install pyarrow (or give an .npz file as `source`)"
        ) from error
    try:
        table = pq.read_table(path)
    except pa.ArrowInvalid as error:
        raise ValueError(f"`source` {str(path)!r} is not a readable parquet file: {error}") from error
    _require_columns(table.column_names, str(path))
    encoded = table["image"].to_pylist()
    if not all(isinstance(row, dict) and row.get("bytes") for row in encoded):
        raise ValueError(f"`source` {str(path)!r}: the column `image` must hold encoded images, as {{bytes, path}}")
    images = _stack((Image.open(io.BytesIO(row["bytes"])) for row in encoded), str(path))
    return images, table["label"].to_numpy().astype(np.int64)


def _read_dataset(name: str, split: str) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise ImportError(f"digits from {name!r} need datasets: pip install datasets") from error
    table = load_dataset(name, split=split)
    _require_columns(table.column_names, name)
    images = _stack(table["image"], name)
    return images, np.asarray(table["label"], np.int64)


def _require_columns(columns: list[str], name: str) -> None:
    if missing := {"image", "label"} - set(columns):
        raise ValueError(f"`source` {name!r} has the columns {columns}; {sorted(missing)} missing")


def _stack(pictures: Iterable[Image.Image], name: str) -> NDArray[np.uint8]:
    """Grey PIL images of one size → uint8 `[N, h, w]`."""
    images: list[NDArray[np.uint8]] = []
    try:
        for number, picture in enumerate(pictures):
            if picture.mode != "L":
                raise ValueError(f"`source` {name!r}: image {number} has mode {picture.mode!r}; expected grey, 'L'")
            images.append(np.asarray(picture))
            if images[-1].shape != images[0].shape:
                raise ValueError(
                    f"`source` {name!r}: image {number} has shape {images[-1].shape}; expected {images[0].shape}"
                )
    except UnidentifiedImageError as error:
        raise ValueError(f"`source` {name!r}: image {len(images)} cannot be decoded") from error
    if not images:
        raise ValueError(f"`source` {name!r} holds no images")
    return np.stack(images)
