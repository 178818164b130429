"""The published name of the subspace module."""

from sublora.subspace.subspace import Subspace as StructuredIDModule

__all__ = ["StructuredIDModule"]
