"""Generalization bounds from a message's length and per-document losses (numpy; pydantic for a run's record)."""
