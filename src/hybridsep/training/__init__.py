"""The training loop, its checkpoints, and what one step of each model is."""
