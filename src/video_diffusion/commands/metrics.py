"""`video-diffusion metrics fetch`: the metric networks' weights, ahead of time."""

import argparse

from video_diffusion.commands.report import add_json, report

NETWORKS = ("i3d", "lpips-alex", "lpips-vgg")


def register(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Adds `metrics` with its actions."""
    parser = subparsers.add_parser("metrics", help="fetch the weights of the metric networks (I3D, LPIPS)")
    actions = parser.add_subparsers(required=True, metavar="action")
    fetch = actions.add_parser("fetch", help="download, check and convert the weights into the cache")
    fetch.add_argument(
        "--only", nargs="+", choices=NETWORKS, default=NETWORKS, metavar="NETWORK", help=f"of {', '.join(NETWORKS)}"
    )
    add_json(fetch)
    fetch.set_defaults(run=run_fetch)


def run_fetch(args: argparse.Namespace) -> None:
    """Fetches what is not here yet, checks every tensor and prints where it lies."""
    from video_diffusion.metrics.weights import load, resolve

    for name in args.only:
        load(name)
    files = {name: resolve(name) for name in args.only}
    report(args, "\n".join(f"{name}: {file}" for name, file in files.items()), **files)
