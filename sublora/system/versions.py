"""Versions of the stages' numerics, each raised whenever the stage's numbers change, and versions of file formats.

The workflow passes the former as rule parameters, so that a change of numbers reruns exactly the stages it touches,
while a refactoring that keeps the numbers reruns nothing. A test with golden values fails when the numbers of a stage
change and its version does not.
"""

NUMERICS_VERSIONS = {"data": 1, "base": 2, "train": 3, "score": 5, "yardsticks": 5, "bound": 4, "figures": 5}

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
