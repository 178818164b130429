"""Losses of a model on documents."""
