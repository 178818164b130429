"""The parts of `sublora verify`: which files, what is compared and how closely, the data, and the verdict.

Nothing here believes a number that it can compute.
"""
