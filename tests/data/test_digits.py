import io
import sys

import numpy as np
import pytest
from PIL import Image

from video_diffusion.data import Digits, load_digits, resize_images, save_digits


def png(image: np.ndarray) -> dict:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return {"bytes": buffer.getvalue(), "path": None}


def write_parquet(path, images, labels, **columns) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = {"image": [png(image) for image in images], "label": labels, **columns}
    pq.write_table(pa.table({name: values for name, values in table.items() if values is not None}), path)


@pytest.fixture
def few() -> Digits:
    images = np.random.default_rng(0).integers(0, 256, (6, 28, 28), np.uint8)
    return Digits(images, np.arange(6))


def test_embedded_digits_have_mnists_published_statistics():
    train, test = load_digits("train"), load_digits("test")
    assert train.images.shape == (60000, 28, 28)
    assert test.images.shape == (10000, 28, 28)
    assert train.images.mean() / 255 == pytest.approx(0.1307, abs=5e-5)
    assert train.images.std() / 255 == pytest.approx(0.3081, abs=5e-5)
    assert np.bincount(train.labels).tolist() == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert np.bincount(test.labels).tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]


def test_train_and_test_digits_are_disjoint():
    train = {image.tobytes() for image in load_digits("train").images}
    assert not train & {image.tobytes() for image in load_digits("test").images}


def test_loaded_digits_are_kept_and_cannot_be_changed():
    assert load_digits("test") is load_digits("test")
    with pytest.raises(ValueError, match="read-only"):
        load_digits("test").images[0] = 0


def test_npz_gives_back_what_was_saved_without_pyarrow(tmp_path, few, monkeypatch):
    save_digits(tmp_path / "test.npz", few)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    loaded = load_digits("test", tmp_path / "{split}.npz")
    assert np.array_equal(loaded.images, few.images)
    assert np.array_equal(loaded.labels, few.labels)


def test_parquet_and_folder_give_the_same_digits(tmp_path, few):
    write_parquet(tmp_path / "test.parquet", few.images, few.labels)
    for source in (tmp_path / "test.parquet", load_folder(tmp_path, few)):
        loaded = load_digits("test", source)
        assert np.array_equal(loaded.images, few.images)
        assert np.array_equal(loaded.labels, few.labels)


def load_folder(tmp_path, digits: Digits):
    """A folder with the schema of the Hub's MNIST: an image feature and class labels."""
    import datasets

    names = [str(name) for name in range(10)]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=names)})
    rows = {"image": [Image.fromarray(image) for image in digits.images], "label": digits.labels.tolist()}
    (tmp_path / "folder").mkdir()
    table = datasets.Dataset.from_dict(rows, features=features)
    table.to_parquet(tmp_path / "folder" / "test-00000-of-00001.parquet")
    return tmp_path / "folder"


def test_resizing_is_pillows_bilinear_and_leaves_the_right_size_alone(few):
    expected = Image.fromarray(few.images[3]).resize((32, 32), Image.Resampling.BILINEAR)
    assert np.array_equal(resize_images(few.images, 32)[3], np.asarray(expected))
    assert resize_images(few.images, 28) is few.images


@pytest.mark.parametrize(
    ("images", "labels", "name"),
    [
        (np.zeros((2, 28, 28), np.float32), np.zeros(2, np.int64), "images"),
        (np.zeros((2, 28), np.uint8), np.zeros(2, np.int64), "images"),
        (np.zeros((0, 28, 28), np.uint8), np.zeros(0, np.int64), "images"),
        (np.zeros((2, 28, 28), np.uint8), np.zeros(3, np.int64), "labels"),
        (np.zeros((2, 28, 28), np.uint8), np.zeros(2, np.int32), "labels"),
    ],
)
def test_arrays_of_another_kind_are_refused(images, labels, name):
    with pytest.raises(ValueError, match=f"`{name}` is .* expected"):
        Digits(images, labels)


def test_unknown_split_missing_file_and_wrong_name_are_refused(tmp_path, few):
    with pytest.raises(ValueError, match=r"`split` is 'valid'.*'train', 'test'"):
        load_digits("valid")
    with pytest.raises(FileNotFoundError, match="no such file"):
        load_digits("test", tmp_path / "none.npz")
    with pytest.raises(ValueError, match=r"ends in \.npz"):
        save_digits(tmp_path / "digits.npy", few)


def test_sources_that_hold_something_else_are_refused(tmp_path, few):
    np.savez(tmp_path / "a.npz", images=few.images)
    write_parquet(tmp_path / "b.parquet", few.images, None, other=list(range(6)))
    write_parquet(tmp_path / "c.parquet", [np.zeros((28, 28, 3), np.uint8)], [0])
    write_parquet(tmp_path / "d.parquet", [np.zeros((28, 28), np.uint8), np.zeros((30, 28), np.uint8)], [0, 1])
    (tmp_path / "e.parquet").write_bytes((tmp_path / "c.parquet").read_bytes()[:-20])
    for file, words in {
        "a.npz": "labels",
        "b.parquet": "label.*missing",
        "c.parquet": "image 0 has mode 'RGB'; expected grey",
        "d.parquet": r"image 1 has shape \(30, 28\); expected \(28, 28\)",
        "e.parquet": "not a readable parquet file",
    }.items():
        with pytest.raises(ValueError, match=words):
            load_digits("test", tmp_path / file)


def test_parquet_without_pyarrow_says_what_to_install(tmp_path, few, monkeypatch):
    write_parquet(tmp_path / "digits.parquet", few.images, few.labels)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ImportError, match="pip install pyarrow"):
        load_digits("test", tmp_path / "digits.parquet")
