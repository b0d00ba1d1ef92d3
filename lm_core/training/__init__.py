"""One training loop: optimizers, schedules, checkpoints, exact resume."""
