"""The demo as people meet it: a real browser, every tab to a clip that can be seen.

The embedded model makes the first clip; a small one in its place makes the others, so that most of the time is the
browser's.

Where there is no Chromium these tests are skipped, except in CI, where they then fail: it is to install one.
`DEMO_SCREENSHOTS=docs/screenshots pytest tests/demo/test_demo_browser.py -k opens` takes the docs' pictures anew.
"""

import io
import json
import os
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Error as PlaywrightError

from browsers import CHROMIUM, NO_CHROMIUM
from demo_server import request, serving
from denoisers import SMALLEST, small_moving_mnist, tiny_denoiser
from video_diffusion import VideoDiffusionPipeline, VPContinuousScheduler
from video_diffusion.data import MovingMNIST
from video_diffusion.data.reading import read_video
from video_diffusion.data.video_io import resize, write_gif, write_mp4
from video_diffusion.demo.page import finished_clips
from video_diffusion.demo.studio import Studio
from video_diffusion.sampling import OWN_SAMPLER, load_pipeline

if CHROMIUM is None and not os.environ.get("CI"):
    pytest.skip(NO_CHROMIUM, allow_module_level=True)

GENERATION_CONFIG = Path(__file__).parents[2] / "pipelines" / "moving-mnist" / "generation_config.json"
STEPS = json.loads(GENERATION_CONFIG.read_text())["num_inference_steps"]
FIRST_RESULT = 90  # seconds, on two cores, even without bfloat16
SCREENSHOTS = os.environ.get("DEMO_SCREENSHOTS")  # a folder to keep pictures in
SCREENS = {"phone": {"width": 390, "height": 844}, "laptop": {"width": 1280, "height": 800}}


# ---------------------------------------------------------------------------------------------------- server, browser
@pytest.fixture(scope="module")
def studio():
    return Studio(load_pipeline("moving-mnist", OWN_SAMPLER) if SCREENSHOTS else small_moving_mnist())


@pytest.fixture(scope="module")
def url(studio):
    with serving(studio, finished_clips(studio)) as url:
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

    def __init__(self, browser, url, folder, screen="laptop", **context):
        self.folder = folder
        self.complaints, self.elsewhere, self.expected = [], [], ()
        self.context = browser.new_context(viewport=SCREENS[screen], accept_downloads=True, **context)
        self.page = self.context.new_page()
        self.page.set_default_timeout(90_000)
        self.page.on("console", lambda m: self.complaints.append(m.text) if m.type == "error" else None)
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        own = (url.split("?")[0], "data:", "blob:")
        self.page.on("request", lambda r: None if r.url.startswith(own) else self.elsewhere.append(r.url))
        self.page.goto(url)

    def open(self, tab, options=True):
        """Opens a tab, and the options in it."""
        self.page.get_by_role("tab", name=tab, exact=True).click()
        self.panel = self.page.get_by_role("tabpanel").filter(visible=True)
        if options:
            self.unfold("Options")
            self.unfold("For experts")
        return self

    def unfold(self, name):
        button = self.page.get_by_role("button", name=name).filter(visible=True)
        if "open" not in (button.get_attribute("class") or "").split():
            button.click()

    def set(self, label, value):
        """Types a number, twice: a box of a tab that the page still builds forgets the first."""
        box = self.panel.get_by_role("spinbutton", name=label)
        for _ in range(2):
            box.fill(str(value))
            box.press("Tab")
            self.page.wait_for_timeout(300)

    def press(self, name):
        self.panel.get_by_role("button", name=name, exact=True).click()

    def value(self, label, value):
        """Waits until a control has a value."""
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
        try:
            self.page.get_by_role("status").filter(has_text=summary).wait_for()
        except PlaywrightError as error:
            said = [text for role in ("status", "alert") for text in self.page.get_by_role(role).all_inner_texts()]
            raise AssertionError(f"The page says {said}, expected {summary!r}.") from error
        assert self.playing() > 1
        return self.download("Download GIF", "gif")

    def playing(self):
        """How many frames the shown picture has, once it is there in full."""
        picture = self.page.get_by_role("img", name="The clips, playing")
        picture.wait_for()
        self.page.wait_for_function("i => i.complete && i.naturalWidth >= 64", arg=picture.element_handle())
        return Image.open(io.BytesIO(request(picture.get_attribute("src")))).n_frames

    def download(self, button, ending, width=64):
        with self.page.expect_download() as caught:
            self.page.get_by_role("button", name=button).click()
        path = self.folder / caught.value.suggested_filename
        assert path.suffix == f".{ending}"
        caught.value.save_as(path)
        return resize(read_video(path), 64, width)

    def message(self, text):
        toast = self.page.get_by_test_id("toast-body").filter(has_text=text).last
        toast.wait_for()
        toast.get_by_test_id("toast-close").click()

    def picture(self, name):
        """Keeps what is on the screen, in few colours, where a person asked for it."""
        if SCREENSHOTS:
            image = Image.open(io.BytesIO(self.page.screenshot()))
            Path(SCREENSHOTS).mkdir(parents=True, exist_ok=True)
            image.convert("RGB").quantize(128).save(Path(SCREENSHOTS) / f"{name}.png", optimize=True)


@pytest.fixture
def visit(browser, tmp_path):
    """A function that opens the page; at the end no visitor's browser has complained or asked anybody else."""
    visitors = []

    def open_page(url, **options):
        visitors.append(Visitor(browser, url, tmp_path, **options))
        return visitors[-1]

    yield open_page
    complaints = [
        ([text for text in visitor.complaints if not text.endswith(visitor.expected)], visitor.elsewhere)
        for visitor in visitors
    ]
    for visitor in visitors:
        visitor.context.close()
    assert complaints == [([], [])] * len(visitors)


def truth(clip, frames=20):
    return MovingMNIST(split="test", num_frames=frames, image_size=64, seed=0).batch([clip])[0][..., None]


# ------------------------------------------------------------------------------------------------------ the first look
@pytest.mark.parametrize("screen", SCREENS)
def test_the_page_opens_with_a_clip_that_plays_and_a_button_in_sight(url, visit, screen):
    visitor = visit(url, screen=screen)
    assert visitor.playing() == 20
    button = visitor.page.get_by_role("button", name="Continue the clip").bounding_box()
    size = SCREENS[screen]
    assert button["y"] + button["height"] < size["height"]
    assert button["height"] >= 44
    assert button["width"] > size["width"] / 4
    assert visitor.page.evaluate("document.documentElement.scrollWidth") <= size["width"]
    picture = visitor.page.get_by_role("img", name="The clips, playing").bounding_box()
    assert picture["y"] < size["height"]  # it begins in sight too
    assert not visitor.page.get_by_role("radio", name="unipc").filter(visible=True).count()  # folded away
    assert visitor.page.get_by_role("button", name="Thumbnail").count() == 5
    visitor.page.wait_for_timeout(500)
    visitor.picture(screen)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_can_be_read_in_light_and_in_dark(url, visit, scheme):
    page = visit(url, color_scheme=scheme).page
    page.get_by_role("status").wait_for()
    found = page.evaluate(CONTRAST)
    assert found["ground"] > 0.8 if scheme == "light" else found["ground"] < 0.1
    assert found["contrast"] > 4.5  # WCAG 2, level AA


CONTRAST = """() => {
  const light = colour => colour.match(/[\\d.]+/g).slice(0, 3).map(v => v / 255)
    .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0)
  const colours = [document.querySelector('.gradio-container'), document.body, document.documentElement]
    .map(e => getComputedStyle(e).backgroundColor)
  const ground = light(colours.find(c => c !== 'rgba(0, 0, 0, 0)') ?? 'rgb(255, 255, 255)')
  const text = light(getComputedStyle(document.querySelector('[role=status]')).color)
  return {ground, contrast: (Math.max(ground, text) + 0.05) / (Math.min(ground, text) + 0.05)}
}"""
NAMELESS = """() => [...document.querySelectorAll('button, input, textarea, [role=slider], img')]
  .filter(e => e.checkVisibility() && !e.ariaLabel && !e.alt && !e.title && !e.innerText?.trim())
  .filter(e => !e.querySelector('img[alt]'))
  .filter(e => !e.ariaLabelledByElements?.length && !e.labels?.length)
  .map(e => e.outerHTML.slice(0, 200))"""


def test_a_keyboard_and_a_screen_reader_are_enough(url, visit):
    visitor = visit(url).open("Create")
    assert visitor.page.evaluate(NAMELESS) == []
    visitor.set("number input for Steps", 1)
    visitor.set("number input for Number of frames", 4)
    prompt = visitor.panel.get_by_label("What it shows")
    prompt.press("Tab")
    assert visitor.page.evaluate("document.activeElement.innerText.trim()") == "Create a clip"
    visitor.page.keyboard.press("Enter")
    assert len(visitor.clip("4 frames, 1 steps")) == 4
    assert visitor.page.get_by_role("status").first.get_attribute("aria-live") == "polite"
    prompt.fill("the digit 3")
    prompt.press("Enter")
    visitor.page.wait_for_function("() => location.search.includes('prompt=the+digit+3')")


# ------------------------------------------------------------------------------------------------------- every tab
@pytest.fixture
def embedded_url():
    with serving(Studio(load_pipeline("moving-mnist", OWN_SAMPLER))) as url:
        yield url


def test_the_first_clip_is_there_in_time_and_can_be_downloaded(embedded_url, visit):
    visitor = visit(embedded_url).open("Create", options=False)
    start = time.monotonic()
    visitor.press("Create a clip")
    visitor.page.get_by_text(f"20 frames, {STEPS} steps of dpm++, seed 0: ").wait_for()
    assert time.monotonic() - start < FIRST_RESULT
    clip = visitor.clip(f"20 frames, {STEPS} steps of dpm++, seed 0: ")
    assert clip.shape == (20, 64, 64, 1)
    assert clip.max() > 128
    movie = visitor.download("Download MP4", "mp4")
    assert movie.shape == clip.shape
    assert np.abs(movie.astype(int) - clip).mean() < 8
    visitor.unfold("Options")
    visitor.press("Random seed")
    seed = visitor.panel.get_by_role("spinbutton", name="Seed")
    visitor.page.wait_for_function("i => i.value !== '0'", arg=seed.element_handle())


def test_continue_a_test_clip_an_upload_and_a_drawing(url, visit, tmp_path):
    visitor = visit(url).open("Continue")
    visitor.set("number input for Steps", 2)
    visitor.set("number input for Number of the test clip", 21)
    visitor.press("Continue the clip")
    assert np.array_equal(visitor.clip("20 frames, 2 steps")[:5], truth(21)[:5])
    visitor.page.get_by_text("What happened; all that could happen, the likelier the brighter").wait_for()

    write_gif(truth(2)[:6], tmp_path / "mine.gif", scale=2)
    visitor.choose("Upload")
    visitor.upload(tmp_path / "mine.gif")
    visitor.set("number input for First frames", 6)
    visitor.set("number input for Number of frames", 8)
    visitor.press("Continue the clip")
    visitor.message("Your own frames are in no link")  # it goes away after ten seconds
    assert np.array_equal(visitor.clip("The model's guess. 8 frames, 2 steps")[:6], truth(2)[:6])

    visitor.choose("Draw")
    draw(visitor)
    visitor.press("Add 5 moving frames")
    visitor.panel.locator(".gallery-item, .thumbnail-item").nth(4).wait_for()
    visitor.set("number input for Number of frames", 7)
    visitor.press("Continue the clip")
    visitor.message("Your own frames are in no link")
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


def test_fill_a_gap_between_test_frames_and_png_frames(url, visit, tmp_path):
    visitor = visit(url).open("Fill a gap")
    visitor.set("number input for Steps", 2)
    visitor.press("Fill the gap")
    assert np.array_equal(visitor.clip("20 frames, 2 steps")[[0, -1]], truth(3)[[0, -1]])
    for name, place in {"first": 0, "second": 5}.items():
        Image.fromarray(truth(4)[place, ..., 0]).save(tmp_path / f"{name}.png")
    visitor.choose("Upload")
    visitor.upload(tmp_path / "second.png", tmp_path / "first.png")
    visitor.set("number input for Number of frames", 6)
    visitor.press("Fill the gap")
    assert np.array_equal(visitor.clip("6 frames, 2 steps")[[0, -1]], truth(4)[[0, 5]])


def test_a_long_clip_after_an_mp4(url, visit, tmp_path):
    visitor = visit(url).open("Continue")
    visitor.set("number input for Steps", 1)
    write_mp4(truth(1)[:5], tmp_path / "mine.mp4", scale=4)
    visitor.choose("Upload")
    visitor.upload(tmp_path / "mine.mp4")
    visitor.set("number input for Number of frames", 30)
    visitor.press("Continue the clip")
    clip = visitor.clip("30 frames, 1 steps")
    assert len(clip) == 30
    assert np.abs(clip[:5].astype(int) - truth(1)[:5]).mean() < 8


def test_a_model_that_reads_has_a_prompt_and_one_that_does_not_has_none(url, visit):
    reader = visit(url).open("Create")
    reader.panel.get_by_label("What it shows").fill("the digits 3 and 8")
    reader.panel.get_by_role("spinbutton", name="number input for Follow the prompt").wait_for()
    reader.set("number input for Steps", 2)
    reader.press("Create a clip")
    assert len(reader.clip("20 frames, 2 steps")) == 20

    unet = tiny_denoiser(**SMALLEST | {"sample_size": 32, "patch_size": 4})
    with serving(Studio(VideoDiffusionPipeline(unet, VPContinuousScheduler()))) as other:
        visitor = visit(other).open("Create")
        assert not visitor.panel.get_by_label("What it shows").filter(visible=True).count()
        visitor.press("Create a clip")
        assert len(visitor.clip("4 frames, 20 steps")) == 4


# -------------------------------------------------------------------------------------------------- examples and links
def test_an_example_is_shown_with_its_settings_its_link_and_its_call(url, visit):
    visitor = visit(url)
    visitor.page.get_by_role("button", name="Thumbnail 3 of 5").click()
    visitor.page.get_by_role("status").filter(has_text="4 clips of the model").wait_for()
    visitor.open("Create")
    visitor.value("number input for Number of clips", 4)
    four = visitor.download("Download GIF", "gif", width=256)
    assert four.shape == (20, 64, 256, 1)
    visitor.unfold("Use in Python")
    visitor.page.get_by_text("num_videos_per_prompt=4").wait_for()
    link = visitor.page.get_by_label("Link to this clip").input_value()
    assert link == visitor.page.url
    assert "kind=generate" in link
    assert "clips=4" in link


def test_a_link_sets_what_makes_the_same_clip_again(url, visit):
    first = visit(url).open("Fill a gap")
    first.set("number input for Steps", 3)
    first.set("number input for Number of frames", 9)
    first.set("number input for Number of the test clip", 77)
    first.set("Seed", 12)
    first.press("Fill the gap")
    clip = first.clip("9 frames, 3 steps of dpm++, seed 12")
    first.page.wait_for_function("() => location.search.includes('seed=12')")
    other = visit(first.page.url)
    other.message("The settings of the link are set")
    other.open("Fill a gap")
    other.value("number input for Number of the test clip", 77)
    other.press("Fill the gap")
    assert np.array_equal(other.clip("9 frames, 3 steps of dpm++, seed 12"), clip)


def test_a_link_that_was_tampered_with_is_answered_by_a_message(url, visit):
    visitor = visit(f"{url}/?kind=generate&steps=<img src=x onerror=alert(1)>")
    visitor.message("`steps` is '<img src=x onerror=alert(1)>' in the link, expected a number.")
    visitor.open("Create")
    visitor.value("number input for Steps", STEPS)


# ----------------------------------------------------------------------------------------------------- what is refused
def test_a_bad_upload_and_an_empty_drawing_are_answered_by_messages(url, visit, tmp_path):
    visitor = visit(url).open("Continue")
    visitor.choose("Upload")
    visitor.press("Continue the clip")
    visitor.message("There is no upload yet")
    (tmp_path / "bad.gif").write_text("<script>alert(1)</script>")
    visitor.upload(tmp_path / "bad.gif")
    visitor.press("Continue the clip")
    visitor.message("bad.gif is not a video that the demo takes: expected a GIF, an MP4, an npy array or PNG frames.")
    visitor.choose("Draw")
    visitor.press("Continue the clip")
    visitor.message("There are no drawn frames yet")
    visitor.press("Add frame")
    visitor.message("The drawing is empty")
    visitor.choose("Test clip")
    visitor.set("number input for Steps", 1)
    visitor.press("Continue the clip")
    assert len(visitor.clip("20 frames, 1 steps")) == 20  # and the page still works


def test_an_upload_beyond_the_limit_is_answered_by_a_message(url, visit, tmp_path):
    visitor = visit(url).open("Continue")
    visitor.choose("Upload")
    (tmp_path / "big.gif").write_bytes(b"GIF89a" + bytes(9 * 2**20))
    visitor.panel.locator("input[type=file]").first.set_input_files(tmp_path / "big.gif")
    visitor.message("maximum")
    visitor.expected = ("404 (Not Found)", "Response")  # the page still asks how far the upload is that it refused


# ----------------------------------------------------------------------------------------------------------- visitors
@pytest.fixture
def gate(studio):
    """What the network waits for; open at the end."""
    opened = threading.Event()
    handle = studio.pipeline.unet.register_forward_pre_hook(lambda *inputs: opened.wait(60) and None)
    yield opened
    opened.set()
    handle.remove()


def test_two_visitors_at_once_get_their_own_clips_and_the_second_sees_the_queue(url, visit, gate):
    visitors = [visit(url).open("Create") for _ in range(2)]
    for seed, visitor in enumerate(visitors):
        visitor.set("number input for Steps", 2)
        visitor.panel.get_by_role("spinbutton", name="Seed").fill(str(seed))
    for visitor in visitors:
        visitor.press("Create a clip")
    visitors[1].page.get_by_text("1 request is before yours").first.wait_for()
    gate.set()
    clips = [visitors[i].clip(f"20 frames, 2 steps of dpm++, seed {i}") for i in range(2)]
    assert not np.array_equal(*clips)
