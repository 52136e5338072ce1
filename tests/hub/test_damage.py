"""An exported pipeline's folder, each file damaged in each way: said, or the clips are the same as before."""

import json
import random
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from denoisers import SMALLEST, tiny_denoiser, tiny_text
from video_diffusion import VideoDiffusionPipeline, VPContinuousScheduler
from video_diffusion.hub.folder import export_folder
from video_diffusion.hub.integrity import MANIFEST, seal_pipeline, verify_pipeline

WEIGHTS = "unet/diffusion_pytorch_model.safetensors"
FLIPS = 1  # a file; each costs a loading


def make(seed, gamma, words):
    unet = tiny_denoiser(seed, **SMALLEST | {"cross_attention_dim": 8, "block_out_channels": (8,)})
    pipeline = VideoDiffusionPipeline(unet, VPContinuousScheduler(gamma=gamma), **tiny_text(words))
    pipeline.generation_config = {"num_inference_steps": seed + 2}
    return pipeline


@pytest.fixture(scope="module")
def exports(tmp_path_factory):
    """Two exports that differ in all they can, in files of the same names."""
    place = tmp_path_factory.mktemp("exports")
    return [export_folder(make(i, 0.3 + i / 4, ["one", "two"][:: 1 - 2 * i]), place / f"{i}" / "tiny") for i in (0, 1)]


@pytest.fixture
def folder(exports, tmp_path):
    return shutil.copytree(exports[0], tmp_path / "tiny")


def clips(folder):
    pipeline = VideoDiffusionPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline("one two", generator=torch.Generator().manual_seed(0), output_type="pt").frames


def names(folder):
    return sorted(file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file())


def flip(file, other, rng):
    content = bytearray(file.read_bytes())
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    file.write_bytes(content)


def truncate(file, other, rng):
    file.write_bytes(file.read_bytes()[: -file.stat().st_size // 3])


def delete(file, other, rng):
    file.unlink()


def swap(file, other, rng):
    file.write_bytes(other.read_bytes())


@pytest.mark.parametrize("harm", [flip, truncate, delete, swap], ids=lambda harm: harm.__name__)
def test_each_file_damaged_in_each_way_is_said_or_changes_nothing(harm, exports, tmp_path, caplog):
    expected, rng = clips(exports[0]), random.Random(18)
    assert not torch.equal(expected, clips(exports[1]))
    files = names(exports[0])
    assert {WEIGHTS, MANIFEST, "tokenizer/tokenizer.json", "text_encoder/model.safetensors"} <= set(files)
    folder, unseen = tmp_path / "tiny", []
    for name in files * (FLIPS if harm is flip else 1):
        shutil.copytree(exports[0], folder)
        harm(folder / name, exports[1] / name, rng)
        if same := (folder / name).is_file() and (folder / name).read_bytes() == (exports[0] / name).read_bytes():
            assert harm is swap, name  # no harm: this file is the same in both
        caplog.clear()
        try:
            got = clips(folder)
        except (ValueError, OSError) as error:
            if str(folder) not in str(error) and name not in str(error):
                pytest.fail(f"{name}: {error}")
        else:
            if not torch.equal(got, expected):
                assert name in caplog.text, (name, "other clips without a word")
            elif name not in caplog.text and not same:
                unseen.append(name)
        shutil.rmtree(folder)
    assert all(name.endswith(".py") or name == MANIFEST for name in unseen), unseen


def test_weights_that_were_changed_are_refused_with_what_to_do(folder):
    weights = load_file(folder / WEIGHTS)
    save_file({name: value + 1e-6 for name, value in weights.items()}, folder / WEIGHTS)
    with pytest.raises(
        ValueError, match=r"was changed since the pipeline was saved .*Fetch or make it again"
    ) as caught:
        VideoDiffusionPipeline.from_pretrained(folder)
    assert f"{folder / WEIGHTS} was changed" in str(caught.value)
    assert f"on purpose, remove {folder / MANIFEST} or save the pipeline again" in str(caught.value)
    (folder / MANIFEST).unlink()
    VideoDiffusionPipeline.from_pretrained(folder)
    seal_pipeline(folder)
    verify_pipeline(folder)


def test_json_that_was_edited_by_hand_is_read_and_said(folder, caplog):
    file = folder / "generation_config.json"
    file.write_text(json.dumps({"num_inference_steps": 3}))
    assert VideoDiffusionPipeline.from_pretrained(folder).generation_config == {"num_inference_steps": 3}
    (said,) = [record.getMessage() for record in caplog.records if "manifest" in record.getMessage()]
    assert said.startswith(f"{file} was changed since the pipeline was saved. If it was changed on purpose, remove")


def test_a_component_that_is_given_is_not_looked_at_and_saving_again_writes_a_new_manifest(folder, caplog):
    broken = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(broken[:-1] + b"\x07")
    pipeline = VideoDiffusionPipeline.from_pretrained(folder, unet=make(1, 0.3, ["one", "two"]).unet)
    pipeline.save_pretrained(folder)
    caplog.clear()
    VideoDiffusionPipeline.from_pretrained(folder)
    assert "manifest" not in caplog.text


def test_a_manifest_names_what_is_read_and_nothing_outside_of_the_folder(folder, caplog):
    (folder / "README.md").write_text("a card, filled in later")
    (folder / "run.json").write_text("{}")
    seal_pipeline(folder)
    files = json.loads((folder / MANIFEST).read_text())["files"]
    code = {name for name in names(folder) if name.endswith(".py")}
    assert set(names(folder)) - set(files) == {"README.md", "run.json", MANIFEST} | code
    (folder / MANIFEST).write_text(json.dumps({"files": {"../../etc/passwd": "0"}, "sha256": ""}))
    VideoDiffusionPipeline.from_pretrained(folder)
    assert (
        f"{folder}: {MANIFEST} is another's, or was changed, so that damage to its files would not be seen"
        in caplog.text
    )
