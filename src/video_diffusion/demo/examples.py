"""
Finished clips that the page opens with, and the command that makes them anew for other weights:

    python -m video_diffusion.demo.examples
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from video_diffusion.demo.asked import BETWEEN, CONTINUE, CREATE, Asked, read_query
from video_diffusion.demo.studio import Result, Studio

MODEL = "moving-mnist"  # the embedded model that they are of
INDEX = Path(__file__).with_name("examples.json")
CLIPS = INDEX.with_suffix(".npz")
ASKED: dict[str, tuple[Asked, dict[str, Any]]] = {  # the first one is on the page when it opens
    "Continue a clip": (Asked(CONTINUE, 20, 5, 8), {"clips": 2}),
    "Follow a prompt": (Asked(CREATE, 20), {"prompt": "the digit 3 moves right"}),
    "Make four clips": (Asked(CREATE, 20), {"clips": 4}),
    "Fill the gap": (Asked(BETWEEN, 20, 1, 3), {}),
    "Go on for 40 frames": (Asked(CONTINUE, 40, 10, 4), {}),
}


def write_examples(studio: Studio, folder: Path) -> dict[str, tuple[Asked, Result]]:
    """The examples by their titles, with files that the studio keeps; none where they are not of these weights.

    Args:
        studio: of the model.
        folder: of its pipeline.
    """
    from video_diffusion.hub.loading import weights_digest

    index = json.loads(INDEX.read_text(encoding="utf-8"))
    if index["weights"] != weights_digest(folder):
        return {}
    found = {}
    with np.load(CLIPS, allow_pickle=False) as clips:
        for title, query in index["examples"].items():
            asked = read_query(query, studio.limits, studio.trained)
            if asked is not None:
                found[title] = asked, studio.write(asked, clips[title], None)
    studio.results.clear()  # so that visitors' results do not push them out
    return found


def main() -> None:
    """Makes the clips with the embedded model."""
    from video_diffusion.hub.finding import resolve_model
    from video_diffusion.hub.loading import weights_digest
    from video_diffusion.sampling import OWN_SAMPLER, load_pipeline

    studio = Studio(load_pipeline(MODEL, OWN_SAMPLER))
    queries: dict[str, str] = {}
    clips: dict[str, Any] = {}
    for title, (asked, changes) in ASKED.items():
        asked = replace(asked, settings=replace(studio.usual, **changes))
        (clips[title], _), queries[title] = studio.clips(asked), asked.query
        print(f"{title}: {asked.query}")
    np.savez_compressed(CLIPS, **clips)
    index = {"weights": weights_digest(Path(resolve_model(MODEL))), "examples": queries}
    INDEX.write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
