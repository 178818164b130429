"""From text to tokens and back: GPT-2's byte-pair encoding and plain bytes.

The end-of-text token stands for the end of a document and for nothing else: text never encodes to it, even
where the text holds the token's name.
"""

import functools
import textwrap
from typing import ClassVar, Protocol

import numpy as np

from sublora.errors import UserError

TOKEN_TYPE = np.dtype("<u2")
"""Of tokens in memory and on disk: vocabularies have at most 65,536 tokens."""

END_OF_TEXT = "<|endoftext|>"


class Tokenizer(Protocol):
    """A reversible map from text to tokens."""

    name: ClassVar[str]
    vocab_size: ClassVar[int]
    """Tokens, the end-of-text token included."""
    eot_id: ClassVar[int]

    def encode_batch(self, texts: list[str]) -> list[np.ndarray]:
        """Tokens (TOKEN_TYPE) of each text, without end-of-text; UnicodeEncodeError for lone surrogates."""

    def decode(self, tokens: np.ndarray) -> str:
        """Text of tokens of shape (n,); bytes that are no UTF-8 become U+FFFD, end-of-text its name."""


class Gpt2Tokenizer:
    """Byte-pair encoding of GPT-2 (Radford et al., 2019), by `tiktoken`. UserError if its vocabulary is missing."""

    name: ClassVar[str] = "gpt2"
    vocab_size: ClassVar[int] = 50257
    eot_id: ClassVar[int] = 50256

    def __init__(self) -> None:
        import tiktoken

        try:
            self._encoding = tiktoken.get_encoding("gpt2")
        except (OSError, ValueError) as error:  # requests' errors are OSErrors; ValueError: a damaged download
            raise UserError(
                f"data.tokenizer gpt2: cannot load its vocabulary ({type(error).__name__}: "
                f"{textwrap.shorten(str(error), 100)}); run once on a machine with internet access: "
                "TIKTOKEN_CACHE_DIR=FOLDER python -c \"import tiktoken; tiktoken.get_encoding('gpt2')\" "
                "and set TIKTOKEN_CACHE_DIR to that folder (or a copy of it) here"
            ) from None

    def encode_batch(self, texts: list[str]) -> list[np.ndarray]:
        # No special token is allowed and none is refused: a special token's name is ordinary text.
        encode = self._encoding.encode_to_numpy
        return [encode(text, disallowed_special=()).astype(TOKEN_TYPE) for text in texts]

    def decode(self, tokens: np.ndarray) -> str:
        return self._encoding.decode(np.asarray(tokens).tolist(), errors="replace")


class ByteTokenizer:
    """UTF-8 bytes, and 256 for the end of a text."""

    name: ClassVar[str] = "bytes"
    vocab_size: ClassVar[int] = 257
    eot_id: ClassVar[int] = 256

    def encode_batch(self, texts: list[str]) -> list[np.ndarray]:
        return [np.frombuffer(text.encode("utf-8"), dtype=np.uint8).astype(TOKEN_TYPE) for text in texts]

    def decode(self, tokens: np.ndarray) -> str:
        values = np.asarray(tokens)
        if values.size and (values.min() < 0 or values.max() > self.eot_id):
            raise ValueError(f"expected tokens in 0 ... {self.eot_id}, found {values.min()} ... {values.max()}")
        pieces = np.split(values, np.flatnonzero(values == self.eot_id))
        texts = [piece[piece != self.eot_id].astype(np.uint8).tobytes() for piece in pieces]
        return END_OF_TEXT.join(text.decode("utf-8", errors="replace") for text in texts)


TOKENIZERS: dict[str, type[Gpt2Tokenizer] | type[ByteTokenizer]] = {
    kind.name: kind for kind in (Gpt2Tokenizer, ByteTokenizer)
}


@functools.cache
def load_tokenizer(name: str) -> Tokenizer:
    """The tokenizer of that name, loaded once a process; UserError if its vocabulary cannot be had."""
    return TOKENIZERS[name]()
