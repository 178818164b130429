"""Training in the subspace, and of a base: loop, evaluation, rate phase, checkpoints and resume."""
