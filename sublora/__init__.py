"""Generalization bounds for language models through compression.

Importing this package is light: heavy modules (torch, pandas) are imported where they are used, and the names below
come from their modules when they are first asked for.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sublora.bounds.certify import Certified as Certified
    from sublora.bounds.certify import certify as certify

__version__ = "0.1.0"

_EXPORTS = {"Certified": "sublora.bounds.certify", "certify": "sublora.bounds.certify"}
"""Public name to the module that defines it."""


def __getattr__(name: str) -> object:
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_EXPORTS[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_EXPORTS])
