"""Continuous-time video diffusion in the shape of diffusers."""
