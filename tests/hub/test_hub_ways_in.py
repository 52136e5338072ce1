"""A published pipeline as people load it, each way in a fresh process: with the package, without it, offline."""

import ast
import os
import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from denoisers import SMALLEST, tiny_denoiser
from loopback_hub import LoopbackHub
from video_diffusion import VideoDiffusionPipeline, VPContinuousScheduler
from video_diffusion.data import MovingMNIST, write_parquet
from video_diffusion.hub.finding import PACKAGE
from video_diffusion.hub.folder import CODE_FILES, export_folder

TOKEN = "hf_" + "a" * 30
# What the pipeline's methods import that need the package.
OF_METHODS = {f"video_diffusion.hub.{name}" for name in ("finding", "folder", "integrity", "loading", "publish")}
ID = "alice/moving-digits"
SAMPLE = """
    def sample(pipeline):
        torch.set_num_threads(1)
        pipeline.set_progress_bar_config(disable=True)
        return pipeline(num_inference_steps=3, generator=torch.Generator().manual_seed(0), output_type="pt").frames
"""
WITH_PACKAGE = """
    import sys, torch
    from video_diffusion import VideoDiffusionPipeline
    pipeline = VideoDiffusionPipeline.from_pretrained(ID)
    assert type(pipeline).__module__ == "video_diffusion.model.pipeline"
    assert pipeline.generation_config == {"num_inference_steps": 7}
    assert type(pipeline.unet).__module__ == "video_diffusion.model.denoiser"
    assert not any(name.startswith("diffusers_modules") for name in sys.modules), "code from the Hub was imported"
"""
WITHOUT_PACKAGE = """
    import sys, torch

    class Absent:
        def find_spec(self, name, path=None, target=None):
            if name.split(".")[0] == "video_diffusion":
                raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    sys.meta_path.insert(0, Absent())
    from diffusers import DiffusionPipeline
    from huggingface_hub import constants, snapshot_download
    place = snapshot_download(ID) if constants.HF_HUB_OFFLINE else ID  # diffusers asks the Hub about code by its id
    pipeline = DiffusionPipeline.from_pretrained(place, custom_pipeline=place, trust_remote_code=True)
    snapshot_download(ID)
    assert type(pipeline).__name__ == "VideoDiffusionPipeline"
    assert type(pipeline).__module__.startswith("diffusers_modules.")
    assert type(pipeline.unet).__module__.startswith("diffusers_modules.")
    assert "video_diffusion" not in sys.modules
"""
SAVE = """
    torch.save({"frames": sample(pipeline), "weights": pipeline.unet.state_dict()}, OUT)
"""
VARIANTS = """
    half = VideoDiffusionPipeline.from_pretrained(ID, variant="fp16", dtype=torch.float16)
    full = VideoDiffusionPipeline.from_pretrained(ID, variant="fp16")
    branch = VideoDiffusionPipeline.from_pretrained(ID, revision="other")
    assert {p.dtype for p in half.unet.parameters()} == {torch.float16}
    assert {p.dtype for p in full.unet.parameters()} == {torch.float32}
    assert (pipeline.scheduler.config.gamma, branch.scheduler.config.gamma) == (0.5, 0.25)
    for name, weights in pipeline.unet.state_dict().items():
        assert torch.equal(half.unet.state_dict()[name], weights.half()), name
        assert torch.equal(full.unet.state_dict()[name], weights.half().float()), name
"""
REFUSED = """
    for wanted, revision, error in ((ID, "nowhere", OSError), ("alice/nothing", None, OSError)):
        try:
            VideoDiffusionPipeline.from_pretrained(wanted, revision=revision)
        except error:
            continue
        raise AssertionError(f"{wanted} at {revision} was loaded")
    for name, reason in (("pickled", "necessary `safetensors` weights"), ("escaping", "escaped.json")):
        try:
            VideoDiffusionPipeline.from_pretrained("alice/" + name)
        except (ValueError, OSError) as error:
            assert reason in str(error), error
            continue
        raise AssertionError(f"{name} was loaded")
"""
CLIPS = """
    from datasets import load_dataset
    from video_diffusion.data import MovingMNIST
    clips = load_dataset("alice/clips", split="test").with_format("numpy")
    expected = MovingMNIST(split="test", num_frames=3, image_size=32).batch(range(4))
    assert (clips[:]["video"] == expected).all()
"""
STREAM = """
    from video_diffusion.data import MovingMNIST, stream_videos
    stream = stream_videos("alice/clips", "test", num_frames=3, image_size=32)
    assert (stream.first(4)[..., 0] == MovingMNIST(split="test", num_frames=3, image_size=32).batch(range(4))).all()
    assert len(list(stream.draw([[0, 1], [6, 7]]))) == 2
"""


def python(code, **variables):
    """Runs code in a fresh process."""
    result = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", **variables},
    )
    assert result.returncode == 0, result.stderr
    return result.stdout + result.stderr


def run_both(scripts, variables):
    """Runs the scripts at the same time; what they print."""
    with ThreadPoolExecutor() as pool:
        return "".join(pool.map(lambda way: python(scripts[way], **variables[way]), scripts))


def script(place, *parts):
    head = f"ID, OUT = {ID!r}, {str(place)!r}\n"
    return head + "".join(textwrap.dedent(part) for part in parts)


def sample(pipeline):
    names = {"torch": torch}
    exec(textwrap.dedent(SAMPLE), names)
    threads = torch.get_num_threads()
    frames = names["sample"](pipeline)
    torch.set_num_threads(threads)
    return frames


def fill(hub, pipeline, folder):
    """The repository, a branch of it with another γ; one with pickles only, one with a name that escapes; clips."""
    files = read(export_folder(pipeline, folder / "full", variant="fp16", max_shard_size="60KB"))
    hub.put(ID, files, private=True)
    other = VideoDiffusionPipeline(pipeline.unet, VPContinuousScheduler(gamma=0.25))
    hub.put(ID, read(export_folder(other, folder / "other")), revision="other")
    whole = read(export_folder(pipeline, folder / "whole"))
    weights = "unet/diffusion_pytorch_model.safetensors"
    kept = {name: data for name, data in whole.items() if name != weights}
    hub.put("alice/pickled", kept | {"unet/diffusion_pytorch_model.bin": whole[weights]})
    hub.put("alice/escaping", whole | {"scheduler/../../../../../escaped.json": b"{}"})
    clips = MovingMNIST(split="test", num_frames=3, image_size=32, num_videos=4)
    hub.put("alice/clips", read(write_parquet(folder / "clips", clips)), kind="datasets", private=True)
    return files


def read(folder):
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@pytest.fixture(scope="module")
def pipeline():
    pipeline = VideoDiffusionPipeline(tiny_denoiser(**SMALLEST), VPContinuousScheduler(gamma=0.5))
    pipeline.generation_config = {"num_inference_steps": 7}
    return pipeline


def test_a_private_pipeline_loads_with_and_without_the_package_online_and_offline_to_the_same_bits(pipeline, tmp_path):
    ways = {"with": (WITH_PACKAGE, SAMPLE, SAVE), "without": (WITHOUT_PACKAGE, SAMPLE, SAVE)}
    expected = sample(pipeline)
    homes = {way: tmp_path / f"home-{way}" for way in ways}
    with LoopbackHub({TOKEN: "alice"}) as hub:
        files = fill(hub, pipeline, tmp_path)
        assert sum(name.endswith("fp16.safetensors") for name in files) == 1
        assert sum(name.endswith(".safetensors") for name in files) > 2  # the full weights are sharded
        more = {"with": (VARIANTS, REFUSED, CLIPS, STREAM), "without": ()}
        online = {way: script(tmp_path / f"{way}.pt", *ways[way], *more[way]) for way in ways}
        printed = run_both(online, {way: hub.environment(homes[way], TOKEN) for way in ways})
        to_storage = [token for method, path, token in hub.requests if path.startswith("/lfs/")]
        assert to_storage
        assert set(to_storage) == {None}  # the token stays with the Hub
    offline = {way: script(tmp_path / f"{way}-offline.pt", *ways[way]) for way in ways}
    printed += run_both(offline, {way: {**hub.environment(homes[way]), "HF_HUB_OFFLINE": "1"} for way in ways})
    for name in ("with", "without", "with-offline", "without-offline"):
        saved = torch.load(tmp_path / f"{name}.pt", weights_only=True)
        assert torch.equal(saved["frames"], expected), name
        for key, weights in pipeline.unet.state_dict().items():
            assert torch.equal(saved["weights"][key], weights), (name, key)
    assert TOKEN not in printed
    assert not [file for file in tmp_path.rglob("*") if "escaped" in file.name]


def test_the_code_in_a_repository_is_the_packages_own_and_imports_third_party_packages_and_files_beside_it(
    pipeline, tmp_path
):
    out = export_folder(pipeline, tmp_path / "hub")
    code = set(out.rglob("*.py"))
    allowed = {"diffusers", "einops", "numpy", "peft", "PIL", "torch"} | set(sys.stdlib_module_names)
    needed_by_lora = {"peft"}  # imported where LoRA is loaded, never at the top of a file
    assert {out / place for place, _ in CODE_FILES.values()} <= code
    sources = dict(CODE_FILES.values())
    for file in code:
        source = sources.get(file.relative_to(out).as_posix(), PACKAGE / "model" / file.name)
        assert file.read_bytes() == source.read_bytes()
        tree = ast.parse(file.read_text())
        assert not needed_by_lora & {
            alias.name for node in tree.body if isinstance(node, ast.Import) for alias in node.names
        }
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                names = {alias.name for alias in node.names}
                assert names <= OF_METHODS or {name.split(".")[0] for name in names} <= allowed, file
            elif isinstance(node, ast.ImportFrom) and node.level:
                assert file.with_name(f"{node.module}.py") in code, file
            elif isinstance(node, ast.ImportFrom):
                assert node.module.split(".")[0] in allowed, file
