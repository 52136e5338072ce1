"""The demo as people meet it: a real browser, the embedded model, every tab to a clip that can be seen.

Where there is no Chromium these tests are skipped, except in CI, where they then fail: it is to install one.
"""

import os
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from demo_server import serving
from denoisers import SMALLEST, tiny_denoiser
from video_diffusion import VideoDiffusionPipeline, VPContinuousScheduler
from video_diffusion.data import MovingMNIST
from video_diffusion.data.reading import read_video
from video_diffusion.data.video_io import resize, write_gif, write_mp4
from video_diffusion.demo.studio import Studio
from video_diffusion.hub.folder import resolve_model

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
NO_CHROMIUM = "there is no chromium here: apt-get install chromium"
if CHROMIUM is None and not os.environ.get("CI"):
    pytest.skip(NO_CHROMIUM, allow_module_level=True)

FIRST_RESULT = 20  # seconds, on two cores
SCREENSHOTS = os.environ.get("DEMO_SCREENSHOTS")  # a folder to keep pictures in, for people


# ---------------------------------------------------------------------------------------------------- server, browser
@pytest.fixture(scope="module")
def url():
    with serving(Studio(VideoDiffusionPipeline.from_pretrained(resolve_model("moving-mnist")))) as url:
        yield url


@pytest.fixture(scope="module")
def browser():
    assert CHROMIUM is not None, NO_CHROMIUM
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


class Visitor:
    """A person with a page open; what the browser complains about is kept."""

    def __init__(self, browser, url, name, folder):
        self.name, self.folder = name, folder
        self.complaints, self.elsewhere, self.expected = [], [], ()
        self.context = browser.new_context(viewport={"width": 1280, "height": 1000}, accept_downloads=True)
        self.page = self.context.new_page()
        self.page.set_default_timeout(60_000)
        self.page.on("console", lambda m: self.complaints.append(m.text) if m.type == "error" else None)
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on(
            "request", lambda r: None if r.url.startswith((url, "data:", "blob:")) else self.elsewhere.append(r.url)
        )
        self.page.goto(url)

    def open(self, tab):
        self.page.get_by_role("tab", name=tab).click()
        self.panel = self.page.get_by_role("tabpanel").filter(visible=True)
        return self

    def set(self, label, value):
        self.panel.get_by_role("spinbutton", name=label).fill(str(value))
        self.panel.get_by_role("spinbutton", name=label).press("Tab")

    def press(self, name):
        self.panel.get_by_role("button", name=name, exact=True).click()

    def example(self, name, label, value):
        """Presses an example and waits until it has set a control."""
        self.press(name)
        control = self.panel.get_by_role("spinbutton", name=label)
        self.page.wait_for_function("([i, v]) => i.value === v", arg=[control.element_handle(), str(value)])

    def upload(self, *files):
        """Drops files on the panel and waits until they have arrived: each then has a row."""
        self.panel.locator("input[type=file]").first.set_input_files(files)
        for file in files:
            self.panel.locator(".file-preview tr").filter(has_text=file.stem).wait_for()

    def choose(self, label):
        self.panel.get_by_label(label, exact=True).click()

    def clip(self, summary):
        """Waits for the line about a clip and for its picture, which is there in full; returns the GIF's frames."""
        self.panel.get_by_text(summary).wait_for()
        picture = self.panel.locator("img[src*='.gif']")
        picture.wait_for()
        self.page.wait_for_function("i => i.complete && i.naturalWidth >= 256", arg=picture.element_handle())
        self.picture()
        return self.download("Download GIF", "gif")

    def download(self, button, ending):
        with self.page.expect_download() as caught:
            self.press(button)
        path = self.folder / caught.value.suggested_filename
        assert path.suffix == f".{ending}"
        caught.value.save_as(path)
        return resize(read_video(path), 64, 64)

    def message(self, text):
        toast = self.page.get_by_test_id("toast-body").filter(has_text=text).last
        toast.wait_for()
        self.picture()
        toast.get_by_test_id("toast-close").click()

    def picture(self):
        if SCREENSHOTS:
            count = len(list(Path(SCREENSHOTS).glob(f"{self.name}-*")))
            self.page.screenshot(path=f"{SCREENSHOTS}/{self.name}-{count}.png", full_page=True)


@pytest.fixture
def visit(browser, request, tmp_path):
    """A function that opens the page; at the end no visitor's browser has complained or asked anybody else."""
    visitors = []

    def open_page(url):
        visitors.append(Visitor(browser, url, f"{request.node.name[5:40]}-{len(visitors)}", tmp_path))
        return visitors[-1]

    yield open_page
    for visitor in visitors:
        visitor.picture()
    complaints = [
        ([text for text in visitor.complaints if not text.endswith(visitor.expected)], visitor.elsewhere)
        for visitor in visitors
    ]
    for visitor in visitors:
        visitor.context.close()
    assert complaints == [([], [])] * len(visitors)


def truth(clip, frames=10):
    return MovingMNIST(split="test", num_frames=frames, image_size=64, seed=0).batch([clip])[0][..., None]


# ------------------------------------------------------------------------------------------------------- every tab
def test_the_first_clip_is_there_in_time_and_can_be_downloaded(url, visit):
    visitor = visit(url).open("Generate")
    start = time.monotonic()
    visitor.press("Generate")
    visitor.panel.get_by_text("10 frames, 10 steps of dpm++, seed 0").wait_for()
    assert time.monotonic() - start < FIRST_RESULT
    clip = visitor.clip("10 frames, 10 steps of dpm++, seed 0")
    assert clip.shape == (10, 64, 64, 1)
    assert clip.max() > 128
    movie = visitor.download("Download MP4", "mp4")
    assert movie.shape == clip.shape
    assert np.abs(movie.astype(int) - clip).mean() < 8
    visitor.press("Random seed")
    seed = visitor.panel.get_by_role("spinbutton", name="Seed")
    visitor.page.wait_for_function("i => i.value !== '0'", arg=seed.element_handle())
    visitor.example("unipc, 10 steps", "Seed", 1)
    visitor.set("number input for Frames", 3)
    visitor.press("Generate")
    assert len(visitor.clip("3 frames, 10 steps of unipc, seed 1")) == 3


def test_predict_from_the_data_set_an_upload_and_a_drawing(url, visit, tmp_path):
    visitor = visit(url).open("Predict")
    visitor.set("number input for Steps", 2)
    visitor.example("test clip 21", "number input for Number of the test clip", 21)
    visitor.press("Predict")
    assert np.array_equal(visitor.clip("10 frames, 2 steps")[:5], truth(21)[:5])

    write_gif(truth(2)[:6], tmp_path / "mine.gif", scale=2)
    visitor.choose("Upload")
    visitor.upload(tmp_path / "mine.gif")
    visitor.set("number input for Given", 6)
    visitor.set("number input for Frames", 8)
    visitor.press("Predict")
    assert np.array_equal(visitor.clip("8 frames, 2 steps")[:6], truth(2)[:6])

    visitor.choose("Drawing")
    draw(visitor)
    visitor.press("Add 5 moving frames")
    visitor.panel.locator(".gallery-item, .thumbnail-item").nth(4).wait_for()
    visitor.set("number input for Frames", 7)
    visitor.press("Predict")
    clip = visitor.clip("7 frames, 2 steps")
    assert clip[0].max() == 255
    assert np.array_equal(clip[1, 1:, 3:], clip[0, :-1, :-3])  # three to the right and one down


def draw(visitor):
    """Draws two strokes on the sketch pad."""
    visitor.panel.get_by_label("Brush", exact=True).click()
    canvas = visitor.panel.locator("canvas").first
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    mouse = visitor.page.mouse
    mouse.move(x - 60, y - 60)
    mouse.down()
    mouse.move(x + 20, y - 60, steps=8)
    mouse.move(x - 20, y + 60, steps=8)
    mouse.up()
    visitor.page.wait_for_timeout(300)


def test_interpolate_from_the_data_set_and_png_frames(url, visit, tmp_path):
    visitor = visit(url).open("Interpolate")
    visitor.set("number input for Steps", 2)
    visitor.press("Interpolate")
    assert np.array_equal(visitor.clip("10 frames, 2 steps")[[0, -1]], truth(3)[[0, -1]])
    for name, place in {"first": 0, "second": 5}.items():
        Image.fromarray(truth(4)[place, ..., 0]).save(tmp_path / f"{name}.png")
    visitor.choose("Upload")
    visitor.upload(tmp_path / "second.png", tmp_path / "first.png")
    visitor.set("number input for Frames", 6)
    visitor.press("Interpolate")
    assert np.array_equal(visitor.clip("6 frames, 2 steps")[[0, -1]], truth(4)[[0, 5]])


def test_a_long_video_from_noise_and_after_an_mp4(url, visit, tmp_path):
    visitor = visit(url).open("Long video")
    visitor.example("from noise, in order", "number input for Frames", 20)
    visitor.set("number input for Steps", 2)
    visitor.press("Make it long")
    assert len(visitor.clip("20 frames, 6 steps")) == 20
    write_mp4(truth(1)[:5], tmp_path / "mine.mp4", scale=4)
    visitor.choose("Upload")
    visitor.upload(tmp_path / "mine.mp4")
    visitor.set("number input for Frames", 12)
    visitor.press("Make it long")
    clip = visitor.clip("12 frames, 4 steps")
    assert np.abs(clip[:5].astype(int) - truth(1)[:5]).mean() < 8


def test_text_is_followed_by_a_model_that_reads_and_refused_by_one_that_does_not(url, visit):
    reader = visit(url).open("Text")
    assert not reader.panel.get_by_text("This model has no text encoder").is_visible()
    reader.press("the digits 3 and 8")
    prompt = reader.panel.get_by_label("Prompt")
    reader.page.wait_for_function("i => i.value === 'the digits 3 and 8'", arg=prompt.element_handle())
    reader.set("number input for Steps", 2)
    reader.press("Make it")
    assert len(reader.clip("10 frames, 2 steps")) == 10

    unet = tiny_denoiser(**SMALLEST | {"sample_size": 32, "patch_size": 4})
    with serving(Studio(VideoDiffusionPipeline(unet, VPContinuousScheduler()))) as other:
        visitor = visit(other).open("Text")
        visitor.panel.get_by_text("This model has no text encoder").wait_for()
        visitor.panel.get_by_label("Prompt").fill("moving digit")
        visitor.press("Make it")
        visitor.message("This model has no text encoder")


# ----------------------------------------------------------------------------------------------------- what is refused
def test_a_bad_upload_and_an_empty_drawing_are_answered_by_messages(url, visit, tmp_path):
    visitor = visit(url).open("Predict")
    visitor.choose("Upload")
    visitor.press("Predict")
    visitor.message("There is no upload yet")
    (tmp_path / "bad.gif").write_text("<script>alert(1)</script>")
    visitor.upload(tmp_path / "bad.gif")
    visitor.press("Predict")
    visitor.message("bad.gif is not a video that the demo takes: expected a GIF, an MP4, an npy array or PNG frames.")
    visitor.choose("Drawing")
    visitor.press("Predict")
    visitor.message("There are no drawn frames yet")
    visitor.press("Add frame")
    visitor.message("The drawing is empty")
    visitor.choose("Data set")
    visitor.set("number input for Steps", 1)
    visitor.press("Predict")
    assert len(visitor.clip("10 frames, 1 steps")) == 10  # and the page still works


def test_an_upload_beyond_the_limit_is_answered_by_a_message(url, visit, tmp_path):
    visitor = visit(url).open("Predict")
    visitor.choose("Upload")
    (tmp_path / "big.gif").write_bytes(b"GIF89a" + bytes(9 * 2**20))
    visitor.panel.locator("input[type=file]").first.set_input_files(tmp_path / "big.gif")
    visitor.message("maximum")
    visitor.expected = ("404 (Not Found)", "Response")  # the page still asks how far the upload is that it refused


# ----------------------------------------------------------------------------------------------------------- visitors
def test_two_visitors_at_once_get_their_own_clips(url, visit):
    visitors = [visit(url).open("Generate") for _ in range(2)]
    for seed, visitor in enumerate(visitors):
        visitor.set("number input for Steps", 8)
        visitor.panel.get_by_role("spinbutton", name="Seed").fill(str(seed))
    for visitor in visitors:
        visitor.press("Generate")
    clips = [visitor.clip(f"10 frames, 8 steps of dpm++, seed {seed}") for seed, visitor in enumerate(visitors)]
    assert not np.array_equal(*clips)
