"""Coding of a vector w into the bits that a bound charges for, and back: quantizers, range coder, payload, certificate.

The package needs only numpy and constriction and knows no network. Bits are numpy arrays of uint8 zeros and ones, most
significant bit first, because lengths are rarely a whole number of bytes.
"""
