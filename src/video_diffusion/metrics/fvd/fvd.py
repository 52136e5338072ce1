"""The Fréchet video distance as an `evaluate` module."""

from video_diffusion.metrics import evaluate_base


class Fvd(evaluate_base.FeatureModule):
    """Fréchet distance between the I3D logits of two sets of videos; options: `device`, `batch_size`."""

    description = (
        "Fréchet video distance: the Fréchet distance between Gaussians fitted to the I3D Kinetics-400 logits of two "
        "sets of videos, each of at least 9 frames. Lower is better; compare at one number of videos only."
    )
    citation = (
        "Unterthiner et al., Towards Accurate Generative Models of Video: A New Metric and Challenges, 2018 "
        "(arXiv:1812.01717)"
    )
