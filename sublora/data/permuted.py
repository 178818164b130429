"""Documents in another order: a control that takes the structure of text away and leaves its words.

After Lotfi et al., ICML 2024, who permute the tokens of each sequence to show what a bound owes to their order.
"""

import re

import numpy as np
from numpy.typing import NDArray

from sublora.system.streams import generator

WORD = re.compile(r"\S+")


def permuted_words(text: str, seed: int) -> str:
    """The words of a text in an order drawn from the seed and the text itself; all white space as it was."""
    words = WORD.findall(text)
    order = iter(_order(len(words), text, seed).tolist())
    return WORD.sub(lambda _: words[next(order)], text)


def permuted_tokens(tokens: NDArray, text: str, seed: int) -> NDArray:
    """The tokens of a text, shape (n,), in an order drawn from the seed and the text."""
    return tokens[_order(len(tokens), text, seed)]


def _order(count: int, text: str, seed: int) -> NDArray[np.int64]:
    return generator(seed, "order within a document", text.encode()).permutation(count)
