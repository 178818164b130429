"""Losses of a model on text: which windows, which documents, and the bound to be expected, each defined once."""

TOP_K = (1, 10, 100)
"""The k of the top-k errors: the share of targets that are not among the k most likely tokens."""
