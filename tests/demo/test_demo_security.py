"""What the demo's server refuses of programs that do not go through the page: names, paths, sizes, numbers, HTML."""

import io
import json
import sys
import threading
import urllib.error
from pathlib import Path

import numpy as np
import pytest

from demo_server import as_file, call, messages, request, serving, upload, wait_for
from denoisers import SMALLEST, tiny_denoiser
from video_diffusion import VideoDiffusionPipeline, VPContinuousScheduler
from video_diffusion.cli import main
from video_diffusion.data.video_io import write_gif
from video_diffusion.demo.limits import Limits, whole
from video_diffusion.demo.studio import Studio

pytest.importorskip("gradio")

SIZE, FRAMES = 32, 5
LIMITS = Limits(upload_bytes=100_000, work=40 * FRAMES * SIZE * SIZE, frames=30)
HOW = {"clips": 1, "sampler": "dpm++", "steps": 1, "gamma": 0.3, "guidance": 0, "history": 1}
HOW |= {"order": "autoregressive", "seed": 0}
QUICK = tuple(HOW.values())


@pytest.fixture(scope="module")
def studio():
    unet = tiny_denoiser(**SMALLEST | {"sample_size": SIZE, "num_frames": FRAMES, "patch_size": 4})
    return Studio(VideoDiffusionPipeline(unet, VPContinuousScheduler()), LIMITS)


@pytest.fixture(scope="module")
def url(studio):
    with serving(studio) as url:
        yield url


@pytest.fixture
def gif(tmp_path):
    write_gif(
        np.random.default_rng(0).integers(0, 256, (3, SIZE, SIZE, 1), dtype=np.uint8), tmp_path / "c.gif", scale=1
    )
    return (tmp_path / "c.gif").read_bytes()


def predict(url, files, frames=FRAMES, given=2):
    return call(url, "predict", "Upload", 0, files, given, frames, *QUICK)


def generate(url, frames, settings=QUICK, prompt="", follow=1):
    return call(url, "generate", prompt, "", follow, frames, *settings)


def refused(message, *asked):
    with pytest.raises(RuntimeError, match=message):
        call(*asked)


# --------------------------------------------------------------------------------------------------------------- files
@pytest.mark.parametrize(
    "name",
    ["../../../../tmp/evil.gif", "..\\..\\evil.gif", "/etc/cron.d/evil", "%2e%2e%2fevil.gif", "a/../../b", ""],
)
def test_an_uploaded_file_stays_in_the_servers_folder_whatever_it_is_called(url, gif, name):
    from gradio.utils import get_upload_folder

    path = Path(upload(url, name, gif))
    assert path.resolve().is_relative_to(Path(get_upload_folder()).resolve())
    assert ".." not in path.parts
    assert not Path("/etc/cron.d/evil").exists()
    assert not Path("/tmp/evil.gif").exists()
    clip, _, _, summary, *_ = predict(url, as_file(str(path)))
    assert f"{FRAMES} frames, 1 steps of dpm++" in summary
    assert clip["path"].endswith(".gif")


@pytest.mark.parametrize("place", ["/etc/passwd", "{path}/../../../../../../../etc/passwd", "pyproject.toml"])
def test_a_file_that_was_not_uploaded_is_not_read(url, gif, place):
    with pytest.raises(RuntimeError) as caught:
        predict(url, as_file(place.format(path=upload(url, "clip.gif", gif))))
    assert "root:" not in str(caught.value)


@pytest.mark.parametrize("address", ["http://127.0.0.1:1/clip.gif", "https://example.com/c.gif", "file:///etc/passwd"])
def test_an_address_is_not_fetched(url, address, monkeypatch):
    async def fetch(*given, **named):
        pytest.fail("it was fetched")

    monkeypatch.setattr("gradio.processing_utils.async_ssrf_protected_get", fetch)
    with pytest.raises(RuntimeError, match="An address is not fetched" if address.startswith("http") else None):
        predict(url, as_file(address))


@pytest.mark.parametrize("place", ["/etc/passwd", "../../etc/passwd", "pyproject.toml", "/proc/self/environ"])
def test_the_server_hands_out_nothing_but_its_results(url, place):
    with pytest.raises(urllib.error.HTTPError) as caught:
        request(f"{url}/gradio_api/file={place}")
    assert caught.value.code in (403, 404)


def test_an_upload_beyond_the_limit_is_refused_while_it_arrives_and_several_together_too(url, gif):
    with pytest.raises(urllib.error.HTTPError) as caught:
        upload(url, "big.gif", b"GIF89a" + bytes(LIMITS.upload_bytes))
    assert caught.value.code == 413
    part = b"\x89PNG\r\n\x1a\n" + bytes(LIMITS.upload_bytes // 2)
    files = [file for i in range(3) for file in as_file(upload(url, f"{i}.png", part), f"{i}.png")]
    with pytest.raises(RuntimeError, match=r"The upload has 0\.1 MiB, expected at most"):
        predict(url, files)


def test_other_content_under_the_right_name_is_answered_by_a_message_without_folders(url):
    for name, data in {"clip.gif": b"<script>", "clip.mp4": b"#EXTM3U\n", "clip.npy": b"\x80\x04\x95."}.items():
        with pytest.raises(RuntimeError, match=f"{name} is not a video that the demo takes") as caught:
            predict(url, as_file(upload(url, name, data), name))
        assert "gradio/" not in str(caught.value)


def test_a_message_is_text_and_no_html(url):
    import gradio

    from video_diffusion.demo.parts import refusing

    with pytest.raises(gradio.Error) as caught:
        refusing(whole, "frames", "<img src=x onerror=alert(1)>", 1, 2)
    assert "&lt;img" in str(caught.value)
    assert "<" not in str(caught.value)
    data = io.BytesIO()
    np.save(data, np.zeros((2, 2), np.uint8))
    with pytest.raises(RuntimeError, match="has shape") as answered:
        predict(url, as_file(upload(url, "<img src=x onerror=alert(1)>.npy", data.getvalue())))
    assert "<" not in str(answered.value)


# ------------------------------------------------------------------------------------------------------------- numbers
@pytest.mark.parametrize(
    ("frames", "changes"),
    [
        (10**6, {}),
        (-1, {}),
        (3.5, {}),
        ("3", {}),
        (True, {}),
        (None, {}),
        ([3], {}),
        (float("nan"), {}),
        (float("inf"), {}),
        (3, {"steps": float("nan")}),
        (3, {"sampler": "ancestral", "gamma": float("nan")}),
        (3, {"sampler": "ancestral", "guidance": float("nan")}),
        (3, {"history": float("nan")}),
        (3, {"history": 10**6}),
        (3, {"history": 2}),
        (3, {"steps": 10**6}),
        (3, {"steps": 0}),
        (3, {"steps": 1.5}),
        (3, {"clips": 0}),
        (3, {"clips": 5}),
        (3, {"clips": float("nan")}),
        (3, {"order": "forever"}),
        (3, {"sampler": "__import__"}),
        (3, {"sampler": "ancestral", "gamma": 7}),
        (3, {"sampler": "ancestral", "guidance": 10**6}),
        (3, {"sampler": "ancestral", "guidance": 1}),
        (3, {"seed": -1}),
        (3, {"seed": 2**64}),
    ],
)
def test_a_number_beyond_its_slider_is_refused_and_the_model_is_not_run(url, studio, monkeypatch, frames, changes):
    monkeypatch.setattr(studio, "sample", lambda *given: pytest.fail("the model was run"))
    with pytest.raises(RuntimeError):
        generate(url, frames, tuple((HOW | changes).values()))


def test_numbers_within_their_sliders_that_are_too_much_together_are_refused(url):
    many = tuple((HOW | {"steps": 20}).values())
    refused("This takes .* network calls .* at most 40", url, "generate", "", "", 1, 30, *many)
    several = tuple((HOW | {"steps": 11, "clips": 4}).values())
    refused("This takes 44 network calls .* at most 40", url, "generate", "", "", 1, FRAMES, *several)
    refused("expected fewer than all of them", url, "predict", "Test clip", 0, None, 4, 4, *QUICK)


def test_a_call_that_is_no_json_or_has_too_few_values_is_refused(url):
    for body in (b"[]", b"{", b'{"data": 3}'):
        with pytest.raises(urllib.error.HTTPError) as caught:
            request(f"{url}/gradio_api/call/generate", body, {"Content-Type": "application/json"})
        assert 400 <= caught.value.code < 500
    with pytest.raises(RuntimeError):
        call(url, "generate", 3)


def test_a_prompt_is_answered_by_a_message_where_the_model_reads_none(url):
    refused("This model has no text encoder", url, "generate", "a 3", "", 3, 3, *QUICK)


def test_programs_can_call_the_three_tabs_and_nothing_else(url):
    info = json.loads(request(f"{url}/gradio_api/info"))
    assert sorted(info["named_endpoints"]) == ["/generate", "/interpolate", "/predict"]
    assert info["unnamed_endpoints"] == {}
    page = json.loads(request(f"{url}/config"))
    assert not page.get("analytics_enabled", False)


# ----------------------------------------------------------------------------------------------------------- the queue
def test_who_waits_is_told_the_place_and_a_cheap_request_passes_a_dear_one(url, studio, monkeypatch):
    """Three visitors at once: the first runs until the third is there; the third asks for less than the second."""
    plain, free, order = studio.sample, threading.Event(), []

    def sample(task, settings, *given):
        order.append(settings.steps)
        free.wait(30)
        return plain(task, settings, *given)

    monkeypatch.setattr(studio, "sample", sample)
    monkeypatch.setattr(studio.turns, "rate", 1e-4)
    asked = {steps: tuple((HOW | {"steps": steps}).values()) for steps in (1, 8, 2)}
    said = {steps: [] for steps in asked}

    def visit(steps):
        for message in messages(url, "generate", "", "", 1, FRAMES, *asked[steps]):
            said[steps].append(message)

    threads = [threading.Thread(target=visit, args=(steps,)) for steps in asked]
    for number, thread in enumerate(threads):
        thread.start()
        wait_for(lambda number=number: len(order) + len(studio.turns.waiting) == number + 1)
    wait_for(lambda: "2 requests are before yours, for about" in json.dumps(said[8]))  # the third has passed it
    assert "1 request is before yours, for about" in json.dumps(said[2])
    free.set()
    for thread in threads:
        thread.join(60)
    assert order == [1, 2, 8]
    assert all(messages[-1]["msg"] == "process_completed" and messages[-1]["success"] for messages in said.values())


def test_a_request_whose_worker_fails_is_answered_and_the_next_one_is_served(url, studio, monkeypatch):
    def fail(*given):
        raise MemoryError

    with monkeypatch.context() as patched:
        patched.setattr(studio, "sample", fail)
        refused("The memory does not suffice: ask for fewer frames or clips", url, "generate", "", "", 1, 3, *QUICK)
        patched.setattr(studio, "sample", lambda *given: 1 / 0)
        with pytest.raises(RuntimeError):
            generate(url, 3)
    assert "1 steps of dpm++" in generate(url, 3)[3]
    assert studio.turns.running is None


# --------------------------------------------------------------------------------------------------------- the command
def test_the_command_listens_on_this_machine_only_and_bounds_images_and_uploads(monkeypatch, tmp_path):
    import gradio
    from PIL import Image

    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)
    monkeypatch.delenv("GRADIO_SERVER_NAME", raising=False)
    seen = {}
    monkeypatch.setattr(gradio.Blocks, "launch", lambda page, **options: seen.update(options, page=page))
    monkeypatch.setattr("video_diffusion.demo.page.finished_clips", lambda studio: {})
    assert main(["demo", "--port", "7999", "--dtype", "float32"]) == 0
    assert seen["server_name"] is None  # gradio's own default: 127.0.0.1
    assert seen["server_port"] == 7999
    assert seen["max_file_size"] == Limits().upload_bytes
    assert not seen["share"]
    assert Image.MAX_IMAGE_PIXELS <= 2**21
    from video_diffusion.demo.page import CALLED

    workers = {f.concurrency_limit for f in seen["page"].fns.values() if f.concurrency_id == "model"}
    assert workers == {CALLED}
    assert main(["demo", "--port", "70000"]) == 2
    assert main(["demo", "--model", str(tmp_path / "nowhere")]) == 2


def test_without_gradio_the_command_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "gradio", None)
    for name in ("page", "parts"):
        monkeypatch.delitem(sys.modules, f"video_diffusion.demo.{name}", raising=False)
    assert main(["demo"]) == 2
    assert "The demo needs gradio: pip install 'video-diffusion[demo]'" in capsys.readouterr().err
