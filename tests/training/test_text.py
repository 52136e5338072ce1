"""Captions on their way to the denoiser: encoders of each family, and what is kept of what they read."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from text_encoders import letters_tokenizer, save_encoder, tiny_encoder
from tiny_training import flags_of
from video_diffusion import VideoDiffusionPipeline, VideoUNet3DConditionModel, VPContinuousScheduler
from video_diffusion.training import command, text, validation
from video_diffusion.training.batches import open_captions
from video_diffusion.training.run import Run
from video_diffusion.training.text_states import encoder_digest
from video_diffusion.training.train_arguments import parse_arguments

FAMILIES = ("bert", "clip", "t5", "umt5")
TINY = [
    *("--block_out_channels", "16", "16", "--patch_size", "4", "--num_frames", "3", "--image_size", "16"),
    *("--norm_num_groups", "8", "--attention_head_dim", "8", "--lr_scheduler", "constant", "--warmup_steps", "0"),
    *("--validation_steps", "0", "--per_device_batch_size", "2", "--max_text_length", "20", "--tracker", "none"),
    *("--caption_dropout", "0.5", "--num_channels", "1", "--max_steps", "1", "--num_images", "1"),
]


def run(*flags):
    return command.main([*TINY, *map(str, flags)])


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """Three grey videos with text files beside them."""
    folder = tmp_path_factory.mktemp("videos")
    for number, words in enumerate(("a red 3", "two", "two")):
        np.save(folder / f"{number}.npy", np.full((5, 16, 16), 60 * number, np.uint8))
        (folder / f"{number}.txt").write_text(words)
    return folder


def test_training_and_the_pipeline_read_a_caption_alike():
    encoder, tokenizer = text.small_bert(16)
    kept = torch.tensor([True, False])
    frozen = text.RunText(encoder, tokenizer, trained=False, device=torch.device("cpu"))
    captions = ["the digit 3 moves up", "a 7"]
    states = frozen.inputs(captions, kept, videos=2, images=1)["encoder_hidden_states"]
    unet = VideoUNet3DConditionModel(block_out_channels=(32,), cross_attention_dim=128)
    pipe = VideoDiffusionPipeline(unet, VPContinuousScheduler(), encoder, tokenizer)
    said, silent = pipe.encode_prompt([captions[0], ""])[0]
    torch.testing.assert_close(states, torch.stack([torch.stack([said, said, silent]), torch.stack([silent] * 3)]))
    trained = text.RunText(encoder, tokenizer, trained=True, device=torch.device("cpu"))
    inputs = trained.inputs(captions, kept, videos=2, images=1)
    again = encoder(inputs["input_ids"], attention_mask=inputs["input_mask"]).last_hidden_state[inputs["text_index"]]
    torch.testing.assert_close(again, states)


def test_a_frozen_encoder_reads_each_text_once():
    encoder, tokenizer = text.small_bert(16)
    frozen = text.RunText(encoder, tokenizer, trained=False, device=torch.device("cpu"), capacity=2)
    calls = []
    encoder.register_forward_pre_hook(lambda _, args: calls.append(len(args[0])))
    first = frozen.encode(["a 7", "a 3", "a 7"])
    assert torch.equal(frozen.encode(["a 3", "a 7"]), first[[1, 0]])
    assert calls == [2]
    frozen.encode(["a 1"])  # beyond the capacity: the others are forgotten
    assert len(frozen.states) == 1
    assert not any(p.requires_grad for p in encoder.parameters())


# ------------------------------------------------------------------------------------------------------- each family
@pytest.mark.parametrize("trained", [False, True], ids=["frozen", "trained"])
@pytest.mark.parametrize("kind", FAMILIES)
def test_an_encoder_of_each_family_trains_is_saved_loads_and_reads_prompts(kind, trained, videos, tmp_path, capsys):
    before = save_encoder(kind, tmp_path / "encoder")[0].state_dict()
    flags = ("--videos", videos, "--text_encoder", tmp_path / "encoder", "--train_text_encoder", trained)
    flags += ("--text_cache_dir", tmp_path / "states", "--learning_rate", 0.1)
    assert run(*flags, "--output_dir", tmp_path / "run") == 0
    said = capsys.readouterr().err
    assert ("train: the text encoder has read 3 texts" in said) != trained
    after = load_file(tmp_path / "run" / "text_encoder" / "model.safetensors")
    key = next(key for key in after if "layernorm" in key.lower().replace("_", "") and "weight" in key)
    assert torch.equal(after[key], before[key]) != trained
    pipe = VideoDiffusionPipeline.from_pretrained(tmp_path / "run")
    names = {"bert": "BertModel", "clip": "CLIPTextModel", "t5": "T5EncoderModel", "umt5": "UMT5EncoderModel"}
    assert type(pipe.text_encoder).__name__ == names[kind]
    pipe.set_progress_bar_config(disable=True)
    common = {"num_inference_steps": 1, "output_type": "pt", "num_frames": 3}
    for parameter in pipe.unet.parameters():  # after one step it hardly heeds the text
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0))
    one, other = (
        pipe(words, generator=torch.Generator().manual_seed(0), **common).frames for words in ("a red 3", "two")
    )
    assert one.shape == (1, 3, 1, 16, 16)
    assert not torch.equal(one, other)


@pytest.mark.parametrize("kind", FAMILIES)
def test_training_reads_a_caption_of_each_family_as_the_pipeline_does(kind, tmp_path):
    save_encoder(kind, tmp_path)
    encoder, tokenizer = text.open_text_encoder(str(tmp_path), 20)
    frozen = text.RunText(encoder, tokenizer, False, torch.device("cpu"))
    frozen.read(["two", "a red 3"], tmp_path / "states")
    unet = VideoUNet3DConditionModel(block_out_channels=(32,), cross_attention_dim=8)
    pipe = VideoDiffusionPipeline(unet, VPContinuousScheduler(), encoder, tokenizer)
    torch.testing.assert_close(frozen.encode(["a red 3", ""]), pipe.encode_prompt(["a red 3", ""])[0])


def test_a_whole_clip_gives_its_text_encoder(tmp_path):
    whole = tiny_encoder("clip", 74, 20, whole=True, bos_token_id=72, eos_token_id=73, pad_token_id=73)
    whole.save_pretrained(tmp_path)
    letters_tokenizer("clip", 20).save_pretrained(tmp_path)
    encoder, tokenizer = text.open_text_encoder(str(tmp_path), 20)
    tokens = tokenizer(["two"], return_tensors="pt")
    expected = whole.text_model(**tokens).last_hidden_state
    assert torch.equal(encoder.eval()(**tokens).last_hidden_state, expected)


# ------------------------------------------------------------------------------------------------------- kept states
def test_states_are_read_once_for_all_runs_and_again_for_other_weights_or_tokenizers(videos, tmp_path, capsys):
    encoder, _ = save_encoder("t5", tmp_path / "encoder")
    flags = ("--videos", videos, "--text_encoder", tmp_path / "encoder", "--text_cache_dir", tmp_path / "states")

    def texts_read(name, *more):
        assert run(*flags, *more, "--output_dir", tmp_path / name) == 0
        said = [line for line in capsys.readouterr().err.splitlines() if "the text encoder has read" in line]
        return int(said[0].split("has read ")[1].split()[0]) if said else 0

    assert texts_read("first") == 3  # two captions and the empty text
    assert texts_read("second") == 0
    one, other = (
        load_file(tmp_path / name / "unet" / "diffusion_pytorch_model.safetensors") for name in ("first", "second")
    )
    assert all(torch.equal(one[key], other[key]) for key in one)
    for file in (tmp_path / "states").rglob("*.safetensors"):
        file.write_bytes(file.read_bytes()[:-8])
    assert texts_read("damaged") == 3
    assert texts_read("memory", "--text_cache", "memory") == 0
    encoder.shared.weight.data += 0.1
    encoder.save_pretrained(tmp_path / "encoder")
    assert texts_read("third") == 3
    assert len(list((tmp_path / "states").iterdir())) == 2


def test_what_is_kept_of_an_encoder_is_what_it_gives_without_the_padding_of_t5(tmp_path):
    for kind in ("bert", "t5"):
        encoder, tokenizer = tiny_encoder(kind, 200, 16), letters_tokenizer(kind, 16)
        plain, kept = (text.RunText(encoder, tokenizer, False, torch.device("cpu"), capacity=1) for _ in range(2))
        assert kept.read(["two", "a 7", "two"], tmp_path) == 3
        torch.testing.assert_close(kept.encode(["a 7", "two"]), plain.encode(["a 7", "two"]))
        file = next((tmp_path / encoder_digest(encoder)[:40]).iterdir())
        lengths = sorted(len(states) for states in load_file(file).values())
        assert lengths == ([16, 16, 16] if kind == "bert" else [1, 5, 5])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("nothing", "`text_encoder` is '{}', expected small-bert, none, or the Hub id or folder of a text encoder"),
        ("long", "`max_text_length` is 20, expected at most 12 for '{}'."),
        ("words", "whose tokenizer has 40 tokens, expected at most those of its encoder, 12."),
        ("cache", "`text_cache_dir` is {}/file, expected a folder to write to"),
    ],
)
def test_what_is_wrong_with_an_encoder_is_said_in_one_line_before_the_first_step(
    change, message, videos, tmp_path, capsys
):
    if change != "nothing":
        save_encoder("t5", tmp_path, length=12 if change == "long" else 24)
    if change == "words":
        tiny_encoder("t5", 12).save_pretrained(tmp_path)
    (tmp_path / "file").write_text("")
    cache = tmp_path / ("file" if change == "cache" else "states")
    flags = ("--videos", videos, "--text_encoder", tmp_path, "--text_cache_dir", cache)
    assert run(*flags, "--output_dir", tmp_path / "run") == 2
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("train:")]
    assert len(said) == 1
    assert message.format(tmp_path) in said[0]
    assert not (tmp_path / "run" / "run.json").exists()


def test_a_validation_tells_what_a_caption_is_worth(digits, tmp_path, monkeypatch):
    """With two clips, "another clip's caption" and "its own" change places where the captions do."""
    flags = ("--validation_videos", 2, "--tracker", "none", "--num_images", 0)
    training = Run(parse_arguments(flags_of(digits, tmp_path, *flags)))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in training.denoiser.parameters():  # untrained, it does not read the text
            weight.copy_(torch.randn(weight.shape, generator=generator) / max(weight[0].numel(), 1) ** 0.5)
    training.ema.load_state_dict({**training.ema.state_dict(), "shadow_params": training.learned(training.learner)})
    said = validation.captions_of(training, 2)
    assert said == open_captions(training.validation_source, training.data, 0)(np.arange(2))
    own, other = (f"validation/generation_{name}" for name in ("captioned", "miscaptioned"))
    values = {}
    for name, texts in {"right": said, "turned": said[::-1], "hidden": ["", ""], "none": None}.items():
        monkeypatch.setattr(validation, "captions_of", lambda run, count, texts=texts: texts)
        values[name] = validation.validate(training)
    assert values["right"][own] == pytest.approx(values["turned"][other], rel=1e-6)
    assert values["right"][other] == pytest.approx(values["turned"][own], rel=1e-6)
    assert values["right"][own] != pytest.approx(values["right"][other], rel=1e-5)
    assert values["hidden"][own] == values["hidden"][other] == pytest.approx(values["none"]["validation/generation"])
    assert own not in values["none"]
