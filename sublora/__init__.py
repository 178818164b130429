"""Generalization bounds for language models through compression.

Importing this package is light: heavy modules (torch, pandas) are imported where they are used.
"""

__version__ = "0.1.0"
