"""Fuzz of a pipeline's folder: configs with values of another type or range are refused, by file and key."""

import json
import shutil

import pytest
import torch

from video_diffusion import VideoDiffusionPipeline, VPContinuousScheduler

JUNK = [None, True, -1, 0, 10**30, 0.5, float("nan"), "", "x", "8", [], [None], ["8"], [8, "x"], {}, {"a": 1}, [[8]]]
FILES = ("unet/config.json", "scheduler/scheduler_config.json")


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    from transformers import BertConfig, BertModel, BertTokenizer

    from video_diffusion import VideoUNet3DConditionModel

    torch.manual_seed(0)
    config = {"sample_size": 16, "num_frames": 4, "in_channels": 3, "out_channels": 1, "patch_size": 4}
    config |= {"block_out_channels": (8,), "norm_num_groups": 4, "attention_head_dim": 8, "cross_attention_dim": 8}
    size = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    text = BertModel(BertConfig(vocab_size=5, max_position_embeddings=8, **size))
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokenizer = BertTokenizer(vocab={word: i for i, word in enumerate(tokens)}, model_max_length=8)
    unet = VideoUNet3DConditionModel(**config).eval()
    folder = tmp_path_factory.mktemp("saved")
    VideoDiffusionPipeline(unet, VPContinuousScheduler(), text, tokenizer).save_pretrained(folder)
    return folder


@pytest.fixture
def folder(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "folder")


def load(folder):
    """What was refused, or None; any other error fails the test."""
    try:
        VideoDiffusionPipeline.from_pretrained(folder)
    except (ValueError, OSError) as error:
        return str(error)
    return None


@pytest.mark.parametrize("name", FILES)
def test_values_of_another_type_are_refused_by_file_and_key(folder, name):
    file = folder / name
    config, refused = json.loads(file.read_text()), 0
    for key in [key for key in config if not key.startswith("_")]:
        for value in JUNK:
            file.write_text(json.dumps(config | {key: value}))
            error = load(folder)
            refused += error is not None
            assert error is None or file.parent.name in error, (key, value, error)
            kinds = (isinstance(config[key], bool), isinstance(value, bool))
            if (config[key] is not None and isinstance(value, dict)) or (isinstance(config[key], int) and kinds[1]):
                assert kinds[0] or (error and f"{key} = " in error), (key, value, error)
    assert refused > len(JUNK) * len(config) / 4


@pytest.mark.parametrize("content", ["[]", "3", "null", '"x"', "{", "", "\x00", "[" * 100_000])
@pytest.mark.parametrize("name", ["model_index.json", *FILES])
def test_a_file_that_holds_no_dict_is_named(folder, name, content):
    (folder / name).write_text(content)
    error = load(folder)
    assert error is not None
    assert name in error


@pytest.mark.parametrize(
    "entry", [[], ["video_diffusion"], [1, 2], ["video_diffusion", 3], ["a", "b", "c"], [["x"], "y"]]
)
def test_an_entry_of_the_index_that_is_no_library_and_class_is_named(folder, entry):
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(index | {"unet": entry}))
    assert "model_index.json has unet = " in load(folder)


@pytest.mark.parametrize("value", [True, 3, "unet", {}, None])
def test_an_index_without_a_component_or_with_something_else_is_refused(folder, value):
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(index | {"unet": value}))
    assert load(folder) is not None


@pytest.mark.parametrize(
    "key", ["hidden_size", "vocab_size", "num_attention_heads", "max_position_embeddings", "model_type"]
)
@pytest.mark.parametrize("value", ["x", -1, None, [8], {}])
def test_a_text_encoders_config_of_other_types_is_no_raw_error(folder, key, value):
    file = folder / "text_encoder" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {key: value}))
    load(folder)
