import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from diffusers import DDIMScheduler, DiffusionPipeline, UNet3DConditionModel

import video_diffusion
from denoisers import SMALLEST, tiny_denoiser
from video_diffusion import VideoDiffusionPipeline, VideoUNet3DConditionModel, VPContinuousScheduler
from video_diffusion.hub.finding import resolve_model
from video_diffusion.hub.folder import SIBLINGS, export_folder

OWN_INDEX = {
    "unet": ["video_diffusion", "VideoUNet3DConditionModel"],
    "scheduler": ["video_diffusion", "VPContinuousScheduler"],
}
WEIGHTS = "unet/diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def pipeline():
    return VideoDiffusionPipeline(tiny_denoiser(**SMALLEST), VPContinuousScheduler(gamma=0.7, schedule="linear"))


@pytest.fixture
def folder(pipeline, tmp_path):
    pipeline.save_pretrained(tmp_path / "saved")
    return tmp_path / "saved"


def sample(pipeline):
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    return pipeline(num_inference_steps=3, generator=generator, output_type="pt").frames


def read_index(folder):
    return json.loads((folder / "model_index.json").read_text())


def change_config(folder, **changes):
    file = folder / "unet" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def run_python(code, **environment):
    """Runs code in a fresh process; returns its output."""
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        env=os.environ | environment | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


# ------------------------------------------------------------------------------------------------------- saved folders
@pytest.mark.parametrize("options", [{}, {"low_cpu_mem_usage": False}])
def test_a_saved_pipeline_loads_and_makes_the_same_bits(pipeline, folder, options):
    loaded = VideoDiffusionPipeline.from_pretrained(folder, **options)
    assert torch.equal(sample(loaded), sample(pipeline))
    assert (loaded.scheduler.config.gamma, loaded.scheduler.config.schedule) == (0.7, "linear")
    assert not loaded.unet.training


def test_the_index_names_our_components_by_the_library_also_after_loading_and_saving_again(folder, tmp_path):
    VideoDiffusionPipeline.from_pretrained(folder).save_pretrained(tmp_path / "again")
    for place in (folder, tmp_path / "again"):
        index = read_index(place)
        assert {name: index[name] for name in OWN_INDEX} == OWN_INDEX
        assert index["_class_name"] == "VideoDiffusionPipeline"
        assert index["vae"] == [None, None]


def test_a_stock_scheduler_put_in_place_of_ours_is_saved_and_loaded(pipeline, folder, tmp_path):
    loaded = VideoDiffusionPipeline.from_pretrained(folder)
    loaded.scheduler = loaded.scheduler.as_diffusers(DDIMScheduler)
    loaded.save_pretrained(tmp_path / "stock")
    assert read_index(tmp_path / "stock")["scheduler"] == ["diffusers", "DDIMScheduler"]
    again = VideoDiffusionPipeline.from_pretrained(tmp_path / "stock")
    assert torch.equal(sample(again), sample(loaded))


def test_components_can_be_passed_in_place_of_the_saved_ones(folder):
    scheduler = VPContinuousScheduler(gamma=0.1)
    loaded = VideoDiffusionPipeline.from_pretrained(folder, scheduler=scheduler)
    assert loaded.scheduler is scheduler


def test_dtype_is_honoured_and_a_string_refused(folder):
    for dtype in (torch.bfloat16, {"unet": torch.bfloat16}, {"default": torch.bfloat16}):
        assert VideoDiffusionPipeline.from_pretrained(folder, dtype=dtype).unet.dtype == torch.bfloat16
    with pytest.raises(ValueError, match=r"`dtype` is the string 'float16', expected a torch.dtype"):
        VideoDiffusionPipeline.from_pretrained(folder, dtype="float16")


def test_loading_options_that_would_be_ignored_are_refused(folder):
    with pytest.raises(ValueError, match=r"`quantization_config` is a str, expected a diffusers.PipelineQuantization"):
        VideoDiffusionPipeline.from_pretrained(folder, quantization_config="int8")
    with pytest.raises(ValueError, match=r"`use_flashpack` is True, expected False"):
        VideoDiffusionPipeline.from_pretrained(folder, use_flashpack=True)


def test_a_stock_unet_is_saved_and_loaded_beside_our_scheduler(tmp_path):
    blocks = {"down_block_types": ("DownBlock3D",), "up_block_types": ("UpBlock3D",), "block_out_channels": (8,)}
    unet = UNet3DConditionModel(8, 1, 1, norm_num_groups=4, cross_attention_dim=8, attention_head_dim=4, **blocks)
    VideoDiffusionPipeline(unet, VPContinuousScheduler()).save_pretrained(tmp_path)
    loaded = VideoDiffusionPipeline.from_pretrained(tmp_path)
    assert isinstance(loaded.unet, UNet3DConditionModel)
    assert isinstance(loaded.scheduler, VPContinuousScheduler)


# ------------------------------------------------------------------------------------------------------ broken folders
def test_a_truncated_weights_file_is_named(folder):
    data = (folder / WEIGHTS).read_bytes()
    for length in (0, 20, len(data) // 2, len(data) - 1):
        (folder / WEIGHTS).write_bytes(data[:length])
        with pytest.raises(ValueError, match=f"diffusion_pytorch_model.safetensors .{length} bytes. is broken"):
            VideoDiffusionPipeline.from_pretrained(folder)


def test_a_folder_without_weights_is_named(folder):
    (folder / WEIGHTS).unlink()
    with pytest.raises(OSError, match=r"unet holds no weights, expected a .safetensors file"):
        VideoDiffusionPipeline.from_pretrained(folder)


@pytest.mark.parametrize("changes", [{"block_out_channels": [8, 16]}, {"layers_per_block": 2}, {"patch_size": 1}])
def test_weights_of_another_config_are_refused(folder, changes):
    change_config(folder, **changes)
    for options in ({}, {"low_cpu_mem_usage": False}):
        with pytest.raises(ValueError, match=r"unet.config.json asks for .* not those of its config.json"):
            VideoDiffusionPipeline.from_pretrained(folder, **options)


def test_a_config_with_fewer_layers_than_weights_is_refused(folder, tmp_path):
    change_config(folder, layers_per_block=2)
    config = json.loads((folder / "unet" / "config.json").read_text())
    VideoUNet3DConditionModel.from_config(config).save_pretrained(folder / "unet")
    change_config(folder, layers_per_block=1)
    with pytest.raises(ValueError, match=r"safetensors was changed since the pipeline was saved"):
        VideoDiffusionPipeline.from_pretrained(folder)
    (folder / "manifest.json").unlink()
    with pytest.raises(ValueError, match=r"unexpected_keys"):
        VideoDiffusionPipeline.from_pretrained(folder)


def test_what_is_no_pipeline_folder_is_refused(folder, tmp_path):
    with pytest.raises(OSError, match=r"nowhere', expected an embedded model .* a folder that exists"):
        VideoDiffusionPipeline.from_pretrained(tmp_path / "nowhere")
    (folder / "model_index.json").unlink()
    with pytest.raises(OSError, match=r"expected one that holds a model_index.json"):
        VideoDiffusionPipeline.from_pretrained(folder)


# ------------------------------------------------------------------------------------------------------------- exports
def test_an_export_loads_with_the_package_and_forgets_where_it_came_from(pipeline, folder, tmp_path):
    out = export_folder(folder, tmp_path / "hub")
    assert torch.equal(sample(VideoDiffusionPipeline.from_pretrained(out)), sample(pipeline))
    for file in out.rglob("*.json"):
        assert str(tmp_path) not in file.read_text()
    assert {name: read_index(out)[name] for name in OWN_INDEX} == OWN_INDEX


def test_an_export_loads_with_diffusers_alone_and_makes_the_same_clip(pipeline, tmp_path):
    out = export_folder(pipeline, tmp_path / "hub")
    place = str(out)
    code = f"""
        import sys
        sys.modules["video_diffusion"] = None  # an import of our package fails
        import torch
        from diffusers import DiffusionPipeline
        pipeline = DiffusionPipeline.from_pretrained({place!r}, custom_pipeline={place!r}, trust_remote_code=True)
        generator = torch.Generator().manual_seed(0)
        frames = pipeline(num_inference_steps=3, generator=generator, output_type="pt").frames
        long = pipeline(num_inference_steps=1, num_frames=9, reconstruction_guidance_scale=1.0, output_type="pt")
        assert long.frames.shape == (1, 9, 1, 8, 8), long.frames.shape
        torch.save(frames, {str(tmp_path / "frames.pt")!r})
        pipeline.save_pretrained({str(tmp_path / "again")!r})
        print(type(pipeline.unet).__module__)
    """
    assert run_python(code, HF_MODULES_CACHE=str(tmp_path / "modules")).startswith("diffusers_modules.local")
    torch.testing.assert_close(torch.load(tmp_path / "frames.pt"), sample(pipeline), atol=1e-5, rtol=0)
    assert {name: read_index(tmp_path / "again")[name] for name in OWN_INDEX} == OWN_INDEX


def test_importing_the_package_loads_neither_torch_nor_diffusers():
    code = """
        import sys, video_diffusion
        print(sorted({"torch", "diffusers", "numpy"} & set(sys.modules)))
    """
    assert run_python(code).strip() == "[]"


def test_half_precision_weights_lie_beside_the_full_ones(pipeline, tmp_path):
    out = export_folder(pipeline, tmp_path / "hub", variant="fp16", max_shard_size="20KB")
    full = VideoDiffusionPipeline.from_pretrained(out).unet.state_dict()
    half = VideoDiffusionPipeline.from_pretrained(out, variant="fp16", dtype=torch.float16).unet.state_dict()
    assert max(file.stat().st_size for file in (out / "unet").glob("*.safetensors")) < 40_000
    for name, weights in pipeline.unet.state_dict().items():
        assert torch.equal(full[name], weights)
        assert torch.equal(half[name], weights.half())
    assert pipeline.unet.dtype == torch.float32
    with pytest.raises(ValueError, match=r"`variant` is 'int8'"):
        export_folder(pipeline, tmp_path / "other", variant="int8")


def test_all_that_the_pipelines_file_imports_relatively_is_exported_and_imports_nothing_local():
    from diffusers.utils.dynamic_modules_utils import get_relative_imports

    source, siblings = Path(video_diffusion.__path__[0]) / "model", SIBLINGS["VideoDiffusionPipeline"]
    assert {f"{name}.py" for name in get_relative_imports(source / "pipeline.py")} == set(siblings)
    for name in siblings:
        assert {f"{other}.py" for other in get_relative_imports(source / name)} <= set(siblings)
        assert "import video_diffusion" not in (source / name).read_text()
        assert "from video_diffusion" not in (source / name).read_text()


def test_linked_code_is_the_packages_own(pipeline, tmp_path):
    out = export_folder(pipeline, tmp_path / "hub", link=True)
    for place, module in (
        ("pipeline.py", "pipeline"),
        ("windows.py", "windows"),
        ("unet/video_diffusion.py", "denoiser"),
    ):
        assert (out / place).is_symlink()
        assert not os.path.isabs(os.readlink(out / place))
        assert (out / place).resolve().samefile(os.path.join(video_diffusion.__path__[0], "model", f"{module}.py"))


def test_an_export_replaces_the_old_one_whole_and_keeps_the_card(pipeline, tmp_path):
    out = export_folder(pipeline, tmp_path / "hub", max_shard_size="20KB")
    (out / "README.md").write_text("card")
    export_folder(pipeline, out)
    assert (out / "README.md").read_text() == "card"
    assert [file.name for file in (out / "unet").glob("*.safetensors")] == ["diffusion_pytorch_model.safetensors"]
    assert [entry.name for entry in tmp_path.iterdir()] == ["hub"]


def test_an_interrupted_export_leaves_the_old_folder_and_no_draft(pipeline, tmp_path, monkeypatch):
    out = export_folder(pipeline, tmp_path / "hub")
    before = (out / WEIGHTS).read_bytes()
    monkeypatch.setattr("shutil.copyfile", lambda *args: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        export_folder(pipeline, out)
    assert (out / WEIGHTS).read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["hub"]


def test_an_export_never_overwrites_a_folder_of_something_else(pipeline, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"`out` is .* expected a new or empty folder or that of a pipeline"):
        export_folder(pipeline, tmp_path)


# --------------------------------------------------------------------------------------------------------------- names
def test_model_names_resolve_to_embedded_folder_or_hub_id(folder, tmp_path, monkeypatch):
    monkeypatch.setattr("video_diffusion.hub.finding.SHELVES", (tmp_path / "none", tmp_path))
    assert resolve_model("saved") == str(folder)
    assert resolve_model(str(folder)) == str(folder)
    assert resolve_model("somebody/some-model") == "somebody/some-model"
    with pytest.raises(ValueError, match=r"`model` is 'moving-cats', expected an embedded model \(saved\)"):
        resolve_model("moving-cats")
    with pytest.raises(ValueError, match=r"expected one that holds a model_index.json"):
        resolve_model(str(tmp_path))


def test_public_names_are_the_classes_and_the_mixins_that_diffusers_looks_for():
    assert issubclass(VideoDiffusionPipeline, DiffusionPipeline)
    assert issubclass(VideoUNet3DConditionModel, video_diffusion.ModelMixin)
    assert issubclass(VPContinuousScheduler, video_diffusion.SchedulerMixin)
    assert set(video_diffusion.__all__) <= set(dir(video_diffusion))
    with pytest.raises(AttributeError, match=r"no attribute 'Nonsense'"):
        _ = video_diffusion.Nonsense
