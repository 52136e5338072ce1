"""The page: five tabs over one `Studio`. This module needs gradio."""

from collections.abc import Callable
from typing import Any

import gradio as gr

from video_diffusion.demo.limits import Limits
from video_diffusion.demo.parts import DATASET, DRAWING, NOTHING, UPLOAD, Controls, Frames, Shown, counter, settings
from video_diffusion.demo.studio import NO_TEXT, Studio
from video_diffusion.model.windows import SCHEMES
from video_diffusion.sampling import Task

WAITING = 16  # visitors in the queue; the next one is asked to come back
CSS = ".pixels img { image-rendering: pixelated; } .seed { align-items: end; }"
HEAD = """# Video diffusion
One model makes clips of moving digits from noise, continues them, fills the gap between frames and makes long ones.
It works on frames of {width}×{height} pixels. Given frames have an orange border in the result. More steps are slower.
"""


def build(studio: Studio) -> gr.Blocks:
    """The page with its queue: one worker, so one clip at a time for all visitors together."""
    with gr.Blocks(title="Video diffusion", analytics_enabled=False, delete_cache=(600, 3600)) as page:
        gr.Markdown(HEAD.format(width=studio.width, height=studio.height))
        with gr.Tabs():
            for name, tab in TABS.items():
                with gr.Tab(name, id=name.lower()):
                    tab(studio)
    return page.queue(max_size=WAITING)


def launch_options(limits: Limits) -> dict[str, Any]:
    """How the page is served: nothing fetched from elsewhere, nothing recorded, no upload beyond the limit."""
    sans, mono = ["system-ui", "sans-serif"], ["ui-monospace", "monospace"]
    return {
        "theme": gr.themes.Soft(font=sans, font_mono=mono),
        "css": CSS,
        "footer_links": ["api", "gradio"],
        "max_file_size": limits.upload_bytes,
        "run_history": False,
        "share": False,
        "ssr_mode": False,
        "state_session_capacity": 200,
    }


def _run(button: gr.Button, make: Callable[..., Any], inputs: list[Any], shown: Shown, name: str) -> None:
    """Connects a button: one worker for all of them, and the name of the call for programs."""
    button.click(
        make,
        inputs,
        shown.outputs,
        api_name=name,
        concurrency_id="model",
        concurrency_limit=1,
        show_progress_on=shown.clip,
        scroll_to_output=True,
    )


def _examples(inputs: list[Any], rows: dict[str, list[Any]]) -> None:
    """Buttons that fill in the controls."""
    gr.Examples(list(rows.values()), inputs, example_labels=list(rows), label="Examples", cache_examples=False)


# ------------------------------------------------------------------------------------------------------------ the tabs
def generate_tab(studio: Studio) -> None:
    """Clips from noise, up to the trained length."""
    with gr.Row():
        with gr.Column():
            frames = counter(2, studio.trained, studio.trained, label="Frames")
            controls = Controls(studio, guided=False)
            button = gr.Button("Generate", variant="primary")
            rows = {f"{name}, {steps} steps": [name, steps, 1] for name, steps in _pairs(studio)}
            _examples([controls.sampler, controls.steps, controls.seed], rows)
        with gr.Column():
            shown = Shown()

    def generate(
        frames: float,
        sampler: str,
        steps: float,
        gamma: float,
        guidance: float,
        history: float,
        seed: float,
        progress: gr.Progress = gr.Progress(),  # noqa: B008  how gradio finds it
    ) -> tuple[Any, ...]:
        chosen = settings(sampler, steps, gamma, guidance, history, seed)
        return shown.answer(lambda: studio.make(Task([], frames), chosen, progress))  # type: ignore[arg-type]

    _run(button, generate, [frames, *controls.values], shown, "generate")


def _pairs(studio: Studio) -> list[tuple[str, int]]:
    """Samplers with numbers of steps that show how they differ."""
    wanted = {"dpm++": 5, "unipc": 10, "ancestral": 30}
    return [(name, steps) for name, steps in wanted.items() if name in studio.samplers]


def predict_tab(studio: Studio) -> None:
    """The next frames of a clip."""
    _given_tab(studio, "Predict", both_ends=False, most=studio.trained - 1, usual=studio.trained // 2)


def interpolate_tab(studio: Studio) -> None:
    """The frames between the first and the last ones."""
    _given_tab(studio, "Interpolate", both_ends=True, most=(studio.trained - 1) // 2, usual=1)


def _given_tab(studio: Studio, name: str, both_ends: bool, most: int, usual: int) -> None:
    with gr.Row():
        with gr.Column():
            source = Frames(studio, (DATASET, UPLOAD, DRAWING), example=3)
            with gr.Row():
                label, info = (
                    ("Given at each end", None) if both_ends else ("Given", "of a drawing, all of its frames")
                )
                given = counter(1, most, usual, label=label, info=info)
                frames = counter(2, studio.trained, studio.trained, label="Frames", info="given and made")
            controls = Controls(studio, guided=True)
            button = gr.Button(name, variant="primary")
            rows = {"test clip 3": [DATASET, 3, usual], "test clip 21": [DATASET, 21, usual]}
            rows["the most that can be given"] = [DATASET, 8, most]
            _examples([source.source, source.index, given], rows)
        with gr.Column():
            shown = Shown()

    def continue_frames(
        source_of_frames: str,
        clip: float,
        files: Any,
        drawn: Any,
        given: float,
        frames: float,
        sampler: str,
        steps: float,
        gamma: float,
        guidance: float,
        history: float,
        seed: float,
        progress: gr.Progress = gr.Progress(),  # noqa: B008
    ) -> tuple[Any, ...]:
        chosen = settings(sampler, steps, gamma, guidance, history, seed)
        asked = (source_of_frames, clip, files, drawn, given, frames, both_ends)
        return shown.answer(lambda: studio.make(source.task(*asked), chosen, progress))

    _run(button, continue_frames, [*source.values, given, frames, *controls.values], shown, name.lower())


def long_tab(studio: Studio) -> None:
    """Clips beyond the trained length, in windows."""
    with gr.Row():
        with gr.Column():
            source = Frames(studio, (NOTHING, DATASET, UPLOAD, DRAWING), example=3)
            given = gr.Slider(
                1,
                studio.trained - 1,
                studio.trained // 2,
                step=1,
                label="Given",
                info="of a drawing, all of its frames",
            )
            with gr.Row():
                frames = gr.Slider(
                    2, studio.limits.frames, 3 * studio.trained, step=1, label="Frames", info="given and made"
                )
                order = gr.Dropdown(
                    list(SCHEMES), value=SCHEMES[0], label="Windows", info="the order they are made in"
                )
            controls = Controls(studio, guided=True)
            button = gr.Button("Make it long", variant="primary")
            rows = {
                "from noise, in order": [NOTHING, 20, SCHEMES[0]],
                "from noise, sparse first": [NOTHING, 25, SCHEMES[1]],
                "after test clip 3": [DATASET, 30, SCHEMES[0]],
            }
            _examples([source.source, frames, order], rows)
        with gr.Column():
            shown = Shown()

    def make_long(
        source_of_frames: str,
        clip: float,
        files: Any,
        drawn: Any,
        given: float,
        frames: float,
        window_scheme: str,
        sampler: str,
        steps: float,
        gamma: float,
        guidance: float,
        history: float,
        seed: float,
        progress: gr.Progress = gr.Progress(),  # noqa: B008
    ) -> tuple[Any, ...]:
        chosen = settings(sampler, steps, gamma, guidance, history, seed)
        asked = (source_of_frames, clip, files, drawn, given, frames, False)
        return shown.answer(lambda: studio.make(source.task(*asked), chosen, progress, window_scheme))

    _run(button, make_long, [*source.values, given, frames, order, *controls.values], shown, "long_video")


def text_tab(studio: Studio) -> None:
    """Clips of what a prompt says, where the model reads text."""
    with gr.Row():
        with gr.Column():
            if not studio.reads_text:
                gr.Markdown(f"**{NO_TEXT}**")
            prompt = gr.Textbox(label="Prompt", max_length=studio.limits.characters)
            negative = gr.Textbox(label="Away from", max_length=studio.limits.characters)
            with gr.Row():
                frames = counter(2, studio.trained, studio.trained, label="Frames", info="of the clip")
                scale = gr.Slider(1, studio.limits.guidance, 3, step=0.5, label="Text guidance", info="1 is none")
            controls = Controls(studio, guided=False)
            button = gr.Button("Make it", variant="primary")
            rows = {text: [text] for text in ("the digits 3 and 8", "the digit 7 moves right")}
            _examples([prompt], rows)
        with gr.Column():
            shown = Shown()

    def text(
        prompt: str,
        away_from: str,
        text_guidance: float,
        frames: float,
        sampler: str,
        steps: float,
        gamma: float,
        guidance: float,
        history: float,
        seed: float,
        progress: gr.Progress = gr.Progress(),  # noqa: B008
    ) -> tuple[Any, ...]:
        chosen = settings(sampler, steps, gamma, guidance, history, seed)
        asked = (prompt, away_from, text_guidance, frames, chosen, progress)
        return shown.answer(lambda: studio.make_from_text(*asked))

    _run(button, text, [prompt, negative, scale, frames, *controls.values], shown, "text")


TABS: dict[str, Callable[[Studio], None]] = {
    "Generate": generate_tab,
    "Predict": predict_tab,
    "Interpolate": interpolate_tab,
    "Long video": long_tab,
    "Text": text_tab,
}


# ------------------------------------------------------------------------------------------------------------- serving
def serve(model: str, host: str | None = None, port: int | None = None) -> None:
    """Serves the demo of a model on the CPU until it is stopped.

    Args:
        model: an embedded one by its name, a folder or a Hub id.
        host: the address to listen at; None: this machine only, or what GRADIO_SERVER_NAME says.
        port: None: the first free one from 7860, or what GRADIO_SERVER_PORT says.

    Raises:
        ValueError: where there is no such model.
        OSError: where the port is taken.
    """
    from diffusers.utils import logging

    from video_diffusion import VideoDiffusionPipeline
    from video_diffusion.hub.folder import resolve_model

    logging.disable_progress_bar()
    studio = Studio(VideoDiffusionPipeline.from_pretrained(resolve_model(model)))
    bound_images(studio.limits)
    build(studio).launch(server_name=host, server_port=port, **launch_options(studio.limits))


def bound_images(limits: Limits) -> None:
    """Makes Pillow refuse, in this process, images that are much larger than an upload may be, whoever opens them."""
    from PIL import Image

    Image.MAX_IMAGE_PIXELS = limits.upload_edge**2
