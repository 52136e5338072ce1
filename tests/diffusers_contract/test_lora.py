"""The LoRA methods of diffusers' pipelines, on the network and the text encoder."""

import pytest
import torch

from video_diffusion import VideoDiffusionPipeline

peft = pytest.importorskip("peft")
from peft import LoraConfig  # noqa: E402
from peft.utils import get_peft_model_state_dict  # noqa: E402

TARGETS = {"unet": ["to_q", "to_k", "to_v"], "text_encoder": ["query", "value"]}


def configure(part, seed):
    torch.manual_seed(seed)
    return LoraConfig(r=2, lora_alpha=4, target_modules=TARGETS[part], init_lora_weights=False)


@pytest.fixture
def trained(make_pipeline):
    """A pipeline with adapters as training leaves them."""
    pipeline = make_pipeline("bert")
    pipeline.unet.add_adapter(configure("unet", 1), adapter_name="style")
    pipeline.text_encoder.add_adapter(configure("text_encoder", 2), adapter_name="style")
    for part in (pipeline.unet, pipeline.text_encoder):
        for name, weights in part.named_parameters():
            if "lora_" in name:
                weights.data = 0.3 * torch.randn(weights.shape, generator=torch.Generator().manual_seed(len(name)))
    return pipeline


@pytest.fixture
def folder(trained, tmp_path):
    layers, metadata = {}, {}
    for name in ("unet", "text_encoder"):
        part = getattr(trained, name)
        layers[f"{name}_lora_layers"] = get_peft_model_state_dict(part, adapter_name="style")
        metadata[f"{name}_lora_adapter_metadata"] = part.peft_config["style"].to_dict()
    VideoDiffusionPipeline.save_lora_weights(tmp_path / "lora", **layers, **metadata)
    return tmp_path / "lora"


def test_saved_adapters_load_into_another_pipeline_and_make_the_same_clip(make_pipeline, trained, folder, sample):
    assert [file.name for file in folder.iterdir()] == ["pytorch_lora_weights.safetensors"]
    plain, expected = sample(make_pipeline("bert"), prompt="one"), sample(trained, prompt="one")
    pipeline = make_pipeline("bert")
    pipeline.load_lora_weights(folder, adapter_name="style")
    assert pipeline.get_list_adapters() == {"unet": ["style"], "text_encoder": ["style"]}
    assert pipeline.get_active_adapters() == ["style"]
    assert torch.equal(sample(pipeline, prompt="one"), expected)
    assert (expected - plain).abs().max() > 0.01
    pipeline.unload_lora_weights()
    assert torch.equal(sample(pipeline, prompt="one"), plain)


def test_adapters_are_weighed_switched_off_and_deleted(make_pipeline, folder, sample):
    pipeline = make_pipeline("bert")
    plain = sample(pipeline, prompt="one")
    pipeline.load_lora_weights(folder, adapter_name="style")
    full = sample(pipeline, prompt="one")
    pipeline.set_adapters("style", 0.5)
    half = sample(pipeline, prompt="one")
    assert (half - plain).abs().mean() < (full - plain).abs().mean()
    pipeline.set_adapters("style", 0.0)
    torch.testing.assert_close(sample(pipeline, prompt="one"), plain)
    pipeline.set_adapters("style")
    pipeline.disable_lora()
    assert torch.equal(sample(pipeline, prompt="one"), plain)
    pipeline.enable_lora()
    assert torch.equal(sample(pipeline, prompt="one"), full)
    pipeline.delete_adapters("style")
    assert torch.equal(sample(pipeline, prompt="one"), plain)


def test_fused_adapters_do_the_same_and_are_saved_as_plain_weights(make_pipeline, trained, folder, sample, tmp_path):
    expected = sample(trained, prompt="one")
    pipeline = make_pipeline("bert")
    pipeline.load_lora_weights(folder)
    pipeline.fuse_lora()
    torch.testing.assert_close(sample(pipeline, prompt="one"), expected, atol=1e-4, rtol=0)
    with pytest.raises(ValueError, match=r"has LoRA adapters: `fuse_lora\(\)` to keep what they do, then `unload"):
        pipeline.save_pretrained(tmp_path / "saved")
    pipeline.unload_lora_weights()
    pipeline.save_pretrained(tmp_path / "saved")
    loaded = VideoDiffusionPipeline.from_pretrained(tmp_path / "saved")
    torch.testing.assert_close(sample(loaded, prompt="one"), expected, atol=1e-4, rtol=0)


def test_fusing_is_undone(make_pipeline, folder, sample):
    pipeline = make_pipeline("bert")
    plain = sample(pipeline, prompt="one")
    pipeline.load_lora_weights(folder)
    before = sample(pipeline, prompt="one")
    pipeline.fuse_lora()
    assert pipeline.num_fused_loras == 1
    pipeline.disable_lora()  # what is fused stays in the weights … until it is taken out
    pipeline.unfuse_lora()
    assert pipeline.num_fused_loras == 0
    torch.testing.assert_close(sample(pipeline, prompt="one"), plain, atol=1e-4, rtol=0)
    pipeline.enable_lora()
    torch.testing.assert_close(sample(pipeline, prompt="one"), before, atol=1e-4, rtol=0)


def test_lora_scale_weighs_the_text_encoders_adapters_in_one_call(make_pipeline, folder):
    pipeline = make_pipeline("bert")
    plain = pipeline.encode_prompt("one")[0]
    pipeline.load_lora_weights(folder)
    full = pipeline.encode_prompt("one")[0]
    assert not torch.allclose(full, plain)
    torch.testing.assert_close(pipeline.encode_prompt("one", lora_scale=0.0)[0], plain)
    assert torch.equal(pipeline.encode_prompt("one")[0], full)


def test_a_file_of_other_layers_is_refused(make_pipeline):
    with pytest.raises(ValueError, match="Invalid LoRA checkpoint"):
        make_pipeline().load_lora_weights({"unet.conv_in.weight": torch.zeros(1)})
