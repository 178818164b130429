"""Names of smoothed predictors, `token(a)` and `document(k)`: their spelling and the numbers they take.

This is separate from `sublora.bounds.smoothing`, which computes their losses, because settings are checked without a
numerical library.
"""

import re
from typing import NamedTuple

LARGEST_A = 0.999999
"""The largest a; nearer to 1 the loss range shrinks to rounding errors."""
SMALLEST_A = 1e-30
"""The smallest a; with a smaller one the loss of an impossible token, log2(V / a), is not even finite in the end."""
LARGEST_K = 64
"""The largest k, a prior of 2^-64 on guessing; smaller priors change no loss noticeably."""


class SmoothingName(NamedTuple):
    """A parsed name: the kind of smoothing, token or document, and its number, a or k."""

    kind: str
    number: float | int

    def __str__(self) -> str:
        """Return the canonical spelling of the name."""
        return f"{self.kind}({self.number!r})"


def parse_name(text: str) -> SmoothingName:
    """Parse a name such as `token(0.1)` or `document(8)`. ValueError, in one line, for any other text."""
    match = re.fullmatch(r"\s*(token|document)\s*\(\s*([0-9.eE+-]+)\s*\)\s*", text)
    try:
        if match and match[1] == "token" and SMALLEST_A <= float(match[2]) <= LARGEST_A:
            return SmoothingName("token", float(match[2]))
        if match and match[1] == "document" and 1 <= int(match[2]) <= LARGEST_K:
            return SmoothingName("document", int(match[2]))
    except ValueError:
        pass
    raise ValueError(
        f"smoothing {text[:40]!r}: expected token(a) with {SMALLEST_A:g} <= a <= {LARGEST_A}, as in token(0.1), "
        f"or document(k) with a whole k from 1 to {LARGEST_K}, as in document(8)"
    )
