"""The folder of a pipeline, its card, and the way to the Hub and back."""
