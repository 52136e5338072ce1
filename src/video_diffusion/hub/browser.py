"""A model as a page that runs in the visitor's own browser: no server computes, any server of files will do.

`export_page` writes the page of `space-static/`, the networks as ONNX, their sampler and tokenizer as JSON, some test
clips, and the runtime, onnxruntime-web, from its npm package, pinned by version and hash. `push_page` publishes the
same as a static Space.
"""

import base64
import hashlib
import json
import os
import shlex
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from video_diffusion.hub.finding import PACKAGE, variant_of
from video_diffusion.hub.onnx import check_exportable, export_onnx, sampler_table
from video_diffusion.hub.transfer import Destination, upload

if TYPE_CHECKING:
    from video_diffusion.data.video_io import Clip
    from video_diffusion.model.pipeline import VideoDiffusionPipeline

RUNTIME, VERSION = "onnxruntime-web", "1.30.0"
INTEGRITY = "q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ=="  # SHA-512
ARCHIVE = f"{RUNTIME}-{VERSION}.tgz"
RUNTIME_FILES = (  # for the processor, and for the graphics card
    "ort.wasm.bundle.min.mjs",
    "ort-wasm-simd-threaded.wasm",
    "ort.webgpu.bundle.min.mjs",
    "ort-wasm-simd-threaded.asyncify.wasm",
)
PAGES = (PACKAGE / "space_static", PACKAGE.parents[1] / "space-static")  # in an installed package, in the repository
CALLS = (1, 2, 4, 6, 8, 12, 20)
USUAL_CALLS, USUAL_FRAMES, USUAL_GIVEN = 8, 10, 5
SMALLEST = 28  # pixels: a digit must fit into a test clip
TEST_CLIPS, EXAMPLE = 12, 8  # test clips that come with the page; the one that it opens with
PROBED, STRIDE, PROBE_TIME, PROBE_FRAMES = 64, 997, 500.0, 2  # values by which a page knows that a card computes right
FOLLOW = 4.0  # weight of guidance by a prompt where the generation config names none


# ------------------------------------------------------------------------------------------------------------ the page
def export_page(
    pipeline: "VideoDiffusionPipeline", out: str | os.PathLike[str], name: str = "moving-mnist"
) -> dict[str, Path]:
    """Writes the folder of the page: open it through any server of files.

    Threads need a server that isolates the page (`Cross-Origin-Opener-Policy: same-origin` and
    `Cross-Origin-Embedder-Policy: require-corp`); without, it runs on one core. `video-diffusion demo --static` sends
    these, and so does a static Space.

    Args:
        pipeline: as `export_onnx` takes it; a model that reads text needs a BERT tokenizer.
        out: the folder, new or empty.
        name: of the model, for the line that says how to use it in Python; the test clips are of the variant that it
            was trained on.

    Returns:
        the files by their names in the folder.

    Raises:
        ImportError: where onnx or onnxscript is missing.
        ValueError: where the pipeline or the folder is refused.
        OSError: where the runtime could not be fetched.
    """
    out = Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"`out` is {out}, expected a folder that is new or empty.")
    calls = table_calls(pipeline)
    check_exportable(pipeline, calls)
    text = None if pipeline.text_encoder is None else read_tokenizer(pipeline.tokenizer, pipeline.text_encoder)
    runtime = fetch_runtime()
    shutil.copytree(next(page for page in PAGES if (page / "index.html").is_file()), out, dirs_exist_ok=True)
    for file in RUNTIME_FILES:
        shutil.copyfile(runtime / file, out / "ort" / file)
    graphs = export_onnx(pipeline, out / "model", calls)
    graphs.pop("sampler").unlink()
    about = describe(pipeline, name) | {"text": text, "bytes": {f.name: f.stat().st_size for f in graphs.values()}}
    square, reads = about["size"][0] == about["size"][1], about["in_channels"] > about["out_channels"]
    if reads and square and about["size"][0] >= SMALLEST:
        about |= write_clips(pipeline, out / "model", variant_of(name))
    (out / "model" / "model.json").write_text(json.dumps(about) + "\n", encoding="utf-8")
    return {file.relative_to(out).as_posix(): file for file in sorted(out.rglob("*")) if file.is_file()}


def describe(pipeline: "VideoDiffusionPipeline", name: str) -> dict[str, Any]:
    """What the page must know of a model beside its graphs and tokenizer: `sampler_table`, sizes, usual settings."""
    from video_diffusion.model.inputs import resolve_shape

    config = pipeline.unet.config
    trained, height, width = resolve_shape(pipeline, config.get("num_frames") or USUAL_FRAMES)
    return sampler_table(pipeline, table_calls(pipeline)) | {
        "name": name,
        "sampler": sampler_of(pipeline),
        "num_frames": trained,
        "size": [height, width],
        "text_width": config.get("cross_attention_dim"),
        "follow": max(pipeline.generation_config.get("guidance_scale", FOLLOW), 1.0),
        "usual": {
            "calls": usual_calls(pipeline),
            "frames": min(USUAL_FRAMES, trained),
            "given": min(USUAL_GIVEN, trained - 1),
        },
        "probe": probe(pipeline, height, width),
        "clips": 0,
        "example": None,
    }


def usual_calls(pipeline: "VideoDiffusionPipeline") -> int:
    """The number of network calls that the page begins with: few, and for a model distilled to few its own."""
    asked = pipeline.generation_config.get("num_inference_steps", USUAL_CALLS)
    return asked if pipeline.scheduler.config.deterministic else USUAL_CALLS


def sampler_of(pipeline: "VideoDiffusionPipeline") -> str:
    """What the page's sampler is called in Python: DPM-Solver++; for a model distilled to few calls its own."""
    return "ancestral" if pipeline.scheduler.config.deterministic else "dpm++"


def table_calls(pipeline: "VideoDiffusionPipeline") -> list[int]:
    """The numbers of network calls that can be chosen on the page."""
    return sorted({*CALLS, usual_calls(pipeline)})


def read_tokenizer(tokenizer: Any, encoder: Any) -> dict[str, Any]:
    """The vocabulary of a WordPiece tokenizer and the length that texts are padded to.

    Raises:
        ValueError: where it is another kind of tokenizer, or the encoder is none of BERT's kind.
    """
    from video_diffusion.model.inputs import text_length

    backend = getattr(tokenizer, "backend_tokenizer", None)
    spec = {} if backend is None else json.loads(backend.to_str())
    kinds = {part: (spec.get(part) or {}).get("type") for part in ("normalizer", "pre_tokenizer", "model")}
    known = {"normalizer": "BertNormalizer", "pre_tokenizer": "BertPreTokenizer", "model": "WordPiece"}
    if kinds != known or not spec["normalizer"]["lowercase"] or encoder.config.model_type != "bert":
        raise ValueError(
            f"`pipeline` reads text with {type(encoder).__name__} and {type(tokenizer).__name__}, expected BERT with "
            "its lower-case tokenizer: the page knows no other."
        )
    return {"vocab": spec["model"]["vocab"], "length": text_length(encoder, tokenizer)}


@torch.no_grad()
def probe(pipeline: "VideoDiffusionPipeline", height: int, width: int) -> dict[str, Any]:
    """Every so many values of the network's output for noise of seed 0, without text and without given frames."""
    from video_diffusion.model.guidance import Conditions, network

    config = pipeline.unet.config
    z = torch.randn(1, config.out_channels, PROBE_FRAMES, height, width, generator=torch.Generator().manual_seed(0))
    unread = torch.zeros(1, PROBE_FRAMES, dtype=torch.bool)
    text, _ = pipeline.encode_prompt(None, do_classifier_free_guidance=False)
    nothing = Conditions(torch.zeros_like(z), unread[None, :, :, None, None], unread, text)
    values = network(pipeline.unet, pipeline.scheduler)(z, torch.tensor(PROBE_TIME), nothing)[0].flatten()
    found = [float(values[i * STRIDE % len(values)]) for i in range(PROBED)]
    return {"frames": PROBE_FRAMES, "time": PROBE_TIME, "stride": STRIDE, "values": found}


def write_clips(pipeline: "VideoDiffusionPipeline", folder: Path, variant: str) -> dict[str, Any]:
    """Writes test clips of a variant of Moving MNIST as `clips.png`, a row for each, and one that the model finished
    as `example.png`; says what they are.
    """
    from diffusers import DPMSolverMultistepScheduler

    from video_diffusion.data import MovingMNIST
    from video_diffusion.data.video_io import to_channels, to_uint8

    trained, size = pipeline.unet.config.get("num_frames") or USUAL_FRAMES, pipeline.unet.config.sample_size
    size = size if isinstance(size, int) else size[0]
    channels = pipeline.unet.config.out_channels
    test = MovingMNIST(split="test", num_frames=trained, image_size=size, variant=variant, seed=0)
    clips = test.batch(np.arange(TEST_CLIPS))
    write_rows(clips[..., None], folder / "clips.png")
    frames, given = min(USUAL_FRAMES, trained), min(USUAL_GIVEN, trained - 1)
    given, calls = min(given, frames - 1), usual_calls(pipeline)
    scheduler = pipeline.scheduler
    if not scheduler.config.deterministic:
        pipeline.scheduler = scheduler.as_diffusers(DPMSolverMultistepScheduler)
    try:
        pipeline.set_progress_bar_config(disable=True)
        made: Any = pipeline(
            video=to_channels(clips[EXAMPLE][:given, ..., None], channels),
            num_frames=frames,
            num_inference_steps=calls,
            history_guidance_scale=1.0,
            generator=torch.Generator().manual_seed(0),
            output_type="np",
        )
    finally:
        pipeline.scheduler = scheduler
    write_rows(to_uint8(made.frames), folder / "example.png")
    example = {"kind": "predict", "frames": frames, "clip": EXAMPLE, "given": given, "steps": calls, "seed": 0}
    return {"clips": TEST_CLIPS, "clip_frames": trained, "example": example}


def write_rows(clips: "Clip", path: Path) -> None:
    """Writes clips uint8 `[N, F, H, W, C]`, C of 1 or 3, as one PNG: a row is a clip, a column a frame."""
    from PIL import Image

    rows = np.concatenate([np.concatenate(list(clip), axis=1) for clip in clips], axis=0)
    Image.fromarray(rows.squeeze(-1) if rows.shape[-1] == 1 else rows).save(path, optimize=True)


# --------------------------------------------------------------------------------------------------------- the runtime
def fetch_runtime() -> Path:
    """The folder of onnxruntime-web's files in the cache; fetched where they are not there.

    By `npm pack`, which runs nothing of the package.

    Raises:
        OSError: where it cannot be fetched.
        ValueError: where the archive is not the pinned one.
    """
    from huggingface_hub import cached_assets_path

    folder = cached_assets_path(library_name="video_diffusion", namespace="browser", subfolder=f"{RUNTIME}-{VERSION}")
    if not all((folder / file).is_file() for file in RUNTIME_FILES):
        with tempfile.TemporaryDirectory(dir=folder) as desk:
            archive = folder / ARCHIVE
            if not archive.is_file():
                archive = download_runtime(Path(desk), archive)
            unpack(archive, Path(desk))
            for file in RUNTIME_FILES:
                os.replace(Path(desk) / file, folder / file)
    return folder


def download_runtime(folder: Path, by_hand: Path) -> Path:
    """The archive, as npm fetches it; `by_hand` is where a person may put it. Raises OSError."""
    npm, asked = shutil.which("npm"), f"{RUNTIME}@{VERSION}"
    try:
        if npm is None:
            raise FileNotFoundError("there is no npm here")
        command = [npm, "pack", asked, "--silent", "--pack-destination", str(folder)]
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=600, cwd=folder)
    except (OSError, subprocess.SubprocessError) as error:
        said = (getattr(error, "stderr", None) or str(error)).strip().splitlines()[-1:]
        raise OSError(
            f"{RUNTIME} {VERSION} could not be fetched ({''.join(said)}). Install npm; or run `npm pack {asked}` "
            f"elsewhere, and put what it writes here: {by_hand}"
        ) from None
    return folder / ARCHIVE


def unpack(archive: Path, folder: Path) -> None:
    """Takes the files out of the archive, once it is the pinned one. Raises ValueError."""
    with archive.open("rb") as file:
        digest = hashlib.file_digest(file, "sha512").digest()
    if base64.b64encode(digest).decode() != INTEGRITY:
        raise ValueError(f"{archive} is not {RUNTIME} {VERSION} as it was pinned: altered or damaged, and not opened.")
    with tarfile.open(archive) as tar:
        for name in RUNTIME_FILES:
            member = tar.extractfile(f"package/dist/{name}")
            assert member is not None, "the pinned archive has these files"
            with member, (folder / name).open("wb") as file:
                shutil.copyfileobj(member, file)


# --------------------------------------------------------------------------------------------------------- publication
def push_page(
    pipeline: "VideoDiffusionPipeline",
    repo_id: str,
    *,
    name: str = "moving-mnist",
    private: bool | None = None,
    token: str | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    commit_message: str | None = None,
) -> str:
    """Publishes the page as a static Space in one commit: it costs nothing to run, whoever visits it.

    Args:
        pipeline: as in `export_page`.
        repo_id: "owner/name", or "name" for the owner of the token; made where it is missing.
        name: as in `export_page`.
        private: whether a new Space is private; None: as the owner's settings say.
        token: of the Hub; None: the one of `HF_TOKEN` or `hf auth login`.
        revision: a branch, made where it is missing; None: main.
        create_pr: whether to propose the commit as a pull request.
        commit_message: its title.

    Returns:
        the address of the commit, or of the pull request.

    Raises:
        ImportError: as in `export_page`.
        ValueError: where an argument or the model is refused, before anything is sent.
        OSError: where the upload failed, with the reason and how to go on.
    """
    message = commit_message or "Upload the page"
    to = Destination(repo_id, "space", private, token, revision, create_pr, message, space_sdk="static")
    with tempfile.TemporaryDirectory(prefix="video-diffusion-page-") as desk:
        files = export_page(pipeline, Path(desk) / "page", name)
        return upload(files, to, f"{to.command('space push')} --static --model {shlex.quote(name)}")
