"""Subcommands of `video-diffusion`: each module has `register(subparsers)` and imports heavy packages when it runs."""
