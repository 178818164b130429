"""Snakemake, with the SLURM executor asking for its jobs every second: by itself it waits longer and longer."""

import sys

import snakemake_executor_plugin_slurm
from snakemake.cli import main

SECONDS = 1.0

if __name__ == "__main__":
    snakemake_executor_plugin_slurm.Executor.next_seconds_between_status_checks = property(  # type: ignore[assignment]
        lambda self: SECONDS, lambda self, value: None
    )
    main(sys.argv[1:])
