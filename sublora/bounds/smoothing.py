"""Names of smoothed predictors: token(a) and document(k)."""

import math
import re
from dataclasses import dataclass

LARGEST_K = 64


@dataclass(frozen=True)
class TokenSmoothing:
    """p_a = (1 - a) p + a / V for every token."""

    a: float

    @property
    def name(self) -> str:
        return f"token({self.a!r})"


@dataclass(frozen=True)
class DocumentMixture:
    """q(x) = (1 - 2^-k) prod_t p(x_t | x_<t) + 2^-k V^-T for a document of T targets."""

    k: int

    @property
    def name(self) -> str:
        return f"document({self.k})"


def parse_smoothing(text: str) -> TokenSmoothing | DocumentMixture:
    """The smoothing of a name, `token(0.1)` or `document(8)`; ValueError in one line for anything else."""
    match = re.fullmatch(r"(token|document)\(([0-9.eE+-]+)\)", text)
    try:
        if match and match[1] == "token" and 0.0 < (a := float(match[2])) < 1.0 and math.isfinite(a):
            return TokenSmoothing(a)
        if match and match[1] == "document" and 1 <= (k := int(match[2])) <= LARGEST_K:
            return DocumentMixture(k)
    except ValueError:
        pass
    raise ValueError(
        f"smoothing '{text}' is neither token(a) with 0 < a < 1 (for example token(0.1)) "
        f"nor document(k) with a whole k from 1 to {LARGEST_K} (for example document(8))"
    )
