"""The trivial models beside which every bound is reported, bounded by the same inequality as the networks.

Guessing, a coded unigram, a coded bigram with pruned contexts, and an adaptive order-3 model that is reset for every
document. Each is a proper next-token predictor whose message has a decoder, and what is scored is the decoded model.
Needs numpy and constriction only; it knows no network.
"""
