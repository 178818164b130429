"""Names of the files of results: of a run, in results/runs/{run}/, and of the base."""

CHECKPOINT_NAME = "best_ckpt.pt"
METRICS_NAME = "metrics.csv"
GATES_NAME = "gating_trace.csv"
CERTIFICATE_NAME = "certificate.bin"
LOSSES_NAME = "losses.npz"
BOUNDS_NAME = "bounds.json"
BOUNDS_PT_NAME = "bounds_metrics.pt"

BASE_FOLDER = "results/base"
"""Below the folder that also holds data/."""
BASE_JSON_NAME = "base.json"
BASE_WEIGHTS_NAME = "base.safetensors"
