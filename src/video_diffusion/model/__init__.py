"""What travels to the Hub: the denoiser, the scheduler and the pipeline."""
