"""Training in the subspace: loop, schedules, checkpoints and resume."""
