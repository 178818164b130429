"""From a vector w to the bits a bound charges for, and back: quantizers, range coder, payload, certificate.

Needs numpy and constriction only; it knows no network. Bits live in numpy arrays of uint8 zeros and ones, most
significant bit first, because no length here is a whole number of bytes.
"""
