"""`video-diffusion export onnx | page | lora`: a model without PyTorch, in the browser, as an adapter of its base."""

import argparse
from pathlib import Path
from typing import Any

from video_diffusion.commands.report import add_json, report


def register(subparsers: Any) -> None:
    """Adds the `export` command."""
    export = subparsers.add_parser("export", help="write a model in another form")
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

    lora = formats.add_parser(
        "lora",
        help="what a model has learned beyond its base, as an adapter",
        description="Writes the difference between two models of one shape as a LoRA adapter of the second: in each "
        "layer the nearest matrix of the rank.",
    )
    lora.add_argument("--model", required=True, help="embedded model, folder or Hub id")
    lora.add_argument("--base", default="moving-mnist", help="what it was trained from (default: %(default)s)")
    lora.add_argument("--rank", type=int, default=64, metavar="N", help="of its matrices (default: %(default)s)")
    lora.add_argument("--dtype", choices=("float16", "float32"), default="float16", help="default: %(default)s")
    lora.add_argument("--out", type=Path, default=Path("adapter"), metavar="DIR", help="folder (default: %(default)s)")
    add_json(lora)
    lora.set_defaults(run=run_lora)


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


def run_lora(args: argparse.Namespace) -> None:
    """Writes the adapter and says what it holds."""
    if args.out.exists() and not args.out.is_dir():
        raise ValueError(f"`--out` is the file {args.out}, expected a folder.")
    from video_diffusion.hub.adapters import ADAPTER
    from video_diffusion.hub.extraction import extract_adapter

    share = extract_adapter(args.model, args.base, args.out, rank=args.rank, dtype=args.dtype)
    size = (args.out / ADAPTER).stat().st_size / 1e6
    written = f"Written to {args.out}: an adapter of {args.base} ({size:.1f} MB)."
    held = f"It holds {share:.1%} of the squared difference."
    report(args, f"{written} {held}", folder=args.out, share=share)
