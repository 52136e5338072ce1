"""What of a pipeline's folder is refused: pickles, names that lead out, classes that are not ours."""

import json

import pytest
import torch

from denoisers import SMALLEST, tiny_denoiser
from video_diffusion import VideoDiffusionPipeline, VPContinuousScheduler
from video_diffusion.hub.configs import check_index
from video_diffusion.hub.folder import export_folder
from video_diffusion.hub.loading import refuse_pickles

FULL = "diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def pipeline():
    return VideoDiffusionPipeline(tiny_denoiser(**SMALLEST), VPContinuousScheduler())


@pytest.fixture
def folder(pipeline, tmp_path):
    return export_folder(pipeline, tmp_path / "digits")


def change_index(folder, **changes):
    file = folder / "model_index.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


@pytest.mark.parametrize("ending", ["bin", "pt", "pth", "ckpt", "pkl"])
def test_a_folder_with_weights_in_a_pickle_only_is_refused_before_anything_is_read(folder, ending):
    marker = folder / "ran"
    (folder / "unet" / FULL).unlink()

    class Bomb:
        def __reduce__(self):
            return marker.touch, ()

    torch.save(Bomb(), folder / "unet" / f"diffusion_pytorch_model.{ending}")
    with pytest.raises(ValueError, match=rf"unet/diffusion_pytorch_model.{ending} is a pickle, expected .safetensors"):
        VideoDiffusionPipeline.from_pretrained(folder)
    with pytest.raises(ValueError, match=r"`use_safetensors` is False, expected True"):
        VideoDiffusionPipeline.from_pretrained(folder, use_safetensors=False)
    assert not marker.exists()


def test_a_pickle_beside_safetensors_or_outside_of_the_components_is_left_alone(folder):
    (folder / "unet" / "diffusion_pytorch_model.bin").write_bytes(b"never read")
    (folder / "optimizer.pt").write_bytes(b"never read")
    (folder / "checkpoint-500").mkdir()
    (folder / "checkpoint-500" / "optimizer.bin").write_bytes(b"never read")
    VideoDiffusionPipeline.from_pretrained(folder)
    index = {"unet": [], "text_encoder": []}
    refuse_pickles(["unet/a.safetensors", "unet/a.bin", "optimizer.pt", "checkpoint-500/optimizer.bin"], index)
    with pytest.raises(ValueError, match=r"text_encoder/a.bin is a pickle"):
        refuse_pickles(["unet/a.safetensors", "text_encoder/a.bin"], index)


def test_a_list_of_shards_that_names_a_file_elsewhere_is_refused(pipeline, folder, tmp_path):
    sharded = export_folder(pipeline, tmp_path / "sharded", max_shard_size="20KB")
    listing = next((sharded / "unet").glob("*.index.json"))
    text = listing.read_text()
    for place in (f"../../digits/unet/{FULL}", str(folder / "unet" / FULL), "missing.safetensors"):
        changed = json.loads(text)
        changed["weight_map"] = dict.fromkeys(changed["weight_map"], place)
        listing.write_text(json.dumps(changed))
        with pytest.raises(ValueError, match=r"index.json names the weights file .*, expected files of its folder"):
            VideoDiffusionPipeline.from_pretrained(sharded)


def test_an_index_whose_names_lead_out_or_name_no_component_of_ours_is_refused(folder):
    own = ["video_diffusion", "VideoUNet3DConditionModel"]
    for name in ("../other", "/tmp/other", "a/b", ""):
        with pytest.raises(ValueError, match=r"expected a plain name"):
            check_index({name: own})
    for attribute in ("import_module", "VideoDiffusionPipeline", "__getattr__"):
        change_index(folder, unet=["video_diffusion", attribute])
        with pytest.raises(ValueError, match=rf"unet = \['video_diffusion', '{attribute}'\], expected one of our"):
            VideoDiffusionPipeline.from_pretrained(folder)
