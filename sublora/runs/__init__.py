"""The stages of a run, each a function from files to files: train, encode, score, bound, verify.

This is where networks, coding and bounds meet; each of those packages knows nothing of the others.
"""
