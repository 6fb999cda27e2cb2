"""The training loop and what it needs: optimiser, schedule, checkpoints, validation, the run folder."""
