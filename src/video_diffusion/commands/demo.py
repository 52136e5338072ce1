"""`video-diffusion demo | space push`: the demo in the browser, on this machine or as a Space on the Hub."""

import argparse
from typing import Any

from video_diffusion.commands.generate import add_device
from video_diffusion.commands.hub import LOGIN, add_destination, destination
from video_diffusion.commands.report import add_json, report


def register(subparsers: Any) -> None:
    """Adds the two subcommands."""
    demo = subparsers.add_parser(
        "demo",
        help="open the demo in the browser",
        description="Serves a page that continues clips, creates them, also from text, and fills gaps.",
    )
    demo.add_argument("--model", default="moving-mnist", help="embedded, folder or Hub id (default: %(default)s)")
    demo.add_argument("--host", help="address to listen at; 0.0.0.0 is all (default: this machine only)")
    demo.add_argument("--port", type=int, help="default: the first free one from 7860")
    add_device(demo)
    demo.add_argument("--static", action="store_true", help="the page that runs the model in the browser; no gradio")
    demo.set_defaults(run=run_demo)

    space = subparsers.add_parser("space", help="publish the demo on the Hub")
    actions = space.add_subparsers(required=True, metavar="action")
    push = actions.add_parser(
        "push",
        help="publish it as a Space",
        description=f"Publishes the demo in one commit: page, package and model. {LOGIN}",
    )
    add_destination(push)
    push.add_argument("--model", default="moving-mnist", help="embedded model or folder (default: %(default)s)")
    push.add_argument("--static", action="store_true", help="a static Space: the visitor's browser runs the model")
    add_json(push)
    push.set_defaults(run=run_push)


def run_demo(args: argparse.Namespace) -> None:
    """Serves the demo until it is stopped."""
    if args.port is not None and not 0 < args.port < 2**16:
        raise ValueError(f"`--port` is {args.port}, expected 1 to {2**16 - 1}.")
    if args.static:
        from video_diffusion.demo.static import serve_page

        return serve_page(args.model, args.host, args.port)
    try:
        from video_diffusion.demo.page import serve
    except ImportError as error:
        raise ImportError(f"The demo needs gradio: pip install 'video-diffusion[demo]' ({error}).") from error
    serve(args.model, args.host, args.port, args.device, args.dtype)


def run_push(args: argparse.Namespace) -> None:
    """Publishes the demo and prints where it is."""
    if args.static:
        from video_diffusion.hub.browser import push_page
        from video_diffusion.sampling import OWN_SAMPLER, load_pipeline

        pipeline = load_pipeline(args.model, OWN_SAMPLER, device="cpu", dtype="float32")
        url = push_page(pipeline, args.repo_id, name=args.model, **destination(args))
    else:
        from video_diffusion.hub.publish import push_space

        url = push_space(args.repo_id, model=args.model, **destination(args))
    report(args, f"Published: {url}", published=url)
