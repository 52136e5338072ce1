"""`video-diffusion push | pull | card`: pipelines to the Hub and back, and the card that stands on their page."""

import argparse
from pathlib import Path
from typing import Any

from video_diffusion.commands.report import add_json, report

LOGIN = "The token is the one of HF_TOKEN or of `hf auth login`."


def register(subparsers: Any) -> None:
    """Adds the three subcommands."""
    push = subparsers.add_parser(
        "push",
        help="publish a pipeline on the Hub",
        description=f"Publishes a pipeline in one commit: weights, code, card, evaluations, samples. {LOGIN}",
    )
    push.add_argument("folder", metavar="FOLDER", help="folder of a pipeline or of an adapter, or an embedded model")
    add_destination(push)
    push.add_argument("--variant", choices=("fp16", "bf16", "none"), default="fp16",
                      help="half-precision weights beside the full ones (default: %(default)s)")  # fmt: skip
    add_json(push)
    push.set_defaults(run=run_push)

    pull = subparsers.add_parser(
        "pull",
        help="download a pipeline from the Hub",
        description=f"Downloads a pipeline into a folder, whole or not at all; no pickles. {LOGIN}",
    )
    pull.add_argument("repo_id", metavar="REPO_ID", help="owner/name on the Hub")
    pull.add_argument("folder", metavar="DIR", help="folder to make; that of a pipeline is replaced")
    pull.add_argument("--revision", help="branch, tag, commit or refs/pr/N (default: main)")
    add_json(pull)
    pull.set_defaults(run=run_pull)

    card = subparsers.add_parser(
        "card",
        help="write a pipeline's model card",
        description="Writes FOLDER/README.md from the pipeline's configs, run.json and evaluation/*.json.",
    )
    card.add_argument("folder", metavar="FOLDER", type=Path, help="folder of a pipeline or of an adapter")
    card.add_argument("--repo-id", metavar="ID", help="its name on the Hub, for the examples (default: the folder's)")
    card.add_argument("--samples", action="store_true", help="first make FOLDER/samples/*.gif with the pipeline")
    add_json(card)
    card.set_defaults(run=run_card)


def add_destination(parser: argparse.ArgumentParser) -> None:
    """The arguments that say where an upload goes."""
    parser.add_argument("repo_id", metavar="REPO_ID", help="owner/name on the Hub; made where it is missing")
    parser.add_argument("--private", action="store_true", default=None, help="make a new repository private")
    parser.add_argument("--revision", metavar="BRANCH", help="branch, made where it is missing (default: main)")
    parser.add_argument("--create-pr", action="store_true", help="propose a pull request")
    parser.add_argument("--commit-message", metavar="TEXT", help="title of the commit")


def destination(args: argparse.Namespace) -> dict[str, Any]:
    """What `add_destination` read, as keyword arguments of the functions that push."""
    return {name: getattr(args, name) for name in ("private", "revision", "create_pr", "commit_message")}


def run_push(args: argparse.Namespace) -> None:
    """Publishes a pipeline and prints where it is."""
    from video_diffusion.hub.adapters import is_adapter, push_adapter
    from video_diffusion.hub.finding import embedded_adapters, embedded_models
    from video_diffusion.hub.publish import push_pipeline

    folder = (embedded_models() | embedded_adapters()).get(args.folder, args.folder)
    if is_adapter(folder):
        url = push_adapter(folder, args.repo_id, **destination(args))
        report(args, f"Published: {url}", published=url)
        return
    variant = None if args.variant == "none" else args.variant
    url = push_pipeline(folder, args.repo_id, variant=variant, **destination(args))
    report(args, f"Published: {url}", published=url)


def run_pull(args: argparse.Namespace) -> None:
    """Downloads a pipeline and prints where it is."""
    from video_diffusion.hub.publish import pull_pipeline

    folder = pull_pipeline(args.repo_id, args.folder, revision=args.revision)
    report(args, f"Downloaded: {folder}", downloaded=folder)


def run_card(args: argparse.Namespace) -> None:
    """Writes the card and prints where it is."""
    from video_diffusion.hub.adapters import is_adapter, write_adapter_card
    from video_diffusion.hub.cards import write_card, write_samples
    from video_diffusion.hub.configs import GENERATION_CONFIG

    adapter = is_adapter(args.folder)
    if args.samples:
        from video_diffusion.sampling import load_pipeline

        if adapter and not (args.folder / GENERATION_CONFIG).is_file():
            raise ValueError(
                f"`--samples` is for a pipeline, or an adapter with a {GENERATION_CONFIG}; this has none."
            )
        write_samples(args.folder, load_pipeline(str(args.folder)))
    file = (write_adapter_card if adapter else write_card)(args.folder, args.repo_id)
    report(args, f"Written: {file}", written=file)
