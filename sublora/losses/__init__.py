"""Losses of a model on text: which windows, which documents, and what the bound would be. One definition of each."""

TOP_K = (1, 10, 100)
"""The k of the top-k errors: the share of targets that are not among the k likeliest tokens."""
