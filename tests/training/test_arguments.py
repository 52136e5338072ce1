"""Arguments: each has a declared range, and what is outside is refused by name before anything is loaded."""

import dataclasses
import json
import math
from pathlib import Path

import pytest
import yaml

from video_diffusion.cli import build_parser
from video_diffusion.training import command
from video_diffusion.training.arguments import GROUPS
from video_diffusion.training.fields import argument, declared, group, one_of, whole
from video_diffusion.training.flags import as_dict
from video_diffusion.training.train_arguments import parse_arguments

PRESETS = Path(__file__).parents[2] / "training" / "presets"
FIELDS = declared(GROUPS)
WORDS = ("nan", "inf", "1e400", "-1", "0", "7", "0.5", "2", "9" * 30, "9" * 5000, "", "x", "true", "none", "1 2", "\0")
VALUES = (
    None,
    [],
    {},
    True,
    1.5,
    -1,
    10**30,
    math.nan,
    math.inf,
    "",
    "x",
    "1e-3",
    [[1]],
    [None],
    [math.nan],
    {"a": 1},
)


def reasonable(value):
    """Whether nothing in a value is infinite, negative beyond λ's bounds, or of a kind that no argument has."""
    items = value if isinstance(value, list) else [value]
    return all(
        item is None or isinstance(item, str | bool) or (math.isfinite(item) and -60 <= item < 2**32) for item in items
    ) and (value != [])


def accepted(argv, name):
    """The value that came of it; None where it was refused."""
    try:
        return as_dict(parse_arguments(argv))[name]
    except (ValueError, OSError) as error:  # OSError: a pipeline that is not there
        said = str(error)
    assert f"`{name}`" in said or f"--{name}" in said
    return None


@pytest.mark.parametrize("name", FIELDS)
def test_any_word_is_refused_by_name_or_within_the_range(name):
    for word in WORDS:
        value = accepted([f"--{name}={word}"], name)
        assert reasonable(value), (word, value)


def test_any_value_of_a_file_is_refused_by_name_or_within_the_range(tmp_path):
    file = tmp_path / "run.yaml"
    for name in FIELDS:
        for value in VALUES:
            file.write_text(yaml.safe_dump({name: value}))
            found = accepted(["--config", str(file)], name)
            assert reasonable(found), (name, value, found)
            if found is not None and value != "1e-3":
                assert found == value, name  # nothing is corrected in silence


def test_a_number_that_yaml_takes_for_text_is_read_as_a_number(tmp_path):
    (tmp_path / "run.yaml").write_text("learning_rate: 1e-3\n")
    assert parse_arguments(["--config", str(tmp_path / "run.yaml")])[2].learning_rate == 0.001


def test_an_argument_without_a_check_cannot_be_added():
    with pytest.raises(TypeError, match="`rate` of Own is a plain field, expected one made by `argument`"):

        @group
        class Own:
            rate: float = 0.1

    with pytest.raises(TypeError, match="on_resume"):
        argument(1, "Help.", whole(0))
    for name, field in FIELDS.items():
        default = field.default_factory() if field.default is dataclasses.MISSING else field.default
        assert field.metadata["check"].value(name, default) == default
        assert field.metadata["on_resume"] in ("agrees", "applies")
        assert field.metadata["help"].endswith(".")


def test_defaults_that_are_lists_are_not_shared():
    one, other = parse_arguments([])[0], parse_arguments([])[0]
    one.block_out_channels.append(1)
    assert other.block_out_channels != one.block_out_channels


def test_a_number_of_a_few_is_not_true():
    check = one_of(1, 3)
    assert check.value("channels", "3") == 3
    for wrong in (True, "2", 1.0):
        with pytest.raises(ValueError, match="expected one of 1, 3"):
            check.value("channels", wrong)


def test_a_preset_sets_what_a_file_and_then_flags_override(tmp_path):
    file = tmp_path / "own.yaml"
    file.write_text("learning_rate: 0.5\nmax_steps: 7\n")
    flags = ["--preset", "moving-mnist", "--config", str(file), "--max_steps", "9", "--max_minutes", "none"]
    model, _, args = parse_arguments(flags)
    assert (args.learning_rate, args.max_steps, args.max_minutes) == (0.5, 9, None)
    assert model.transformer_layers == 8
    for preset in PRESETS.glob("*.yaml"):
        parse_arguments(["--preset", preset.stem])


def test_a_training_from_a_saved_pipeline_has_its_network_unless_told_otherwise(reference, tmp_path):
    saved = json.loads((reference / "run.json").read_text())
    start = ["--pretrained_model_name_or_path", str(reference)]
    model, data, args = parse_arguments(start)
    network = {key: value for key, value in as_dict([model]).items() if key not in ("vae_slicing", "latents")}
    assert network == {key: saved[key] for key in network}
    assert network != {key: value for key, value in as_dict([parse_arguments([])[0]]).items() if key in network}
    assert (data.digits, data.num_frames, args.weighting) == (saved["digits"], saved["num_frames"], saved["weighting"])
    assert args.max_steps != saved["max_steps"]  # how long, and how fast, is the new run's own affair
    other = parse_arguments([*start, "--videos", str(tmp_path), "--prediction_type", "epsilon"])
    assert (other[0].prediction_type, other[1].digits, other[1].image_size) == ("epsilon", None, saved["image_size"])
    (tmp_path / "bare").mkdir()
    for part in ("unet", "scheduler", "model_index.json"):  # no run.json
        (tmp_path / "bare" / part).symlink_to(reference / part)
    bare = as_dict([parse_arguments([start[0], str(tmp_path / "bare")])[0]])
    assert all(bare[key] == saved[key] for key in network if "text" not in key)


def test_released_models_are_gone_on_from_by_name_alone():
    for name in ("moving-mnist", "smmnist", "moving-mnist-text"):
        model, data, _ = parse_arguments(["--pretrained_model_name_or_path", name])
        assert (model.block_out_channels, model.transformer_layers, model.text_encoder) == (
            [128, 384],
            8,
            "small-bert",
        )
        assert (data.num_frames, data.variant) == ((15, "stochastic") if name == "smmnist" else (20, "classic"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("learning_rat: 0.5\n", "`learning_rat` is no argument; the nearest name is --learning_rate"),
        ("- 1\n", "holds a list, expected a mapping"),
        ("a: [\n", "is no YAML file"),
        ("mixed_precision: no\n", "`mixed_precision` is False, expected one of no, fp16, bf16"),
    ],
)
def test_a_file_is_refused_with_its_reason(content, message, tmp_path):
    (tmp_path / "own.yaml").write_text(content)
    with pytest.raises(ValueError, match=message):
        parse_arguments(["--config", str(tmp_path / "own.yaml")])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--preset", "nonsense"], "`preset` is 'nonsense', expected one of"),
        (["--config", "/no/such.yaml"], "`config` is '/no/such.yaml', expected a YAML file"),
        (["--learning-rate", "1"], "`--learning-rate` is no argument; the nearest name is --learning_rate"),
        (["--max_step", "1"], "`--max_step` is no argument; the nearest name is --max_steps"),
        (["--presets=x"], "`--presets` is no argument; the nearest name is --preset"),
        (["0.1"], "`0.1` is no argument"),
        (["--max_steps"], "--max_steps: expected one argument"),
        (["--max_steps", "0"], "`max_steps` is 0, expected a whole number from 1"),
        (["--optimizer", "sgd"], "`optimizer` is 'sgd', expected one of adamw, muon"),
        (["--learning_rate", "nan"], "`learning_rate` is nan, expected a number at least 0 and at most 10"),
        (["--adam_beta2", "1"], "`adam_beta2` is 1.0, expected a number at least 0 and below 1"),
        (["--mixed_precision", "int8"], "`mixed_precision` is 'int8'"),
        (["--weighting", "none"], "`weighting` is 'none'"),
        (["--logit_normal", "0"], "`logit_normal` is [0.0], expected two"),
        (["--logit_normal", "0", "0"], "`logit_normal` is [0.0, 0.0], expected a deviation above 0"),
        (["--push_to_hub"], "`hub_model_id` is None"),
        (["--mask_probabilities", "1", "1", "0", "0"], "expected 4 shares that sum to 1"),
        (["--mask_probabilities", "0.5", "0.5"], "expected 4 shares that sum to 1"),
        (["--caption_dropout", "2"], "`caption_dropout` is 2.0, expected a number at least 0 and at most 1"),
        (["--cooldown_minutes", "2", "--max_minutes", "1"], "`cooldown_minutes` is 2.0, expected at most"),
        (["--logsnr_min", "30"], "`logsnr_min` is 30.0, expected less than `logsnr_max`"),
        (["--text_encoder", "/no/such/folder"], "/no/such/folder"),
        (["--spatial_attention", "1", "0"], "`spatial_attention` is (True, False), expected a bool or one for each"),
        (["--attention_backend", "nonsense"], "nonsense"),
    ],
)
def test_bad_arguments_are_refused_before_any_work(flags, message, tmp_path, capsys):
    assert command.main([*flags, "--output_dir", str(tmp_path / "none")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "none").exists()


def test_the_command_hands_its_flags_on_as_they_are():
    flags = ["--preset", "tiny-cpu", "--compile", "-h", "--help", "--", "-1", "--learning_rate=1"]
    assert build_parser().parse_args(["train", *flags]).flags == [flag for flag in flags if flag != "--"]
