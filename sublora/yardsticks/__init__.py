"""Trivial models beside which every bound is reported, bounded by the same inequality as the networks.

They are guessing, a coded unigram, a coded bigram with pruned contexts, and an adaptive order-3 model that is reset for
every document. Each is a proper next-token predictor whose message has a decoder, and the decoded model is what is
scored. The package needs only numpy and constriction and knows no network.
"""

from sublora.yardsticks.compute import compute_yardsticks
from sublora.yardsticks.record import (
    YARDSTICKS_PATH,
    Row,
    Scored,
    Yardsticks,
    read_yardsticks,
    write_yardsticks,
    yardstick_row,
)

__all__ = [
    "YARDSTICKS_PATH",
    "Row",
    "Scored",
    "Yardsticks",
    "compute_yardsticks",
    "read_yardsticks",
    "write_yardsticks",
    "yardstick_row",
]
