"""How far the grid has come, read from the files alone."""

import json
from pathlib import Path

from rich.console import Console
from rich.table import Table

from sublora import config
from sublora.names import BASE_FOLDER, BASE_JSON_NAME, BOUNDS_NAME, CERTIFICATE_NAME, CHECKPOINT_NAME

STAGES = ("untrained", "training", "trained", "encoded", "bounded")


def run_stage(folder: Path) -> str:
    """The last of STAGES that a run's folder has reached."""
    if (folder / BOUNDS_NAME).exists():
        return "bounded"
    if (folder / CERTIFICATE_NAME).exists():
        return "encoded"
    if (folder / CHECKPOINT_NAME).exists():
        return "trained"
    return "training" if any((folder / "state").glob("*.pt")) else "untrained"


def base_stage(folder: Path) -> str:
    """How far the base has come: missing, training or made."""
    if (folder / BASE_JSON_NAME).exists():
        return "made"
    return "training" if any((folder / "state").glob("*.pt")) else "missing"


def print_status(config_path: Path) -> None:
    """Print a table of all runs of a settings file, and a line that counts them."""
    settings = config.load_settings(config_path)
    root = config.root_of(config_path)
    runs_folder = root / "results" / "runs"
    if settings.base.kind != "random":
        print(f"base ({settings.base.kind}): {base_stage(root / BASE_FOLDER)}")
    table = Table("run", "stage", "bound (bits/token)", "message (bits)")
    counts = dict.fromkeys(STAGES, 0)
    for run in settings.grid.runs():
        folder = runs_folder / run.name
        stage = run_stage(folder)
        counts[stage] += 1
        bound, size = "", ""
        if stage == "bounded":
            record = json.loads((folder / BOUNDS_NAME).read_text(encoding="utf-8"))
            bound, size = f"{record['bound_value']:.3f}", f"{record['code_bits']:,.0f}"
        table.add_row(run.name, stage, bound, size)
    Console().print(table)
    print(", ".join(f"{count} {stage}" for stage, count in counts.items() if count))
