"""Generalization bounds from a message's length and per-document losses; numpy only, and pydantic for run records."""
