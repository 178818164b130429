"""Names of the files in a run's folder, results/runs/{run}/."""

CHECKPOINT_NAME = "best_ckpt.pt"
METRICS_NAME = "metrics.csv"
GATES_NAME = "gating_trace.csv"
CERTIFICATE_NAME = "certificate.bin"
LOSSES_NAME = "losses.npz"
BOUNDS_NAME = "bounds.json"
BOUNDS_PT_NAME = "bounds_metrics.pt"
