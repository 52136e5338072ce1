"""`video-diffusion export onnx | page`: a model for runtimes without PyTorch, and for the browser."""

import argparse
from pathlib import Path
from typing import Any

from video_diffusion.commands.report import add_json, report


def register(subparsers: Any) -> None:
    """Adds the `export` command."""
    export = subparsers.add_parser("export", help="write a model for other runtimes")
    formats = export.add_subparsers(required=True, metavar="format")
    onnx = formats.add_parser(
        "onnx",
        help="networks as ONNX graphs, the sampler as a table",
        description="Writes unet.onnx, text_encoder.onnx (where the model reads text) and sampler.json: any batch and "
        "number of frames; weights in half precision.",
    )
    onnx.add_argument(
        "--model", default="moving-mnist", help="embedded model, folder or Hub id (default: %(default)s)"
    )
    onnx.add_argument("--out", type=Path, default=Path("onnx"), metavar="DIR", help="folder (default: %(default)s)")
    add_json(onnx)
    onnx.set_defaults(run=run_onnx)

    page = formats.add_parser(
        "page",
        help="a page that runs the model in the visitor's browser",
        description="Writes a folder for any server of files: page, model as ONNX, onnxruntime-web of npm.",
    )
    page.add_argument(
        "--model", default="moving-mnist", help="embedded model, folder or Hub id (default: %(default)s)"
    )
    page.add_argument(
        "--out", type=Path, default=Path("page"), metavar="DIR", help="new or empty folder (default: %(default)s)"
    )
    add_json(page)
    page.set_defaults(run=run_page)


def run_onnx(args: argparse.Namespace) -> None:
    """Writes the files and says where they are."""
    if args.out.exists() and not args.out.is_dir():
        raise ValueError(f"`--out` is the file {args.out}, expected a folder.")
    from video_diffusion.hub.onnx import export_onnx
    from video_diffusion.sampling import OWN_SAMPLER, load_pipeline

    files = export_onnx(load_pipeline(args.model, OWN_SAMPLER, device="cpu", dtype="float32"), args.out)
    sizes = ", ".join(f"{file.name} ({file.stat().st_size / 1e6:.1f} MB)" for file in files.values())
    report(args, f"Written to {args.out}: {sizes}.", files=files)


def run_page(args: argparse.Namespace) -> None:
    """Writes the page and says where it is."""
    from video_diffusion.hub.browser import export_page
    from video_diffusion.sampling import OWN_SAMPLER, load_pipeline

    files = export_page(load_pipeline(args.model, OWN_SAMPLER, device="cpu", dtype="float32"), args.out, args.model)
    size = sum(file.stat().st_size for file in files.values()) / 1e6
    report(
        args, f"Written to {args.out}: {len(files)} files, {size:.0f} MB. Any server of files will do.", files=files
    )
