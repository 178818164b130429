"""Losses of a model on documents."""

TOP_K = (1, 10, 100)
"""The k of the top-k errors: the share of targets that are not among the k likeliest tokens."""
