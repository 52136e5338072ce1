"""Training: arguments, batches, objective, optimisers, the loop."""
