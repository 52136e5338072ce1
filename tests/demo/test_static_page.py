"""The page that runs the model in the browser: real Chromium, real onnxruntime-web, a tiny model, held against Python.

Where there is no Chromium these tests are skipped, except in CI, where they then fail: it is to install one.
The runtime comes from npm's registry once, into the cache.
"""

import io
import json
import os
import re
import shutil
import threading
from contextlib import contextmanager
from http.server import SimpleHTTPRequestHandler

import numpy as np
import pytest
import torch
from diffusers import DPMSolverMultistepScheduler
from PIL import Image

from browsers import CHROMIUM, NO_CHROMIUM
from denoisers import TRANSFORMER, randomised, tiny_denoiser
from video_diffusion import VideoDiffusionPipeline, VPContinuousScheduler
from video_diffusion.data import MovingMNIST
from video_diffusion.data.reading import read_video
from video_diffusion.data.video_io import resize, write_gif
from video_diffusion.demo.static import file_server
from video_diffusion.hub.browser import export_page
from video_diffusion.hub.onnx import sampler_table
from video_diffusion.training.text import small_bert

if CHROMIUM is None and not os.environ.get("CI"):
    pytest.skip(NO_CHROMIUM, allow_module_level=True)
pytestmark = pytest.mark.network

SIZE, FRAMES = 32, 6
CLOSE = 1e-3
GRAPHICS = ("--enable-unsafe-webgpu", "--use-webgpu-adapter=swiftshader")  # a graphics card made of software
QUIET = "VerifyEachNodeIsAssignedToAnEp"  # onnxruntime tells that it computes shapes beside the graphics card
SCREENS = {"phone": {"width": 390, "height": 844}, "laptop": {"width": 1280, "height": 800}}
PROMPT = "the digit 3 moves right, and Größe!"
WORKER = """async ([backend, asks]) => {
  const worker = new Worker('./worker.js', {type: 'module'})
  const answer = message => new Promise((resolve, reject) => {
    worker.onmessage = ({data}) => {
      if (data.kind === 'error') reject(new Error(data.message))
      else if (data.kind === 'ready' || data.kind === 'clip') resolve(data)
    }
    worker.postMessage(message)
  })
  const floats = values => values && Float32Array.from(values)
  const ready = await answer({kind: 'load', backend})
  const videos = []
  for (const a of asks) {
    const made = await answer({kind: 'make', ...a, given: floats(a.given), noise: floats(a.noise)})
    videos.push([...made.video])
  }
  worker.terminate()
  return {...ready, isolated: crossOriginIsolated, videos}
}"""
CONTRAST = """() => {
  const light = colour => colour.match(/[\\d.]+/g).slice(0, 3).map(v => v / 255)
    .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0)
  const ground = light(getComputedStyle(document.body).backgroundColor)
  const pairs = [...document.querySelectorAll('p, label, legend, summary, figcaption, .title, [role=tab]')]
    .filter(e => e.checkVisibility()).map(e => {
      const colours = []
      for (let at = e; at; at = at.parentElement) colours.push(getComputedStyle(at).backgroundColor)
      const [text, under] = [getComputedStyle(e).color, colours.find(c => c !== 'rgba(0, 0, 0, 0)')].map(light)
      return [(Math.max(text, under) + 0.05) / (Math.min(text, under) + 0.05), e.outerHTML.slice(0, 80)]
    })
  return {ground, least: pairs.sort((a, b) => a[0] - b[0])[0]}
}"""
NAMELESS = """() => [...document.querySelectorAll('button, input, select, canvas, [role=tab], progress')]
  .filter(e => e.checkVisibility() && !e.ariaLabel && !e.innerText?.trim() && !e.labels?.length)
  .map(e => e.outerHTML.slice(0, 200))"""


# --------------------------------------------------------------------------------------------------- model and browser
@pytest.fixture(scope="module")
def pipeline():
    changes = {
        "transformer_layers": 1,
        "cross_attention_every": 1,
        "in_channels": 3,
        "cross_attention_dim": 128,
        "num_frames": FRAMES,
    }
    denoiser = tiny_denoiser(**TRANSFORMER | changes, sample_size=SIZE)
    encoder, tokenizer = small_bert(24)
    for network in (denoiser, randomised(encoder)):
        for parameter in network.parameters():
            parameter.data = parameter.data.half().float()  # as weights are published, and as the graphs keep them
    scheduler = VPContinuousScheduler(shift=2.0, prediction_type="sample")
    made = VideoDiffusionPipeline(denoiser, scheduler, encoder, tokenizer)
    made.generation_config = {"logsnr_spacing": [-3.5, 2.5]}  # other steps for clips without given frames
    return made


@pytest.fixture(scope="module")
def folder(pipeline, tmp_path_factory):
    out = tmp_path_factory.mktemp("page")
    export_page(pipeline, out, "tiny")
    return out


@contextmanager
def running(server):
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture(scope="module")
def url(folder):
    with running(file_server(folder)) as url:
        yield url


@pytest.fixture(scope="module")
def browser():
    assert CHROMIUM is not None, NO_CHROMIUM
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        plain = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield plain
        plain.close()


@pytest.fixture
def graphics_browser(browser):
    """One with a graphics card made of software, which is slow: for what is about graphics cards."""
    other = browser.browser_type.launch(executable_path=CHROMIUM, args=["--no-sandbox", *GRAPHICS])
    yield other
    other.close()


@pytest.fixture
def visit(browser):
    """A function that opens a page; at the end no page has complained or asked anybody else."""
    pages, complaints = [], []

    def open_page(url, screen="laptop", browser=browser, **options):
        page = browser.new_context(viewport=SCREENS[screen], accept_downloads=True, **options).new_page()
        page.set_default_timeout(60_000)
        page.on("console", lambda m: complaints.append(m.text) if m.type == "error" and QUIET not in m.text else None)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        own = (url.split("?")[0], "data:", "blob:")
        page.on("request", lambda r: None if r.url.startswith(own) else complaints.append(r.url))
        page.goto(url)
        page.wait_for_function("!document.getElementById('make').disabled")
        pages.append(page)
        return page

    yield open_page
    for page in pages:
        page.context.close()
    assert complaints == []


def truth(clip, frames=FRAMES):
    return MovingMNIST(split="test", num_frames=frames, image_size=SIZE, seed=0).batch([clip])[0][..., None]


def expected(pipeline, frames=FRAMES, calls=4, seed=0, **options):
    """What the pipeline makes in Python, `[F, H, W]` in [0, 1]."""
    scheduler = pipeline.scheduler
    pipeline.scheduler = scheduler.as_diffusers(DPMSolverMultistepScheduler)
    pipeline.set_progress_bar_config(disable=True)
    try:
        return pipeline(
            num_frames=frames,
            num_inference_steps=calls,
            generator=[torch.Generator().manual_seed(seed)],
            output_type="np",
            **options,
        ).frames[0][..., 0]
    finally:
        pipeline.scheduler = scheduler


def finished(page):
    """Waits for a clip that took its time, and gives its GIF as Python reads it."""
    page.get_by_role("status").filter(has_text=re.compile(r"seed \d+: [\d.]+ s\.$")).wait_for()
    with page.expect_download() as caught:
        page.get_by_role("button", name="Download GIF").click()
    return caught.value.path()


def clip_of(page, tmp_path):
    path = tmp_path / "made.gif"
    shutil.copy(finished(page), path)
    return resize(read_video(path), SIZE, SIZE)[..., 0]


def slide(page, name, value):
    page.locator(f"#{name}").evaluate(
        "(e, v) => { e.value = v; e.dispatchEvent(new Event('input', {bubbles: true})) }", str(value)
    )


# ----------------------------------------------------------------------------------------------------- the same clips
def asks_and_clips(pipeline):
    """What a worker is asked for, and what the pipeline makes of it."""
    given, noise = truth(1)[:2], torch.randn(1, 1, FRAMES, SIZE, SIZE, generator=torch.Generator().manual_seed(3))
    ends = truth(2)[[0, 4]]
    known = {"given": (given / 255).ravel().tolist(), "places": [0, 1]}
    asks = [
        {"frames": FRAMES, "calls": 4, "noise": noise.flatten().tolist(), **known},
        {"frames": 5, "calls": 2, "seed": 2**32 - 1, "given": (ends / 255).ravel().tolist(), "places": [0, 4]},
        {"frames": 4, "calls": 6, "seed": 5, "prompt": PROMPT, "follow": 4},
        {"frames": FRAMES, "calls": 1, "seed": 6},
    ]
    clips = [
        expected(pipeline, video=given, latents=noise),
        expected(pipeline, 5, 2, 2**32 - 1, video=ends, frame_indices=[0, 4]),
        expected(pipeline, 4, 6, 5, prompt=PROMPT, guidance_scale=4.0),
        expected(pipeline, FRAMES, 1, 6),
    ]
    assert min(np.std(clip) for clip in clips) > 0.05
    return asks, clips


def test_the_clips_are_those_of_python_with_threads(pipeline, url, visit):
    asks, clips = asks_and_clips(pipeline)
    made = visit(url).evaluate(WORKER, ["wasm", asks])
    assert (made["isolated"], made["backend"], made["threads"]) == (True, "wasm", min(len(os.sched_getaffinity(0)), 8))
    for video, clip in zip(made["videos"], clips, strict=True):
        np.testing.assert_allclose(np.reshape(video, clip.shape), clip, atol=CLOSE)


def test_the_clips_are_those_of_python_on_a_graphics_card(pipeline, url, visit, graphics_browser):
    asks, clips = asks_and_clips(pipeline)
    page = visit(f"{url}?backend=wasm", browser=graphics_browser)
    made = page.evaluate(WORKER, [None, asks[-1:]])  # one call: it takes its time
    assert made["backend"] == "webgpu"
    np.testing.assert_allclose(np.reshape(made["videos"][0], clips[-1].shape), clips[-1], atol=CLOSE)


def test_without_isolation_it_runs_on_one_core(pipeline, folder, visit):
    class Plain(SimpleHTTPRequestHandler):
        def log_message(self, format, *args):
            pass

    asks, clips = asks_and_clips(pipeline)
    server = file_server(folder)
    server.RequestHandlerClass = lambda *args: Plain(*args, directory=str(folder))
    with running(server) as url:
        made = visit(url).evaluate(WORKER, ["wasm", asks[:1]])
    assert (made["isolated"], made["threads"]) == (False, 1)
    np.testing.assert_allclose(np.reshape(made["videos"][0], clips[0].shape), clips[0], atol=CLOSE)


def test_where_the_graphics_card_fails_the_processor_does_it(folder, graphics_browser, tmp_path):
    broken = shutil.copytree(folder, tmp_path / "broken", copy_function=os.link)
    (broken / "ort" / "ort.webgpu.bundle.min.mjs").unlink()
    with running(file_server(broken)) as url:
        page = graphics_browser.new_page()
        page.goto(url)
        assert page.evaluate(WORKER, [None, []])["backend"] == "wasm"
        page.close()


def test_a_graphics_card_is_trusted_only_where_it_computes_what_was_exported(pipeline, folder, url, visit):
    """The exported values are the network's, and another value or NaN does not agree with them."""
    probe = json.loads((folder / "model" / "model.json").read_text())["probe"]
    z = torch.randn(1, 1, 2, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    text, _ = pipeline.encode_prompt(None, do_classifier_free_guidance=False)
    with torch.no_grad():
        sample = torch.cat([z, torch.zeros_like(z), torch.zeros_like(z)], dim=1)
        output = pipeline.unet(sample, 500, encoder_hidden_states=text).sample.flatten()
    places = [i * probe["stride"] % len(output) for i in range(len(probe["values"]))]
    assert len(set(places)) == 64
    cases = [output, output + 0.01, output.clone(), output.clone()]
    cases[2][places[-1]] += 0.1
    cases[3][places[5]] = torch.nan
    agree = """async ([cases, probe]) => {
      const {agrees} = await import('./sampler.js')
      return cases.map(values => agrees(values.map(Number), probe, 0.02))
    }"""
    lists = [[str(value) for value in case.tolist()] for case in cases]
    assert visit(url).evaluate(agree, [lists, probe]) == [True, True, False, False]


def test_noise_and_tokens_are_those_of_python(pipeline, url, visit):
    page, cases = visit(url), [(0, 16), (7, 1000), (2**32 - 1, 3001)]
    made = page.evaluate(
        "async cases => { const {normal} = await import('./sampler.js'); return cases.map(c => [...normal(...c)]) }",
        cases,
    )
    for (seed, size), values in zip(cases, made, strict=True):
        noise = torch.randn(size, generator=torch.Generator().manual_seed(seed))
        np.testing.assert_allclose(values, noise.numpy(), atol=2e-6)
    texts = ["", PROMPT, "two DIGITS;it's 37—no! $5", "constructor 数字 é", "x" * 101]
    ids = page.evaluate(
        """async texts => {
          const {tokenise} = await import('./sampler.js')
          const {text} = await (await fetch('model/model.json')).json()
          return texts.map(t => tokenise(t, text)).map(({ids, mask}) => [[...ids].map(Number), [...mask].map(Number)])
        }""",
        texts,
    )
    length = pipeline.tokenizer.model_max_length
    for text, found in zip(texts, ids, strict=True):
        tokens = pipeline.tokenizer(text, padding="max_length", max_length=length)
        assert found == [tokens["input_ids"], tokens["attention_mask"]]


@pytest.mark.parametrize("deterministic", [False, True])
def test_the_loop_is_that_of_the_models_sampler(pipeline, url, visit, deterministic):
    scheduler = VPContinuousScheduler(prediction_type="sample", shift=2.0, deterministic=deterministic)
    rule = sampler_table(VideoDiffusionPipeline(pipeline.unet, scheduler), (3,))
    noise = torch.randn(2, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    solver = scheduler if deterministic else scheduler.as_diffusers(DPMSolverMultistepScheduler)
    solver.set_timesteps(3)
    z = noise
    for t in solver.timesteps:
        z = solver.step(torch.tanh(0.5 * z + t / 1000), t, z, return_dict=False)[0]
    made = visit(url).evaluate(
        """async ([rule, noise]) => {
          const {solve} = await import('./sampler.js')
          const network = async (z, t) => z.map(value => Math.tanh(0.5 * value + t / 1000))
          return [...await solve(network, rule.steps[3], rule, noise)]
        }""",
        [rule, noise.flatten().tolist()],
    )
    np.testing.assert_allclose(made, z.flatten().numpy(), atol=2e-4)


# ------------------------------------------------------------------------------------------------------------ the page
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("screen", SCREENS)
def test_it_opens_with_a_clip_that_plays_and_a_button_in_sight(pipeline, url, visit, screen, scheme):
    page, size = visit(url, screen, color_scheme=scheme), SCREENS[screen]
    assert page.evaluate("document.documentElement.scrollWidth") <= size["width"]
    button = page.get_by_role("button", name="Continue the clip").bounding_box()
    assert button["y"] + button["height"] < size["height"]
    assert button["height"] >= 44
    canvas = page.locator("#clips canvas").last
    assert canvas.bounding_box()["y"] < size["height"]
    drawn = "c => [...c.getContext('2d').getImageData(0, 0, c.width, c.height).data].filter((_, i) => i % 4 === 0)"
    first = canvas.evaluate(drawn)
    page.wait_for_function(
        f"([c, was]) => JSON.stringify(({drawn})(c)) !== was", arg=[canvas.element_handle(), json.dumps(first)]
    )
    found = page.evaluate(CONTRAST)
    assert found["ground"] > 0.8 if scheme == "light" else found["ground"] < 0.1
    assert found["least"][0] > 4.5, found["least"]  # WCAG 2, level AA
    assert page.evaluate(NAMELESS) == []


def test_the_example_is_what_the_settings_on_the_page_make(pipeline, folder):
    row = np.asarray(Image.open(folder / "model" / "example.png"))
    clip = np.stack(np.split(row, row.shape[1] // SIZE, axis=1))
    about = json.loads((folder / "model" / "model.json").read_text())["example"]
    again = expected(pipeline, about["frames"], about["steps"], video=truth(about["clip"])[: about["given"]])
    assert np.abs(np.round(again * 255) - clip).max() <= 1


def test_continue_a_test_clip_and_open_its_link(pipeline, url, visit, tmp_path):
    page = visit(f"{url}?backend=wasm")
    page.locator("summary", has_text="Options").click()
    for name, value in {"clip": 3, "given": 2, "frames": 5}.items():
        slide(page, name, value)
    page.get_by_label("Steps").select_option("2")
    page.get_by_label("Seed", exact=True).fill("9")
    page.get_by_role("button", name="Continue the clip").click()
    page.get_by_role("status").filter(
        has_text="What happened; the model’s guess. 5 frames, 2 steps of dpm++, seed 9: "
    ).wait_for()
    made = clip_of(page, tmp_path)
    clip = expected(pipeline, 5, 2, 9, video=truth(3)[:2])
    assert np.abs(made - np.round(clip * 255)).max() <= 1
    assert page.evaluate("location.search") == "?kind=predict&frames=5&clip=3&given=2&sampler=dpm%2B%2B&steps=2&seed=9"
    other = visit(page.get_by_label("Link to this clip").input_value())
    other.get_by_role("status").filter(has_text="The settings of the link are set").wait_for()
    values = [other.locator(f"#{name}").input_value() for name in ("clip", "given", "frames", "steps", "seed")]
    assert values == ["3", "2", "5", "2", "9"]


def test_the_lines_for_python_make_the_same_clip(pipeline, url, visit, tmp_path, monkeypatch):
    page = visit(f"{url}?backend=wasm&kind=interpolate&frames=5&clip=2&given=1&steps=4&seed=4")
    page.get_by_role("button", name="Fill the gap").click()
    made = clip_of(page, tmp_path)
    code = page.locator("#python").text_content()
    ready = VideoDiffusionPipeline(**pipeline.components)
    ready.scheduler = pipeline.scheduler.as_diffusers(DPMSolverMultistepScheduler)
    monkeypatch.setattr(
        "video_diffusion.sampling.load_pipeline",
        lambda name, sampler, dtype: {("tiny", "dpm++", "float32"): ready}[name, sampler, dtype],
    )
    names = {}
    exec(code, names)
    assert np.abs(made - np.stack([np.asarray(frame, np.int16) for frame in names["frames"]])).max() <= 1


def test_a_prompt_by_keyboard(pipeline, url, visit, tmp_path):
    page = visit(f"{url}?backend=wasm&kind=generate&steps=2&frames=3&follow=2&seed=1")
    page.get_by_role("tab", name="Create").focus()
    page.keyboard.press("ArrowRight")
    assert page.get_by_role("tab", name="Fill a gap").get_attribute("aria-selected") == "true"
    page.keyboard.press("ArrowLeft")
    page.get_by_label("What it shows").fill("the digit 3")
    page.keyboard.press("Enter")
    made = clip_of(page, tmp_path)
    clip = expected(pipeline, 3, 2, 1, prompt="the digit 3", guidance_scale=2.0)
    assert np.abs(made - np.round(clip * 255)).max() <= 1
    assert "prompt=the+digit+3" in page.evaluate("location.search")


def test_an_upload_and_a_drawing_are_continued(pipeline, url, visit, tmp_path):
    sides = ((0, 0), (0, 0), (8, 8), (0, 0))  # are cut off, as in training
    write_gif(np.pad(truth(4)[:3], sides, constant_values=255), tmp_path / "mine.gif", scale=1)
    page = visit(f"{url}?backend=wasm&kind=predict&steps=1&frames=5&given=3")
    page.get_by_label("Upload").check()
    page.get_by_role("button", name="Continue the clip").click()
    page.get_by_role("status").filter(has_text="Choose a file first").wait_for()
    page.locator("#files").set_input_files(tmp_path / "mine.gif")
    page.get_by_role("status").filter(has_text="3 frames were read").wait_for()
    page.get_by_role("button", name="Continue the clip").click()
    assert np.array_equal(clip_of(page, tmp_path)[:3], truth(4)[:3, ..., 0])
    assert page.get_by_label("Link to this clip").input_value().startswith("your own frames are in no link")

    page.get_by_label("Draw", exact=True).check()
    page.get_by_role("button", name="Add frame").click()
    page.get_by_role("status").filter(has_text="The drawing is empty").wait_for()
    pad = page.locator("#pad")
    pad.scroll_into_view_if_needed()
    box = pad.bounding_box()
    page.mouse.move(box["x"] + 64, box["y"] + 128)
    page.mouse.down()
    page.mouse.move(box["x"] + 128, box["y"] + 128, steps=4)
    page.mouse.up()
    slide(page, "right", 1)
    slide(page, "down", 0)
    page.get_by_role("button", name="Add 5 moving frames").click()
    slide(page, "frames", FRAMES)
    page.get_by_role("button", name="Continue the clip").click()
    page.get_by_role("status").filter(has_text=f"{FRAMES} frames, 1 steps of dpm++, seed 0: ").wait_for()
    drawn = clip_of(page, tmp_path)
    assert drawn[0, 15:17, 8:16].min() > 60
    assert np.array_equal(drawn[1][:, 1:], drawn[0][:, :-1])
    assert np.array_equal(drawn[4][:, 4:], drawn[0][:, :-4])


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("kind=paint", "The link asks for paint, expected one of predict,generate,interpolate"),
        ("kind=predict&clip=12", "“clip” is 12 in the link, expected 0 to 11"),
        ("kind=generate&frames=2.5", "“frames” is 2.5 in the link, expected 2 to 6"),
    ],
)
def test_a_link_with_a_slip_is_answered_by_a_sentence(url, visit, query, message):
    visit(f"{url}?{query}").get_by_role("status").filter(has_text=message).wait_for()


def test_a_slip_in_the_form_is_answered_by_a_sentence_and_the_page_goes_on(url, visit, tmp_path):
    page = visit(f"{url}?backend=wasm&kind=interpolate&frames=4&given=2&steps=1")
    page.get_by_role("button", name="Fill the gap").click()
    page.get_by_role("status").filter(has_text="4 frames are given of 4, expected fewer").wait_for()
    page.get_by_role("tab", name="Create").click()
    page.get_by_role("button", name="Create a clip").click()
    assert len(clip_of(page, tmp_path)) == 4


def test_a_gif_of_many_colours_is_a_gif(url, visit):
    values = np.random.default_rng(0).integers(0, 6, (2, 40, 50, 3)) * 51
    values[..., 1] = np.floor(values[..., 1] / 51 * 42.5 + 0.5)
    frames = [
        {"data": np.dstack([f, np.full(f.shape[:2], 255)]).ravel().tolist(), "width": 50, "height": 40} for f in values
    ]
    made = visit(url).evaluate(
        "async frames => { const {gif} = await import('./gif.js'); return [...gif(frames, 12, 3)] }", frames
    )
    picture = Image.open(io.BytesIO(bytes(made)))
    assert (picture.size, picture.n_frames, picture.info["duration"]) == ((150, 120), 2, 120)
    for i, frame in enumerate(values):
        picture.seek(i)
        assert np.array_equal(np.asarray(picture.convert("RGB"))[1::3, 1::3], frame)
