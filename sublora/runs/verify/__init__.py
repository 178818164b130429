"""The parts of `sublora verify`: which files, what is compared and how closely, the data, and the verdict.

A number that can be computed is never taken from the claim.
"""
