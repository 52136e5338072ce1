"""What a saved folder holds: full precision unless asked otherwise, no wrapper, the same bytes the second time."""

import json

import pytest
import torch
from diffusers import AutoencoderKL
from torch import nn

from video_diffusion import VideoDiffusionPipeline, VideoUNet3DConditionModel
from video_diffusion.hub.folder import export_folder

CONFIG = {"sampler": "dpm++", "num_inference_steps": 4, "guidance_scale": 2.0, "history_guidance_scale": 1.5}


def read(folder):
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def dtypes(pipeline):
    parts = (pipeline.unet, pipeline.text_encoder)
    return [{parameter.dtype for parameter in part.parameters()} for part in parts]


# ----------------------------------------------------------------------------------------------------------- precision
@pytest.mark.parametrize("kind", ["bert", "clip", "t5"])
def test_an_export_with_half_precision_beside_it_loads_in_full_precision_to_the_last_bit(
    make_pipeline, kind, tmp_path
):
    pipeline = make_pipeline(kind)
    out = export_folder(pipeline, tmp_path / "out", variant="fp16")
    assert "dtype" not in json.loads((out / "text_encoder" / "config.json").read_text())
    loaded = VideoDiffusionPipeline.from_pretrained(out)
    assert dtypes(loaded) == [{torch.float32}, {torch.float32}]
    for name, weights in pipeline.text_encoder.state_dict().items():
        assert torch.equal(loaded.text_encoder.state_dict()[name], weights)
    half = VideoDiffusionPipeline.from_pretrained(out, variant="fp16", dtype=torch.float16)
    kept = {torch.float32} if kind == "t5" else set()  # transformers keeps a part of T5 as it is
    assert dtypes(half) == [{torch.float16}, {torch.float16} | kept]


def test_what_was_loaded_in_half_and_saved_again_is_read_in_float32(make_pipeline, tmp_path):
    make_pipeline("bert").save_pretrained(tmp_path / "full")
    half = VideoDiffusionPipeline.from_pretrained(tmp_path / "full", dtype=torch.bfloat16)
    half.save_pretrained(tmp_path / "half")
    assert "dtype" not in json.loads((tmp_path / "half" / "text_encoder" / "config.json").read_text())
    assert dtypes(VideoDiffusionPipeline.from_pretrained(tmp_path / "half")) == [{torch.float32}, {torch.float32}]


def test_dtypes_are_those_that_were_asked_for_component_by_component(make_pipeline, tmp_path):
    make_pipeline("bert").save_pretrained(tmp_path)
    load = VideoDiffusionPipeline.from_pretrained
    assert dtypes(load(tmp_path, dtype=torch.float16)) == [{torch.float16}, {torch.float16}]
    assert dtypes(load(tmp_path, dtype={"unet": torch.bfloat16})) == [{torch.bfloat16}, {torch.float32}]
    mixed = load(tmp_path, dtype={"unet": torch.bfloat16, "default": torch.float16})
    assert dtypes(mixed) == [{torch.bfloat16}, {torch.float16}]


# --------------------------------------------------------------------------------------------------------- fixed point
@pytest.mark.parametrize("save", [lambda p, out: p.save_pretrained(out), lambda p, out: export_folder(p, out)])
def test_save_load_save_is_a_fixed_point(make_pipeline, save, tmp_path):
    pipeline = make_pipeline("bert")
    pipeline.generation_config = dict(CONFIG)
    for name in ("one", "two", "three"):
        save(pipeline, tmp_path / name)
        pipeline = VideoDiffusionPipeline.from_pretrained(tmp_path / name)
    one, two, three = (read(tmp_path / name) for name in ("one", "two", "three"))
    assert one.keys() == two.keys()
    assert one == two == three


def test_the_generation_config_travels_with_the_folder_and_the_call_takes_it(make_pipeline, sample, tmp_path):
    pipeline = make_pipeline("bert")
    assert pipeline.generation_config == {}
    pipeline.generation_config = dict(CONFIG)
    export_folder(pipeline, tmp_path / "out", variant="fp16")
    loaded = VideoDiffusionPipeline.from_pretrained(tmp_path / "out")
    assert loaded.generation_config == CONFIG
    assert json.loads((tmp_path / "out" / "generation_config.json").read_text()) == CONFIG
    asked = {"prompt": "one", "num_inference_steps": 4, "guidance_scale": 2.0, "history_guidance_scale": 1.0}
    usual = sample(loaded, prompt="one", num_inference_steps=None)
    assert torch.equal(usual, sample(pipeline, **asked))
    assert loaded.guidance_scale == 2.0
    plain = sample(loaded, num_inference_steps=None)  # no prompt: no guidance by text
    assert loaded.guidance_scale == 1.0
    video = torch.rand(1, 2, 1, 16, 16, generator=torch.Generator().manual_seed(3))
    given = sample(loaded, video=video, num_inference_steps=None)
    pipeline.generation_config = {}
    assert torch.equal(plain, sample(pipeline, num_inference_steps=4))
    assert torch.equal(given, sample(pipeline, video=video, num_inference_steps=4, history_guidance_scale=1.5))
    assert (
        torch.equal(  # nothing is given: no guidance by frames, and none in windows or beside reconstruction guidance
            sample(loaded, num_frames=6, num_inference_steps=None),
            sample(pipeline, num_frames=6, num_inference_steps=4),
        )
    )
    sample(loaded, video=video, reconstruction_guidance_scale=1.0)
    assert torch.equal(
        sample(loaded, video=video, num_frames=6), sample(pipeline, video=video, num_frames=6, num_inference_steps=3)
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"steps": 4}', r"`generation_config` has \['steps'\], expected some of"),
        ('{"num_inference_steps": "4"}', "`num_inference_steps` is '4', expected an integer"),
        ('{"num_inference_steps": true}', "`num_inference_steps` is True"),
        ('{"guidance_scale": null}', "`guidance_scale` is None, expected 0 or at least 1"),
        ('{"guidance_scale": NaN}', "`guidance_scale` is nan"),
        ('{"history_guidance_scale": -1}', "`history_guidance_scale` is -1"),
        ('{"sampler": 3}', "`sampler` is 3, expected a name"),
        ("[]", r"generation_config.json holds a list, expected a dict"),
        ("{", r"generation_config.json is no JSON"),
    ],
)
def test_a_generation_config_of_another_form_is_refused_by_name(make_pipeline, content, message, tmp_path):
    make_pipeline().save_pretrained(tmp_path)
    (tmp_path / "generation_config.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        VideoDiffusionPipeline.from_pretrained(tmp_path)


def test_a_config_that_is_gone_leaves_no_file_and_a_wrong_one_is_not_saved(make_pipeline, tmp_path):
    pipeline = make_pipeline()
    pipeline.generation_config = dict(CONFIG)
    pipeline.save_pretrained(tmp_path)
    pipeline.generation_config = {}
    pipeline.save_pretrained(tmp_path)
    assert not (tmp_path / "generation_config.json").exists()
    pipeline.generation_config = {"steps": 3}
    with pytest.raises(ValueError, match=r"`generation_config` has \['steps'\]"):
        pipeline.save_pretrained(tmp_path)


# ------------------------------------------------------------------------------------------------------------ wrappers
class DistributedDataParallel(nn.parallel.DistributedDataParallel):
    """DDP's shape without its processes."""

    def __init__(self, module):
        nn.Module.__init__(self)
        self.module = module


@pytest.mark.parametrize(
    "wrap",
    [
        torch.compile,
        nn.DataParallel,
        DistributedDataParallel,
        lambda unet: DistributedDataParallel(torch.compile(unet)),
    ],
    ids=["compiled", "DataParallel", "DDP", "DDP of compiled"],
)
@pytest.mark.parametrize("way", ["save", "export"])
def test_what_wraps_the_network_is_not_saved(make_pipeline, sample, wrap, way, tmp_path):
    pipeline = make_pipeline("bert")
    pipeline.generation_config = dict(CONFIG)
    plain = sample(pipeline)
    unwrapped, pipeline.unet = pipeline.unet, wrap(pipeline.unet)
    if way == "save":
        pipeline.save_pretrained(tmp_path / "out")
    else:
        export_folder(pipeline, tmp_path / "out", variant="bf16")
        assert (tmp_path / "out" / "unet" / "video_diffusion.py").is_file()
    assert pipeline.unet is not unwrapped  # what runs stays as it was
    loaded = VideoDiffusionPipeline.from_pretrained(tmp_path / "out")
    assert torch.equal(sample(loaded), plain)
    assert loaded.generation_config == CONFIG


def test_a_network_whose_blocks_are_compiled_in_place_is_saved(make_pipeline, sample, tmp_path):
    pipeline = make_pipeline()
    plain = sample(pipeline)
    pipeline.unet.compile_repeated_blocks(backend="eager")
    pipeline.save_pretrained(tmp_path)
    assert torch.equal(sample(VideoDiffusionPipeline.from_pretrained(tmp_path)), plain)


def cast(pipeline):
    pipeline.unet.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)


def adapt(pipeline):
    from peft import LoraConfig

    pipeline.unet.add_adapter(LoraConfig(r=2, target_modules=["to_q"], init_lora_weights=False))


def adapt_text(pipeline):
    from peft import LoraConfig

    pipeline.text_encoder.add_adapter(LoraConfig(r=2, target_modules=["query"], init_lora_weights=False))


def take_away(pipeline):
    pipeline.unet.to("meta")


def replace(pipeline):
    pipeline.text_encoder = nn.Linear(1, 1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (cast, "`unet`, a VideoUNet3DConditionModel, has weights rounded by layerwise casting: save before"),
        (adapt, r"`unet`, a VideoUNet3DConditionModel, has LoRA adapters: `fuse_lora\(\)`"),
        (adapt_text, "`text_encoder`, a BertModel, has LoRA adapters"),
        (take_away, "`unet`, a VideoUNet3DConditionModel, has weights that are offloaded"),
        (replace, "`text_encoder`, a Linear, has no weights that one process could save"),
    ],
)
def test_what_a_folder_could_not_hold_is_refused_before_anything_is_written(make_pipeline, change, message, tmp_path):
    pipeline = make_pipeline("bert")
    change(pipeline)
    with pytest.raises(ValueError, match=message):
        pipeline.save_pretrained(tmp_path / "out")
    with pytest.raises(ValueError, match=message):
        export_folder(pipeline, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_pickles_are_not_written(make_pipeline, tmp_path):
    with pytest.raises(ValueError, match="`safe_serialization` is False, expected True"):
        make_pipeline().save_pretrained(tmp_path, safe_serialization=False)


# --------------------------------------------------------------------------------------------------------------- names
def test_the_embedded_model_is_found_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pipeline = VideoDiffusionPipeline.from_pretrained("moving-mnist")
    assert (pipeline.config._name_or_path, type(pipeline.unet)) == ("moving-mnist", VideoUNet3DConditionModel)


def test_a_folder_of_that_name_comes_first(make_pipeline, sample, tmp_path, monkeypatch):
    pipeline = make_pipeline()
    pipeline.save_pretrained(tmp_path / "moving-mnist")
    monkeypatch.chdir(tmp_path)
    assert torch.equal(sample(VideoDiffusionPipeline.from_pretrained("moving-mnist")), sample(pipeline))


@pytest.mark.parametrize("name", ["runs/digits", "moving-cats", "./digits", "a/b/c", "/nowhere/digits", "~/digits"])
def test_a_path_that_does_not_exist_is_not_silently_a_hub_id(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    said = "is no folder in .*, and as a Hub id it was not loaded" if name == "runs/digits" else "a folder that exists"
    with pytest.raises(OSError, match=f"{name}.*{said}"):
        VideoDiffusionPipeline.from_pretrained(name)


# --------------------------------------------------------------------------------------------------------- other pipes
def test_from_pipe_shares_the_components_and_keeps_their_dtype(make_pipeline, sample):
    pipeline = make_pipeline("bert")
    pipeline.generation_config = dict(CONFIG)
    twin = VideoDiffusionPipeline.from_pipe(pipeline)
    assert twin.unet is pipeline.unet
    assert twin.text_encoder is pipeline.text_encoder
    assert twin.generation_config == CONFIG
    assert torch.equal(sample(twin, prompt="one"), sample(pipeline, prompt="one"))
    torch.nn.Module.to(pipeline.unet, torch.bfloat16)
    torch.nn.Module.to(pipeline.text_encoder, torch.bfloat16)
    assert dtypes(VideoDiffusionPipeline.from_pipe(pipeline)) == [{torch.bfloat16}] * 2
    assert dtypes(VideoDiffusionPipeline.from_pipe(pipeline, dtype=torch.float32)) == [{torch.float32}] * 2


def test_from_pipe_takes_other_components(make_pipeline, sample):
    pipeline, other = make_pipeline(), make_pipeline(seed=5)
    torch.manual_seed(0)
    blocks = {"down_block_types": ["DownEncoderBlock2D"] * 2, "up_block_types": ["UpDecoderBlock2D"] * 2}
    vae = AutoencoderKL(1, 1, block_out_channels=(4, 4), latent_channels=1, norm_num_groups=2, **blocks).eval()
    made = VideoDiffusionPipeline.from_pipe(pipeline, unet=other.unet, vae=vae)
    assert made.unet is other.unet
    assert made.vae is vae
    assert sample(made).shape == (1, 4, 1, 32, 32)
