"""An `evaluate` module: load this folder with `evaluate.load`."""
