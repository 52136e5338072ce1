"""The page: three tabs on the left, what was made on the right, examples below; over one `Studio`. It needs gradio."""

import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import gradio as gr

from video_diffusion.demo.asked import BETWEEN, CONTINUE, CREATE, Asked, read_query
from video_diffusion.demo.limits import Limits, Settings
from video_diffusion.demo.parts import (
    DATASET,
    DRAWING,
    PRIVATE,
    Controls,
    Frames,
    Shown,
    counter,
    refusing,
    waiting_line,
)
from video_diffusion.demo.studio import Result, Studio

CALLED = 32  # requests that the studio puts in its order, the cheap ones first
WAITING = 32  # more of them, in the order of coming; the next visitor is asked to come back
HEAD = """# Moving digits
A diffusion model continues clips, makes new ones and fills gaps. An orange border marks the frames that it was given.
"""
CSS = """
.gradio-container { max-width: 1200px !important; margin: 0 auto !important; }
.pixels img { image-rendering: pixelated; }
.beside { align-items: end; }
.big { min-height: 56px; font-size: 1.15rem; }
@media (max-width: 700px) { .examples .grid-container { grid-template-columns: repeat(2, 1fr) !important; } }
"""
SEARCH = "() => window.location.search"
REMEMBER = """query => {
  const address = new URL(window.location), theme = address.searchParams.get('__theme')
  address.search = query
  if (theme) address.searchParams.set('__theme', theme)
  history.replaceState(null, '', address)
  if (window.parent !== window) window.parent.postMessage({queryString: query}, 'https://huggingface.co')
  return query ? address.href : ''
}"""
NO_LINK = "Your own frames are in no link: keep the GIF or the MP4."

Examples = Mapping[str, tuple[Asked, Result]]


@dataclass
class Panel:
    """A tab.

    Args:
        kind: of what is asked there.
        button: that asks.
        triggers: further events that ask.
        make: what it calls.
        inputs: the components, in the order of the arguments of `make`.
        controls: the components by the names of what they set in `Asked` and `Settings`.
    """

    kind: str
    button: gr.Button
    triggers: list[Any]
    make: Callable[..., Any]
    inputs: list[Any]
    controls: dict[str, Any]

    def fill(self, asked: Asked) -> dict[Any, Any]:
        """The values of the components for a request."""
        values = asdict(asked.settings) | {"frames": asked.frames, "given": asked.given, "clip": asked.clip}
        values["source"] = DATASET
        return {component: values[name] for name, component in self.controls.items()}


def build(studio: Studio, examples: Examples | None = None) -> gr.Blocks:
    """The page with its queue. One request is worked on at a time, whatever the number of visitors.

    Args:
        studio: makes the clips.
        examples: finished ones, by their titles; the first is there when the page opens.
    """
    finished = list((examples or {}).values())
    with gr.Blocks(title="Video diffusion: moving digits", analytics_enabled=False, delete_cache=(600, 3600)) as page:
        gr.Markdown(HEAD)
        with gr.Row():
            with gr.Column(scale=5, min_width=320), gr.Tabs() as tabs:
                panels: dict[str, Panel] = {}
                for kind, (title, make_panel) in TABS.items():
                    with gr.Tab(title, id=kind):
                        panels[kind] = make_panel(studio)
            with gr.Column(scale=6, min_width=320):
                shown = Shown(finished[0][1] if finished else None)
        for panel in panels.values():
            connect(panel, shown)
        everything = [tabs, *(component for panel in panels.values() for component in panel.controls.values())]

        def set_all(asked: Asked) -> dict[Any, Any]:
            return {tabs: gr.Tabs(selected=asked.kind), **panels[asked.kind].fill(asked)}

        if examples:
            connect_examples(examples, shown, everything, set_all)

        def open_link(query: str) -> dict[Any, Any]:
            asked = refusing(read_query, query, studio.limits, studio.trained)
            if asked is None:
                return {tabs: gr.skip()}
            gr.Info("The settings of the link are set: press the button to make the clip.")
            return set_all(asked)

        # Without a link nothing is asked of the server: an answer that came late would undo what a visitor has set.
        link = gr.Textbox("", visible=False)
        page.load(None, None, link, js=SEARCH, **PRIVATE)
        link.change(open_link, link, everything, **PRIVATE | {"queue": True})  # so that it can speak
    return page.queue(max_size=WAITING)


def connect(panel: Panel, shown: Shown) -> None:
    """Connects a tab with what is shown: one queue for all tabs, and the name of the call for programs."""
    made = gr.on(
        [panel.button.click, *panel.triggers],
        panel.make,
        panel.inputs,
        shown.outputs,
        api_name=panel.kind,
        concurrency_id="model",
        concurrency_limit=CALLED,
        show_progress_on=shown.clip,
        scroll_to_output=True,
    )
    made.success(None, shown.query, shown.link, js=REMEMBER, **PRIVATE)


def connect_examples(
    examples: Examples, shown: Shown, everything: list[Any], set_all: Callable[[Asked], dict[Any, Any]]
) -> None:
    """A gallery of finished clips that play; the one that is pressed is shown, and its settings are set."""
    finished = list(examples.values())
    gallery = gr.Gallery(
        [(result.shown, title) for title, (_, result) in examples.items()],
        label="Examples: press one to see it with its settings",
        columns=len(examples),
        allow_preview=False,
        object_fit="contain",
        interactive=False,
        height="auto",
        elem_classes=["examples", "pixels"],
        buttons=[],
    )

    def show(event: gr.SelectData) -> dict[Any, Any]:
        asked, result = finished[int(event.index)]
        return {**dict(zip(shown.outputs, shown.answer(result), strict=True)), **set_all(asked)}

    chosen = gallery.select(show, None, [*shown.outputs, *everything], **PRIVATE)
    chosen.success(None, shown.query, shown.link, js=REMEMBER, **PRIVATE)


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


# ------------------------------------------------------------------------------------------------------------ the tabs
def continue_panel(studio: Studio) -> Panel:
    """The next frames of a clip."""
    most = studio.trained - 1
    return given_panel(studio, CONTINUE, "Continue the clip", most, min(5, most), example=8)


def between_panel(studio: Studio) -> Panel:
    """The frames between the first and the last ones."""
    return given_panel(studio, BETWEEN, "Fill the gap", (studio.trained - 1) // 2, 1, example=3)


def given_panel(studio: Studio, kind: str, action: str, most: int, usual: int, example: int) -> Panel:
    """A tab where frames are given."""
    label = "First frames from" if kind == CONTINUE else "First and last frames from"
    source = Frames(studio, label, example)
    button = gr.Button(action, variant="primary", elem_classes="big")

    def counters() -> dict[str, Any]:
        name = "First frames" if kind == CONTINUE else "Frames at each end"
        info = "that the model sees; of a drawing, all" if kind == CONTINUE else "that the model sees"
        given = counter(1, most, usual, label=name, info=info)
        return {"given": given, "frames": number_of_frames(studio)}

    controls = Controls(studio, counters, guided=True)

    def continue_frames(
        source_of_frames: str,
        clip: float,
        files: Any,
        drawn: Any,
        given: float,
        frames: float,
        clips: float,
        sampler: str,
        steps: float,
        gamma: float,
        guidance: float,
        history: float,
        order: str,
        seed: float,
        progress: gr.Progress = gr.Progress(),  # noqa: B008  how gradio finds it
    ) -> tuple[Any, ...]:
        settings: Any = Settings(clips, sampler, steps, gamma, guidance, history, order, seed)  # type: ignore[arg-type]

        def make() -> Result:
            number, own = source.read(source_of_frames, clip, files, drawn)
            known: Any = len(own) if own is not None and source_of_frames == DRAWING and kind == CONTINUE else given
            return studio.make(Asked(kind, frames, known, number, settings), own, progress, waiting_line(progress))  # type: ignore[arg-type]

        result = refusing(make)
        if not result.query:
            gr.Info(NO_LINK)
        return Shown.answer(result)

    inputs = [*source.values, *controls.counters.values(), *controls.values]
    named = {"source": source.source, "clip": source.index, **controls.counters, **controls.settings}
    return Panel(kind, button, [], continue_frames, inputs, named)


def create_panel(studio: Studio) -> Panel:
    """Clips from noise, of what a prompt says where the model reads text."""
    limits, reads = studio.limits, studio.reads_text
    prompt = gr.Textbox(
        "",
        label="What it shows (or leave it empty)",
        placeholder="the digit 3 moves right",
        max_length=limits.characters,
        visible=reads,
    )
    button = gr.Button("Create a clip", variant="primary", elem_classes="big")

    def counters() -> dict[str, Any]:
        follow = gr.Slider(
            1,
            limits.guidance,
            studio.usual.follow,
            step=0.5,
            label="Follow the prompt",
            info="weak … strong",
            visible=reads,
        )
        away = gr.Textbox("", label="What it does not show", max_length=limits.characters, visible=reads)
        return {"away_from": away, "follow": follow, "frames": number_of_frames(studio)}

    controls = Controls(studio, counters, guided=False)

    def generate(
        prompt: str,
        away_from: str,
        follow: float,
        frames: float,
        clips: float,
        sampler: str,
        steps: float,
        gamma: float,
        guidance: float,
        history: float,
        order: str,
        seed: float,
        progress: gr.Progress = gr.Progress(),  # noqa: B008
    ) -> tuple[Any, ...]:
        asked: tuple[Any, ...] = (
            clips,
            sampler,
            steps,
            gamma,
            guidance,
            history,
            order,
            seed,
            prompt,
            away_from,
            follow,
        )
        settings = Settings(*asked)
        request = Asked(CREATE, frames, settings=settings)  # type: ignore[arg-type]
        return Shown.answer(refusing(studio.make, request, None, progress, waiting_line(progress)))

    named = {"prompt": prompt, **controls.counters, **controls.settings}
    inputs = [prompt, *controls.counters.values(), *controls.values]
    return Panel(CREATE, button, [prompt.submit], generate, inputs, named)


def number_of_frames(studio: Studio) -> Any:
    """How long a clip is to be."""
    info = f"the model was trained on {studio.trained}"
    return gr.Slider(2, studio.limits.frames, studio.trained, step=1, label="Number of frames", info=info)


TABS: dict[str, tuple[str, Callable[[Studio], Panel]]] = {
    CONTINUE: ("Continue", continue_panel),
    CREATE: ("Create", create_panel),
    BETWEEN: ("Fill a gap", between_panel),
}


# ------------------------------------------------------------------------------------------------------------- serving
def serve(
    model: str, host: str | None = None, port: int | None = None, device: str | None = None, dtype: str = "auto"
) -> None:
    """Serves the demo of a model until it is stopped.

    Args:
        model: an embedded one by its name, a folder or a Hub id.
        host: the address to listen at; None: this machine only, or what GRADIO_SERVER_NAME says.
        port: None: the first free one from 7860, or what GRADIO_SERVER_PORT says.
        device: as in `load_pipeline`.
        dtype: likewise.

    Raises:
        ValueError: where there is no such model.
        OSError: where the port is taken.
    """
    from video_diffusion.sampling import OWN_SAMPLER, load_pipeline

    studio = Studio(load_pipeline(model, OWN_SAMPLER, device=device, dtype=dtype), model=model)
    bound_images(studio.limits)
    os.environ.setdefault("GRADIO_TEMP_DIR", studio.uploads)  # gradio's own is the same for all users of a machine
    page = build(studio, finished_clips(studio))
    page.launch(server_name=host, server_port=port, **launch_options(studio.limits))


def finished_clips(studio: Studio) -> Examples:
    """The examples that come with an embedded model; none with another."""
    from video_diffusion.demo.examples import write_examples
    from video_diffusion.hub.finding import embedded_adapters, embedded_models

    folder = (embedded_models() | embedded_adapters()).get(studio.model)
    return {} if folder is None else write_examples(studio, folder)


def bound_images(limits: Limits) -> None:
    """Makes Pillow refuse, in this process, images that are much larger than an upload may be, whoever opens them."""
    from PIL import Image

    Image.MAX_IMAGE_PIXELS = limits.upload_edge**2
