"""What the package writes: readable as the umask says; uploads lie in a folder of the server's own."""

import os
import stat

import numpy as np
import pytest

from denoisers import SMALLEST, tiny_denoiser
from video_diffusion import VideoDiffusionPipeline, VPContinuousScheduler
from video_diffusion.data import MovingMNIST, write_parquet
from video_diffusion.data.video_io import write_gif
from video_diffusion.demo.studio import Studio
from video_diffusion.hub.folder import export_folder


@pytest.fixture(params=[0o022, 0o027, 0o077], ids=oct)
def umask(request):
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def modes(folder):
    paths = [folder, *folder.rglob("*")]
    return {path.name: (stat.S_IMODE(path.stat().st_mode), path.is_dir()) for path in paths if not path.is_symlink()}


def test_exports_data_sets_and_clips_have_the_permissions_of_the_umask(umask, tmp_path):
    pipeline = VideoDiffusionPipeline(tiny_denoiser(**SMALLEST), VPContinuousScheduler())
    write_parquet(tmp_path / "clips", MovingMNIST(split="test", num_frames=3, image_size=32, num_videos=2))
    write_gif(np.zeros((2, 8, 8, 1), np.uint8), tmp_path / "samples" / "clip.gif", scale=1)
    found = (
        modes(export_folder(pipeline, tmp_path / "export")) | modes(tmp_path / "clips") | modes(tmp_path / "samples")
    )
    assert {"diffusion_pytorch_model.safetensors", "manifest.json", "clip.gif", "README.md"} <= set(found)
    for name, (mode, is_folder) in found.items():
        assert mode == (0o777 if is_folder else 0o666) & ~umask, name


def test_what_visitors_upload_and_get_lies_in_a_folder_of_the_servers_own(monkeypatch):
    pytest.importorskip("gradio")
    import gradio
    from gradio.utils import get_upload_folder

    from video_diffusion.demo import page

    pipeline, seen = VideoDiffusionPipeline(tiny_denoiser(**SMALLEST), VPContinuousScheduler()), []

    def launch(blocks, **options):
        seen.append((blocks.GRADIO_CACHE, get_upload_folder()))

    monkeypatch.setenv("GRADIO_TEMP_DIR", "mine")  # so that it is put back at the end
    monkeypatch.delenv("GRADIO_TEMP_DIR")
    monkeypatch.setattr("video_diffusion.sampling.load_pipeline", lambda *given, **named: pipeline)
    monkeypatch.setattr("PIL.Image.MAX_IMAGE_PIXELS", None)
    monkeypatch.setattr(gradio.Blocks, "launch", launch)
    page.serve("mine")
    ((cache, uploads),) = seen
    assert cache == uploads
    assert os.path.basename(os.path.dirname(uploads)).startswith("video-diffusion-demo-")


def test_the_folder_of_a_studio_is_for_its_owner_only():
    studio = Studio(VideoDiffusionPipeline(tiny_denoiser(**SMALLEST), VPContinuousScheduler()))
    assert stat.S_IMODE(os.stat(studio.folder.name).st_mode) == 0o700
    assert os.path.dirname(studio.uploads) == studio.folder.name
