"""
The page that runs a model in the browser, in Chromium here: seconds for a clip, and how near it is to Python.

    python -m benchmarks.browser                                  # writes benchmarks/results/browser.json
    python -m benchmarks.browser --screenshots docs/screenshots   # and pictures of the page

A clip has 10 frames, 5 of them given. The first clip of all is made first and not counted: it warms the code up.
`seconds` is the median, `all` are the single values, as the page itself says them: network and sampler, without the
fetch of the model. `difference` is the largest one from the pipeline's clip of the same seed, of values in [0, 1].
"""

import argparse
import json
import os
import shlex
import shutil
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from video_diffusion.data import MovingMNIST
from video_diffusion.demo.static import file_server
from video_diffusion.hub.browser import EXAMPLE, RUNTIME, USUAL_FRAMES, USUAL_GIVEN, VERSION, export_page
from video_diffusion.sampling import OWN_SAMPLER, load_pipeline

RESULTS = Path(__file__).parent / "results" / "browser.json"
CALLS = (4, 8)
SCREENS = {"phone": (390, 844), "laptop": (1280, 800)}
WORKER = """async given => {
  const worker = new Worker('./worker.js', {type: 'module'})
  window.answer = message => new Promise((resolve, reject) => {
    worker.onmessage = ({data}) => {
      if (data.kind === 'error') reject(new Error(data.message))
      else if (data.kind === 'ready' || data.kind === 'clip') resolve(data)
    }
    worker.postMessage(message)
  })
  window.make = async (frames, places, calls, seed) => {
    const ask = {kind: 'make', frames, places, calls, seed, given: Float32Array.from(given)}
    const {seconds, video} = await window.answer(ask)
    return {seconds, video: [...video]}
  }
  return await window.answer({kind: 'load', backend: 'wasm'})
}"""


def measure(page: Any, pipeline: Any, given: Any, repeats: int) -> dict[str, Any]:
    """Seconds and differences of clips in an open page."""
    start = time.perf_counter()
    ready = page.evaluate(WORKER, (given / 255).ravel().tolist())
    loaded, places = time.perf_counter() - start, list(range(USUAL_GIVEN))
    rows, make = [], "ask => window.make(...ask)"
    page.evaluate(make, [USUAL_FRAMES, places, 1, 0])
    for calls in CALLS:
        made = [page.evaluate(make, [USUAL_FRAMES, places, calls, seed]) for seed in range(repeats)]
        apart = []
        for seed, clip in enumerate(made):
            right = pipeline(
                video=given,
                num_frames=USUAL_FRAMES,
                num_inference_steps=calls,
                generator=torch.Generator().manual_seed(seed),
                output_type="np",
            ).frames[0]
            apart.append(float(np.abs(right.ravel() - np.array(clip["video"])).max()))
        seconds = [round(clip["seconds"], 2) for clip in made]
        median = round(statistics.median(seconds), 2)
        rows.append({"calls": calls, "seconds": median, "all": seconds, "difference": max(apart)})
        print(rows[-1], flush=True)
    return {"backend": ready["backend"], "threads": ready["threads"], "load_seconds": round(loaded, 1), "runs": rows}


def keep_pictures(browser: Any, url: str, folder: Path) -> None:
    """Pictures of the page as it opens, in few colours."""
    import io

    from PIL import Image

    folder.mkdir(parents=True, exist_ok=True)
    for name, (width, height) in SCREENS.items():
        for scheme in ("light", "dark"):
            context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
            page = context.new_page()
            page.goto(url)
            page.wait_for_selector("#make:enabled")
            page.wait_for_timeout(800)
            picture = Image.open(io.BytesIO(page.screenshot())).convert("RGB").quantize(128)
            picture.save(folder / f"static-{name}-{scheme}.png", optimize=True)
            context.close()


def main() -> None:
    """Measures and writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="moving-mnist")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--screenshots", type=Path, metavar="FOLDER")
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    from playwright.sync_api import sync_playwright

    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    given = MovingMNIST(split="test", num_frames=USUAL_FRAMES, seed=0).batch([EXAMPLE])[0][:USUAL_GIVEN, ..., None]
    pipeline = load_pipeline(args.model, "dpm++", device="cpu", dtype="float32")
    pipeline.set_progress_bar_config(disable=True)
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        export_page(load_pipeline(args.model, OWN_SAMPLER, device="cpu", dtype="float32"), folder, args.model)
        with file_server(Path(folder)) as server:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            url = f"http://127.0.0.1:{server.server_address[1]}/"
            browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
            page = browser.new_page()
            page.set_default_timeout(600_000)
            page.goto(url)
            found = measure(page, pipeline, given, args.repeats)
            if args.screenshots:
                keep_pictures(browser, url, args.screenshots)
            version = browser.version
            browser.close()
            server.shutdown()
    report = {
        "command": shlex.join(["python", "-m", "benchmarks.browser", *sys.argv[1:]]),
        "model": args.model,
        "frames": USUAL_FRAMES,
        "given": USUAL_GIVEN,
        "cores": os.cpu_count(),
        "browser": f"Chromium {version}",
        "runtime": f"{RUNTIME} {VERSION}",
        **found,
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
