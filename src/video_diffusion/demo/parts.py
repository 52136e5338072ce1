"""What the tabs are made of: how to sample, where given frames come from, and the clip that is shown."""

import html
from collections.abc import Callable
from typing import Any, TypeVar

import gradio as gr
import numpy as np

from video_diffusion.data.video_io import Clip
from video_diffusion.demo.limits import OWN_SAMPLER, SEEDS, Settings
from video_diffusion.demo.studio import TEST_CLIPS, Result, Studio
from video_diffusion.demo.uploads import KINDS, moved, read_drawing, read_upload
from video_diffusion.sampling import Task

NOTHING, DATASET, UPLOAD, DRAWING = "Nothing", "Data set", "Upload", "Drawing"
DICE = f"() => Math.floor(Math.random() * {SEEDS})"
ONLY = "ancestral sampler only"
PRIVATE: dict[str, Any] = {"queue": False, "api_visibility": "private", "show_progress": "hidden"}
DRAW: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden", "concurrency_limit": 4}  # can refuse

T = TypeVar("T")


def refusing(action: Callable[..., T], *given: Any) -> T:
    """What `action` returns; a ValueError or ImportError becomes a message on the page, as text and not as HTML."""
    try:
        return action(*given)
    except (ValueError, ImportError) as error:
        raise gr.Error(html.escape(str(error), quote=False), duration=15, print_exception=False) from error


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
    """How to sample: the components, in the order of `values`, and their reading.

    Args:
        studio: says which samplers and limits there are.
        guided: whether guidance by given frames can be asked for.
    """

    def __init__(self, studio: Studio, guided: bool) -> None:
        limits, samplers, usual = studio.limits, studio.samplers, Settings()
        sampler = usual.sampler if usual.sampler in samplers else OWN_SAMPLER
        own = sampler == OWN_SAMPLER
        with gr.Accordion("Sampling", open=True):
            self.sampler = gr.Radio(list(samplers), value=sampler, label="Sampler")
            self.steps = gr.Slider(1, limits.steps, usual.steps, step=1, label="Steps")
            with gr.Row():
                gamma = usual.gamma if studio.gamma is None else studio.gamma
                self.gamma = gr.Slider(0, 1, gamma, step=0.05, label="γ", info=ONLY, interactive=own)
                self.guidance = gr.Slider(
                    0, limits.guidance, 0, step=0.5, label="Guidance", info=ONLY, visible=guided, interactive=own
                )
                self.history = gr.Slider(
                    1, limits.history, 1, step=0.5, label="History guidance", info="1 is none", visible=guided
                )
            with gr.Row(elem_classes="seed"):
                self.seed = gr.Number(0, label="Seed", precision=0, minimum=0, maximum=SEEDS - 1, scale=3)
                dice = gr.Button("Random seed", size="sm", scale=1)
        dice.click(None, None, self.seed, js=DICE, **PRIVATE)
        self.sampler.change(self.switch, self.sampler, [self.gamma, self.guidance], **PRIVATE)

    @property
    def values(self) -> list[Any]:
        """The components, in the order of the arguments of `settings`."""
        return [self.sampler, self.steps, self.gamma, self.guidance, self.history, self.seed]

    @staticmethod
    def switch(sampler: str) -> tuple[Any, Any]:
        """γ and guidance for a sampler: only the ancestral one has them."""
        own = sampler == OWN_SAMPLER
        return gr.update(interactive=own), gr.update(interactive=own) if own else gr.update(interactive=False, value=0)


def settings(sampler: str, steps: float, gamma: float, guidance: float, history: float, seed: float) -> Settings:
    """What `Controls.values` hold; it is checked where it is used."""
    return Settings(sampler, steps, gamma, seed, guidance, history)  # type: ignore[arg-type]


class Frames:
    """Where the given frames come from: the test set, an upload or a drawing."""

    def __init__(self, studio: Studio, sources: tuple[str, ...], example: int) -> None:
        self.studio = studio
        self.source = gr.Radio(list(sources), value=sources[0], label="Given frames")
        with gr.Group(visible=sources[0] == DATASET) as dataset:
            self.index = gr.Slider(0, TEST_CLIPS - 1, example, step=1, label="Number of the test clip")
        with gr.Group(visible=False) as upload:
            self.files = uploads_only(gr.File(file_count="multiple", label=f"Drop {KINDS} here", height=140))
        with gr.Group(visible=False) as drawing:
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
        """The components, in the order of the first arguments of `task`."""
        return [self.source, self.index, self.files, self.drawn]

    def task(
        self, source: str, index: float, files: Any, drawn: list[Clip], given: float, frames: float, both_ends: bool
    ) -> Task:
        """The task that the visitor set; raises ValueError where something of it is refused."""
        at_end = int(given) if both_ends else 0
        if source == DATASET:
            return self.studio.from_dataset(index, given, at_end, frames)
        if source == UPLOAD:
            return self.studio.from_clip(read_upload(files, self.studio.limits), given, at_end, frames)
        if source != DRAWING:
            return Task([], frames)  # type: ignore[arg-type]  # checked where it is made
        if not drawn:
            raise ValueError("There are no drawn frames yet: draw one and press `Add frame`.")
        return self.studio.from_clip(np.concatenate(drawn), given if both_ends else len(drawn), at_end, frames)


class Shown:
    """The clip, its frames, its files, and a line about it."""

    def __init__(self) -> None:
        self.clip = gr.Image(
            label="Clip", format="gif", interactive=False, height=320, elem_classes="pixels", buttons=[]
        )
        with gr.Row():
            self.gif = gr.DownloadButton("Download GIF", size="sm", interactive=False)
            self.mp4 = gr.DownloadButton("Download MP4", size="sm", interactive=False)
        self.summary = gr.Markdown()
        self.sheet = gr.Image(
            label="Frames", show_label=False, format="png", interactive=False, buttons=["fullscreen"]
        )

    @property
    def outputs(self) -> list[Any]:
        """The components, in the order of `answer`."""
        return [self.clip, self.gif, self.mp4, self.summary, self.sheet]

    @staticmethod
    def answer(make: Callable[[], Result]) -> tuple[Any, ...]:
        """What a run of the studio returns, for `outputs`; a refusal becomes a message."""
        result = refusing(make)
        files = [gr.DownloadButton(value=file, interactive=True) for file in (result.gif, result.mp4)]
        return result.gif, *files, result.summary, result.sheet
