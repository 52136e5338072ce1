"""What the page is made of: how to sample, where given frames come from, and what is shown."""

import html
from collections.abc import Callable
from typing import Any, TypeVar

import gradio as gr
import numpy as np

from video_diffusion.data.fitting import fit
from video_diffusion.data.video_io import Clip
from video_diffusion.demo.limits import SEEDS
from video_diffusion.demo.studio import Result, Studio
from video_diffusion.demo.uploads import KINDS, moved, read_drawing, read_upload
from video_diffusion.model.windows import SCHEMES
from video_diffusion.sampling import OWN_SAMPLER, TEST_CLIPS

DATASET, UPLOAD, DRAWING = "Test clip", "Upload", "Draw"
DICE = f"() => Math.floor(Math.random() * {SEEDS})"
ANOTHER = f"() => Math.floor(Math.random() * {TEST_CLIPS})"
ONLY = "ancestral sampler only"
PRIVATE: dict[str, Any] = {"queue": False, "api_visibility": "private", "show_progress": "hidden"}
DRAW: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden", "concurrency_limit": 4}  # can refuse

T = TypeVar("T")


def refusing(action: Callable[..., T], *given: Any) -> T:
    """What `action` returns; a ValueError or ImportError becomes a message on the page, as text and not as HTML."""
    try:
        return action(*given)
    except MemoryError as error:
        raise gr.Error("The memory does not suffice: ask for fewer frames or clips.", print_exception=False) from error
    except (ValueError, ImportError) as error:
        raise gr.Error(html.escape(str(error), quote=False), duration=15, print_exception=False) from error


def waiting_line(progress: Any) -> Callable[[int, float], object]:
    """Shows a visitor the place and the expected wait, through gradio's `Progress`."""

    def tell(place: int, seconds: float) -> object:
        others = "1 request is" if place == 1 else f"{place} requests are"
        return progress(0.0, desc=f"{others} before yours, for about {seconds:.0f} s")

    return tell


def uploads_only(component: Any) -> Any:
    """The component, which takes uploads and fetches nothing: gradio would download an address of any size."""
    move = component.async_move_resource_to_block_cache

    async def move_upload(path: Any) -> Any:
        if "://" in str(path):
            raise gr.Error("An address is not fetched: upload the file.", print_exception=False)
        return await move(path)

    component.async_move_resource_to_block_cache = move_upload
    return component


def counter(low: int, high: int, value: int, **words: Any) -> Any:
    """A slider of whole numbers; where there is only one, it is shown and cannot be changed."""
    if low == high:
        return gr.Number(value, precision=0, interactive=False, **words)
    return gr.Slider(low, high, value, step=1, **words)


class Controls:
    """How to sample: the components by the names that `Settings` has for them.

    Args:
        studio: says which samplers and limits there are.
        counters: makes the components that belong to the tab alone, by their names; they stand first.
        guided: whether guidance by given frames can be asked for within one window.
    """

    def __init__(self, studio: Studio, counters: Callable[[], dict[str, Any]], guided: bool) -> None:
        limits, usual = studio.limits, studio.usual
        own = usual.sampler == OWN_SAMPLER
        with gr.Accordion("Options", open=False):
            self.counters = counters()
            clips = gr.Slider(
                1,
                limits.clips,
                1,
                step=1,
                label="Number of clips",
                info="side by side: where they differ, all is open",
            )
            with gr.Row(elem_classes="beside"):
                seed = gr.Number(
                    0,
                    label="Seed",
                    info="the same seed, the same clip",
                    precision=0,
                    minimum=0,
                    maximum=SEEDS - 1,
                    scale=3,
                )
                dice = gr.Button("Random seed", size="sm", scale=1)
        with gr.Accordion("For experts", open=False):
            sampler = gr.Radio(list(studio.samplers), value=usual.sampler, label="Sampler")
            steps = gr.Slider(1, limits.steps, usual.steps, step=1, label="Steps", info="more: finer and slower")
            gamma = gr.Slider(0, 1, usual.gamma, step=0.05, label="γ, noise of a step", info=ONLY, interactive=own)
            guidance = gr.Slider(
                0,
                limits.guidance,
                0,
                step=0.5,
                label="Reconstruction guidance",
                info=ONLY,
                visible=guided,
                interactive=own,
            )
            history = gr.Slider(
                1,
                limits.history,
                usual.history if guided else 1,
                step=0.5,
                label="History guidance",
                info="weight of the given frames; 1 is none",
                visible=guided,
            )
            order = gr.Dropdown(
                list(SCHEMES), value=SCHEMES[0], label="Order of the windows", info="of clips longer than in training"
            )
        dice.click(None, None, seed, js=DICE, **PRIVATE)
        sampler.change(self.switch, sampler, [gamma, guidance], **PRIVATE)
        self.settings = {"clips": clips, "sampler": sampler, "steps": steps, "gamma": gamma, "guidance": guidance}
        self.settings |= {"history": history, "order": order, "seed": seed}

    @property
    def values(self) -> list[Any]:
        """The components that end the arguments of every call."""
        return list(self.settings.values())

    @staticmethod
    def switch(sampler: str) -> tuple[Any, Any]:
        """γ and guidance for a sampler: only the ancestral one has them."""
        own = sampler == OWN_SAMPLER
        return gr.update(interactive=own), gr.update(interactive=own) if own else gr.update(interactive=False, value=0)


class Frames:
    """Where the given frames come from: the test set, an upload or a drawing."""

    def __init__(self, studio: Studio, label: str, example: int) -> None:
        self.studio = studio
        self.source = gr.Radio([DATASET, UPLOAD, DRAWING], value=DATASET, label=label)
        with gr.Column() as dataset:
            self.index = gr.Slider(0, TEST_CLIPS - 1, example, step=1, label="Number of the test clip")
            dice = gr.Button("Another clip", size="sm")
        dice.click(None, None, self.index, js=ANOTHER, **PRIVATE)
        with gr.Column(visible=False) as upload:
            self.files = uploads_only(gr.File(file_count="multiple", label=f"Drop {KINDS} here", height=140))
        with gr.Column(visible=False) as drawing:
            self.drawing()
        groups = {DATASET: dataset, UPLOAD: upload, DRAWING: drawing}
        self.source.change(
            lambda chosen: [gr.update(visible=chosen == name) for name in groups],
            self.source,
            list(groups.values()),
            **PRIVATE,
        )

    def drawing(self) -> None:
        """A sketch pad whose drawings are collected, one a frame, or moved by so many pixels a frame."""
        pad = gr.Sketchpad(
            label="Draw a frame: choose the brush first",
            type="numpy",
            image_mode="RGBA",
            format="png",
            brush=gr.Brush(default_size=12, colors=["#000000"], color_mode="fixed"),
            canvas_size=(256, 256),
            fixed_canvas=True,
            layers=False,
            transforms=(),
            height=380,
        )
        uploads_only(pad)
        with gr.Row():
            right = gr.Slider(-8, 8, 3, step=1, label="Moves right", info="pixels a frame")
            down = gr.Slider(-8, 8, 1, step=1, label="Moves down", info="pixels a frame")
        with gr.Row():
            add = gr.Button("Add frame", size="sm")
            move = gr.Button("Add 5 moving frames", size="sm")
            clear = gr.Button("Start over", size="sm")
        self.drawn = gr.State([])
        shown = gr.Gallery(
            label="Frames so far", show_label=False, columns=5, height=130, format="png", interactive=False, buttons=[]
        )
        inputs, outputs = [pad, self.drawn, right, down], [self.drawn, shown]
        add.click(lambda *given: refusing(self.add, *given, 1), inputs, outputs, **DRAW)
        move.click(lambda *given: refusing(self.add, *given, 5), inputs, outputs, **DRAW)
        clear.click(lambda: ([], []), None, outputs, **PRIVATE)

    def add(
        self, sketch: Any, drawn: list[Clip], right: float, down: float, count: int
    ) -> tuple[list[Clip], list[Any]]:
        """The drawn frames with `count` more, and as pictures."""
        studio = self.studio
        frame = read_drawing(sketch, studio.height, studio.width, studio.limits)
        room = studio.trained - 1 - len(drawn)
        if room < 1:
            raise ValueError(f"There are {len(drawn)} frames, and the model makes at least one: start over.")
        new = [moved(frame, round(right * i), round(down * i)) for i in range(min(count, room))]
        return [*drawn, *new], [clip[0].squeeze(-1) for clip in (*drawn, *new)]

    @property
    def values(self) -> list[Any]:
        """The components, in the order of the arguments of `read`."""
        return [self.source, self.index, self.files, self.drawn]

    def read(self, source: str, index: float, files: Any, drawn: list[Clip]) -> tuple[Any, Clip | None]:
        """The number of a test clip, or None and the visitor's own clip; raises ValueError where it is refused."""
        if source == DATASET:
            return index, None
        if source == UPLOAD:  # only what the model can read is held while others are served
            clip = read_upload(files, self.studio.limits)
            return None, fit(clip, self.studio.height, self.studio.width)
        if not drawn:
            raise ValueError("There are no drawn frames yet: draw one and press `Add frame`.")
        return None, np.concatenate(drawn)


class Shown:
    """What was made: the clips playing, a sentence, files, all frames, a link and the call in Python.

    Args:
        first: what is there when the page opens.
    """

    def __init__(self, first: Result | None) -> None:
        self.clip = gr.Image(
            first and first.shown,
            label="Result",
            alt_text="The clips, playing. Frames that were given have an orange border.",
            format="gif",
            interactive=False,
            height=340,
            elem_classes="pixels",
            buttons=["fullscreen"],
        )
        self.summary = gr.HTML(status(first.summary if first else "Press the button: the clip appears here."))
        with gr.Row():
            self.gif = gr.DownloadButton("Download GIF", first and first.gif, size="sm", interactive=bool(first))
            self.mp4 = gr.DownloadButton("Download MP4", first and first.mp4, size="sm", interactive=bool(first))
        self.link = gr.Textbox(label="Link to this clip", placeholder="appears with your clip", interactive=False)
        with gr.Accordion("All frames", open=False):
            self.sheet = gr.Image(
                first and first.sheet,
                alt_text="All frames of the clips, a row for each.",
                show_label=False,
                format="png",
                interactive=False,
                buttons=["fullscreen"],
            )
        with gr.Accordion("Use in Python", open=False):
            self.code = gr.Code(first and first.code, language="python", interactive=False, label="The same clips")
        self.query = gr.Textbox(visible=False)

    @property
    def outputs(self) -> list[Any]:
        """The components, in the order of `answer`."""
        return [self.clip, self.gif, self.mp4, self.summary, self.sheet, self.code, self.query]

    @staticmethod
    def answer(result: Result) -> tuple[Any, ...]:
        """What `outputs` get of a result."""
        files = [gr.DownloadButton(value=file, interactive=True) for file in (result.gif, result.mp4)]
        return result.shown, *files, status(result.summary), result.sheet, result.code, result.query


def status(text: str) -> str:
    """A line that screen readers read out when it changes."""
    return f'<p role="status" aria-live="polite">{html.escape(text)}</p>'
