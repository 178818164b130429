"""Versions of the stages' numerics, each raised whenever the stage's numbers change, and versions of file formats.

The workflow passes the former as rule parameters, so that a change of numbers reruns exactly the stages it touches,
while a refactoring that keeps the numbers reruns nothing. A test with golden values fails when the numbers of a stage
change and its version does not.
"""

import os
from pathlib import Path

from sublora.system.errors import UserError

NUMERICS_VERSIONS = {"data": 1, "base": 2, "train": 4, "score": 5, "yardsticks": 5, "bound": 5, "figures": 5}

UNITS_VERSION = 2
"""Version of the rule by which sources become units and units are split, with data.unit: source. It is written into
meta.json and is a parameter of the rule that prepares the data. Where documents are the units it is neither, so there
a change of it prepares and trains nothing again."""

CERTIFICATE_FORMAT = 3
"""Version of certificate.bin: of its layout, its header's keys, and how they seed the draws. A reader refuses every
other one."""

CHECKPOINT_FORMAT = 3
"""Version of the layout of best_ckpt.pt, the resume state and bounds_metrics.pt."""

BASE_FORMAT = 1
"""Version of the layout of base.json."""

SCALES_FORMAT = 1
"""Version of the layout of scales.json and of the numbers in it."""

LIBRARY_VARIABLE = "SUBLORA_LIBRARY"
"""Environment variable in which a workflow tells its jobs the folder of the library that it runs with itself."""


def library_folder() -> str:
    """Return the folder of this package."""
    return str(Path(__file__).resolve().parents[1])


def check_library() -> None:
    """Raise UserError if this process is a job of a workflow that runs with another copy of this library.

    As with two checkouts and one environment: the settings and numerics of one would decide what the other computes.
    """
    wanted, found = os.environ.get(LIBRARY_VARIABLE), library_folder()
    if wanted and wanted != found:
        raise UserError(
            f"{found}: this job runs this copy of sublora, but its workflow runs {wanted}; start the workflow in the "
            f"environment of its own checkout, or install that one here: pip install -e {Path(wanted).parent}"
        )
