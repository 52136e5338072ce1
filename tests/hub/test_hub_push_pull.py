"""Push and pull against a Hub on the loopback interface: one commit, retries, refusals, tokens, the commands."""

import json
import logging

import numpy as np
import pytest
import torch

from denoisers import SMALLEST, tiny_denoiser
from loopback_hub import LoopbackHub
from video_diffusion import VideoDiffusionPipeline, VPContinuousScheduler
from video_diffusion.cli import main
from video_diffusion.data import MovingMNIST, write_parquet
from video_diffusion.data.reading import read_video
from video_diffusion.data.video_io import resize, tile
from video_diffusion.hub import transfer
from video_diffusion.hub.folder import export_folder
from video_diffusion.hub.publish import pull_pipeline, push_dataset, push_pipeline
from video_diffusion.hub.transfer import check_no_secrets

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # huggingface_hub's own
ALICE, BOB = "hf_" + "a" * 30, "hf_" + "b" * 30
ID = "alice/digits"
FULL, HALF = "unet/diffusion_pytorch_model.safetensors", "unet/diffusion_pytorch_model.fp16.safetensors"


@pytest.fixture(scope="module")
def pipeline():
    return VideoDiffusionPipeline(tiny_denoiser(**SMALLEST), VPContinuousScheduler(gamma=0.7))


@pytest.fixture(scope="module")
def exported(pipeline, tmp_path_factory):
    """A folder as training and evaluation leave it, with files that must not travel."""
    out = export_folder(pipeline, tmp_path_factory.mktemp("exported") / "digits")
    (out / "run.json").write_text(json.dumps({"max_steps": 3, "dataset_name": None}))
    (out / "samples").mkdir()
    (out / "samples" / "generated.gif").write_bytes(b"GIF89a")
    (out / "evaluation").mkdir()
    (out / "evaluation" / "note.md").write_text("how it was measured")
    (out / "evaluation" / "part.npz").write_bytes(b"clips")
    (out / "optimizer.pt").write_bytes(b"pickle")
    (out / ".netrc").write_text("password")
    return out


@pytest.fixture
def folder(exported, tmp_path):
    import shutil

    return shutil.copytree(exported, tmp_path / "digits")


@pytest.fixture
def hub(monkeypatch, tmp_path, tmp_path_factory):
    """A Hub where alice is logged in; waits between attempts are cut out."""
    with LoopbackHub({ALICE: "alice", BOB: "bob"}) as hub:
        hub.log_in(monkeypatch, tmp_path, ALICE)
        monkeypatch.setattr("tempfile.tempdir", str(tmp_path_factory.mktemp("desk")))
        yield hub


def read(folder):
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def io_file(folder, data):
    (folder / "shown.gif").write_bytes(data)
    return folder / "shown.gif"


def sample(pipeline):
    pipeline.set_progress_bar_config(disable=True)
    return pipeline(num_inference_steps=3, generator=torch.Generator().manual_seed(0), output_type="pt").frames


# ------------------------------------------------------------------------------------------------------ there and back
def test_push_is_one_commit_with_weights_code_card_and_samples_and_pull_makes_the_same_clips(
    hub, pipeline, folder, tmp_path
):
    before = read(folder)
    address = push_pipeline(folder, ID, private=True, commit_message="First digits")
    commits = hub.commits(ID)
    assert [commit.message for commit in commits] == ["initial commit", "First digits"]
    assert address == f"{hub.url}/{ID}/commit/{commits[-1].sha}"
    assert hub.repositories["models", ID].private
    files = hub.files(ID)
    expected = {
        "README.md",
        "manifest.json",
        "model_index.json",
        "pipeline.py",
        "run.json",
        "unet/config.json",
        FULL,
        HALF,
    }
    expected |= {"unet/video_diffusion.py", "scheduler/video_diffusion.py", "scheduler/scheduler_config.json"}
    expected |= {"samples/generated.gif", "evaluation/note.md"}
    assert expected <= set(files)
    others = {name for name in files if name.endswith(".py")} | {".gitattributes"}
    assert set(files) == expected | others
    assert f'from_pretrained("{ID}")' in files["README.md"].decode()
    assert read(folder) == before

    out = pull_pipeline(ID, tmp_path / "pulled")
    assert read(out) == {name: data for name, data in files.items() if name != ".gitattributes"}
    assert torch.equal(sample(VideoDiffusionPipeline.from_pretrained(out)), sample(pipeline))
    push_pipeline(out, ID)
    assert len(hub.commits(ID)) == 2  # nothing new, no commit


def test_a_pipeline_in_memory_is_pushed_and_weights_of_an_older_push_go_away(hub, pipeline, folder, tmp_path):
    export_folder(folder, tmp_path / "sharded", max_shard_size="20KB")
    hub.put(ID, read(tmp_path / "sharded") | {"notes.txt": b"of the owner"})
    assert sum(name.endswith(".safetensors") for name in hub.files(ID)) > 1
    push_pipeline(pipeline, ID, variant=None)
    assert [name for name in hub.files(ID) if "safetensors" in name] == [FULL]
    assert hub.files(ID)["notes.txt"] == b"of the owner"
    assert "Not measured yet" in hub.files(ID)["README.md"].decode()


def test_a_name_without_owner_is_the_token_owners_and_the_card_says_so(hub, pipeline, monkeypatch):
    push_pipeline(pipeline, "digits", variant=None)
    assert f'from_pretrained("{ID}")' in hub.files(ID)["README.md"].decode()
    with pytest.raises(OSError, match=r"`repo_id` is 'digits', expected 'owner/name'") as caught:
        push_pipeline(pipeline, "digits", token=BOB + "x")
    assert BOB not in str(caught.value)


def test_a_card_written_by_hand_is_pushed_as_it_is(hub, folder):
    (folder / "README.md").write_text("---\nlicense: mit\n---\nMine.\n")
    push_pipeline(folder, ID, variant=None)
    assert hub.files(ID)["README.md"] == b"---\nlicense: mit\n---\nMine.\n"


def test_a_branch_is_made_and_main_left_and_a_pull_request_is_only_proposed(hub, pipeline, tmp_path):
    push_pipeline(pipeline, ID, variant=None)
    main_files = hub.files(ID)
    softer = VideoDiffusionPipeline(pipeline.unet, VPContinuousScheduler(gamma=0.1))
    push_pipeline(softer, ID, revision="softer", variant=None)
    assert push_pipeline(softer, ID, create_pr=True, variant=None) == f"{hub.url}/{ID}/discussions/1"
    assert hub.files(ID) == main_files
    for revision, gamma in ((None, 0.7), ("softer", 0.1), ("refs/pr/1", 0.1)):
        out = pull_pipeline(ID, tmp_path / "pulled", revision=revision)
        assert VideoDiffusionPipeline.from_pretrained(out).scheduler.config.gamma == gamma
    with pytest.raises(ValueError, match=r"`revision` is 'softer', expected None: a pull request"):
        push_pipeline(softer, ID, revision="softer", create_pr=True)


# ------------------------------------------------------------------------------------------------------ what can break
@pytest.mark.parametrize(
    ("method", "part", "when"),
    [
        ("POST", "/repos/create", "before"),
        ("POST", "/validate-yaml", "before"),
        ("POST", "/commit/", "before"),
        ("POST", "/commit/", "after"),
        ("PUT", "/lfs/", "before"),
    ],
)
def test_a_push_over_a_connection_that_breaks_still_is_one_commit(hub, folder, method, part, when, caplog):
    hub.break_connection(method, part, when=when)
    with caplog.at_level(logging.DEBUG):
        push_pipeline(folder, ID, variant=None)
    assert len(hub.commits(ID)) == 2
    assert hub.files(ID)[FULL] == (folder / FULL).read_bytes()
    assert hub.breaks[0].times == 0
    assert ALICE not in caplog.text


def test_a_pull_request_whose_answer_is_lost_is_not_proposed_twice(hub, folder):
    push_pipeline(folder, ID, variant=None)
    (folder / "run.json").write_text('{"max_steps": 4}')
    hub.break_connection("POST", "/commit/", when="after")
    with pytest.raises(OSError, match=r"a new pull request refs/pr/1 that may be this one: look at it"):
        push_pipeline(folder, ID, create_pr=True, variant=None)
    assert [ref for ref in hub.repositories["models", ID].refs if ref.startswith("refs/pr")] == ["refs/pr/1"]


def test_a_push_that_fails_leaves_the_folder_whole_says_how_to_go_on_and_then_sends_only_the_rest(hub, folder):
    before = read(folder)
    hub.break_connection("POST", "/commit/", times=transfer.ATTEMPTS)
    with pytest.raises(OSError, match=r"alice/digits was not written") as caught:
        push_pipeline(folder, ID, private=True)
    assert f"go on with `video-diffusion push {folder} {ID} --private`" in str(caught.value)
    assert read(folder) == before
    assert len(hub.commits(ID)) == 1
    puts = sum(method == "PUT" for method, _, _ in hub.requests)
    assert puts >= 2
    push_pipeline(folder, ID, private=True)
    assert sum(method == "PUT" for method, _, _ in hub.requests) == puts
    assert len(hub.commits(ID)) == 2


def test_a_pipeline_whose_push_fails_is_kept_in_a_folder_that_can_be_pushed(hub, pipeline, monkeypatch, tmp_path):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    hub.break_connection("POST", "/commit/", times=transfer.ATTEMPTS)
    with pytest.raises(OSError, match=r"go on with `video-diffusion push .*/digits alice/digits`") as caught:
        push_pipeline(pipeline, ID, variant=None)
    kept = str(caught.value).split("video-diffusion push ")[1].split(" ")[0]
    assert torch.equal(sample(VideoDiffusionPipeline.from_pretrained(kept)), sample(pipeline))
    assert main(["push", kept, ID]) == 0
    assert len(hub.commits(ID)) == 2
    assert [entry.name for entry in tmp_path.glob("video-diffusion-push-*")] == [kept.split("/")[-2]]


def test_a_download_that_breaks_in_the_middle_ends_whole_or_not_at_all(hub, pipeline, tmp_path):
    push_pipeline(pipeline, ID, variant=None)
    hub.break_connection("GET", "/api/models/alice/digits")
    hub.break_connection("GET", "/tree/", when="during")
    hub.break_connection("GET", "/resolve/", when="during")
    assert read(pull_pipeline(ID, tmp_path / "first")).keys() == hub.files(ID).keys() - {".gitattributes"}
    push_pipeline(VideoDiffusionPipeline(pipeline.unet, VPContinuousScheduler(gamma=0.1)), ID, variant=None)
    assert [item.times for item in hub.breaks] == [0, 0, 0]
    hub.break_connection("HEAD", "/resolve/", times=1000)
    before = read(tmp_path / "first")
    with pytest.raises(OSError, match=r"alice/digits was not downloaded: .* goes on from there"):
        pull_pipeline(ID, tmp_path / "first")
    assert read(tmp_path / "first") == before
    assert {entry.name for entry in tmp_path.iterdir() if entry.is_dir()} == {"cache", "first"}


# ----------------------------------------------------------------------------------------------------- tokens, secrets
def test_private_repositories_open_to_their_owners_token_only_and_errors_never_show_it(
    hub, pipeline, tmp_path, monkeypatch
):
    push_pipeline(pipeline, ID, private=True, variant=None)
    assert pull_pipeline(ID, tmp_path / "mine", token=ALICE).is_dir()
    attempts = [lambda token: pull_pipeline(ID, tmp_path / "theirs", token=token)]
    attempts.append(lambda token: push_pipeline(pipeline, ID, token=token, variant=None))
    for token in (BOB, "hf_" + "c" * 30, f"{ALICE}\n"):
        for attempt in attempts:
            with pytest.raises(OSError, match=r"alice/digits was not (written|downloaded)") as caught:
                attempt(token)
            assert token.strip() not in str(caught.value)
            assert caught.value.__context__ is None
    monkeypatch.delenv("HF_TOKEN")
    for attempt in attempts:
        with pytest.raises(OSError, match=r"alice/digits was not (written|downloaded)") as caught:
            attempt(None)
    assert "hf auth login" in str(caught.value)
    assert not (tmp_path / "theirs").exists()
    assert len(hub.commits(ID)) == 2


@pytest.mark.parametrize("token", [ALICE, "hf_" + "z" * 34])
def test_a_token_in_a_file_stops_the_push_before_anything_is_sent(hub, folder, token):
    (folder / "run.json").write_text(json.dumps({"hub_token": token}))
    with pytest.raises(ValueError, match=r"run.json, line 1, holds a token of the Hub, expected none") as caught:
        push_pipeline(folder, ID)
    assert token not in str(caught.value)
    assert hub.requests == []


@pytest.mark.parametrize(
    ("kind", "secret"),
    [
        ("a token of the Hub", "hf_" + "Q" * 34),
        ("a token of GitHub", "ghp_" + "a1" * 18),
        ("a key of AWS", "AKIA" + "Z9" * 8),
        ("a key of Google", "AIza" + "x-_8" * 8 + "abc"),
        ("a key of a language model's service", "sk-proj-" + "Ab3_" * 10),
        ("a token of Slack", "xoxb-" + "12-ab" * 6),
        ("a private key", "-----BEGIN RSA PRIVATE KEY-----"),
    ],
)
@pytest.mark.parametrize("name", ["LICENSE", "training.log", "README.md", "notes"])
def test_a_secret_in_a_text_of_any_name_is_found_with_its_line(tmp_path, kind, secret, name):
    file = tmp_path / name
    file.write_text(f"first\n\nexport KEY={secret}\n")
    with pytest.raises(ValueError, match=rf"{name}, line 3, holds {kind}, expected none") as caught:
        check_no_secrets({name: file}, None)
    assert secret not in str(caught.value)
    file.write_text("a risk-free task-specific sk-learn, hf_hub_download, AKIA")
    check_no_secrets({name: file}, None)


def test_pull_refuses_pickles_names_that_lead_out_and_what_is_no_pipeline(hub, folder, tmp_path):
    files = read(folder)
    rest = {name: data for name, data in files.items() if name != FULL}
    hub.put("alice/pickled", rest | {"unet/diffusion_pytorch_model.bin": files[FULL]})
    hub.put("alice/notes", {"README.md": b"notes"})
    hub.put("alice/both", files | {"unet/diffusion_pytorch_model.bin": b"pickle"})
    names = ("../out.json", "unet/../../out.json", "/out.json", "a\\..\\out.json", "C:out.json")
    for i, name in enumerate(names):
        hub.put(f"alice/out{i}", files | {name: b"{}"})
        with pytest.raises(ValueError, match=r"expected names inside its folder"):
            pull_pipeline(f"alice/out{i}", tmp_path / "pulled")
    with pytest.raises(ValueError, match=r"unet/diffusion_pytorch_model.bin is a pickle, expected .safetensors"):
        pull_pipeline("alice/pickled", tmp_path / "pulled")
    with pytest.raises(ValueError, match=r"alice/notes holds no model_index.json"):
        pull_pipeline("alice/notes", tmp_path / "pulled")
    with pytest.raises(ValueError, match=r"`repo_id` is 'a/b/c', expected 'owner/name'"):
        pull_pipeline("a/b/c", tmp_path / "pulled")
    assert not (tmp_path / "pulled").exists()
    assert not list(tmp_path.rglob("out.json"))
    assert not [
        name for name in read(pull_pipeline("alice/both", tmp_path / "pulled")) if name.endswith((".bin", ".pt"))
    ]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "diary.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"expected a new or empty folder or that of a pipeline"):
        pull_pipeline("alice/both", tmp_path / "mine")


# -------------------------------------------------------------------------------------------------------- the commands
def test_the_commands_push_pull_and_refuse_in_one_line(hub, folder, tmp_path, capsys):
    assert main(["push", str(folder), ID, "--private", "--revision", "dev", "--variant", "none"]) == 0
    assert f"Published: {hub.url}/{ID}/commit/" in capsys.readouterr().out
    assert main(["pull", ID, str(tmp_path / "pulled"), "--revision", "dev"]) == 0
    assert f"Downloaded: {tmp_path / 'pulled'}" in capsys.readouterr().out
    assert (tmp_path / "pulled" / FULL).read_bytes() == (folder / FULL).read_bytes()
    assert main(["push", str(tmp_path / "nowhere"), ID]) == 2
    assert main(["pull", "alice/nothing", str(tmp_path / "nothing")]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 2
    assert "expected a pipeline or a folder that holds a model_index.json" in lines[0]
    assert "alice/nothing was not downloaded" in lines[1]


def test_a_data_set_is_pushed_with_its_card_in_one_commit_and_its_old_parts_go_away(hub, tmp_path):
    pytest.importorskip("datasets")
    clips = MovingMNIST(split="test", num_frames=3, image_size=32, num_videos=4)
    folder = write_parquet(tmp_path / "clips", clips, videos_per_file=2)
    hub.put("alice/clips", {"data/test-00000-of-00001.parquet": b"old"}, kind="datasets")
    assert main(["dataset", "push", str(folder), "alice/clips"]) == 0
    assert len(hub.commits("alice/clips", "datasets")) == 2
    files = hub.files("alice/clips", "datasets")
    parts = [f"data/test-0000{i}-of-00002.parquet" for i in range(2)]
    assert sorted(files) == ["README.md", *parts, "preview.gif"]
    shown = read_video(io_file(tmp_path, files["preview.gif"]))
    assert np.array_equal(resize(shown, 32, 64), tile(list(clips.batch(range(2))[..., None]), 2))
    assert "(classic)\n\n![clips](preview.gif)" in files["README.md"].decode()
    assert all(files[part] == (folder / part).read_bytes() for part in parts)
    assert 'load_dataset("alice/clips"' in files["README.md"].decode()
    with pytest.raises(ValueError, match=r"`folder` is .*, expected one of `video-diffusion dataset build`"):
        push_dataset(tmp_path, "alice/clips")
