"""From text to tokens and back: GPT-2's byte-pair encoding, plain bytes, and the tokenizer of a pretrained model.

The end-of-text token marks the end of a document and nothing else: text never encodes to it, even if the text contains
the token's name.
"""

import dataclasses
import functools
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Protocol

import numpy as np

from sublora.system.errors import UserError, note, printable
from sublora.system.files import read_json, write_bytes
from sublora.system.pretrained import ANOTHER_PATH, LOCAL, check_model_folder, gguf_files, import_transformers

if TYPE_CHECKING:
    import tokenizers

END_OF_TEXT = "<|endoftext|>"
OF_THE_BASE = "base"
"""Name in the settings of the tokenizer of a pretrained base."""
TOKENIZER_FILE = "tokenizer.json"
"""A copy of the base's tokenizer in the dataset's folder, in the format of the library `tokenizers`."""
PROBE = "Zażółć\n\tgęślą  jaźń 漢字, f(x)==1; "
"""Text that a tokenizer must return unchanged."""


def token_type(vocab_size: int) -> np.dtype:
    """Return the type of tokens in memory and on disk: 2 bytes if all ids fit, else 4."""
    return np.dtype("<u2" if vocab_size <= 1 << 16 else "<u4")


class Tokenizer(Protocol):
    """A reversible map from text to tokens."""

    @property
    def vocab_size(self) -> int:
        """The number of tokens, the end-of-text token included."""

    @property
    def eot_id(self) -> int: ...

    def encode_batch(self, texts: list[str]) -> list[np.ndarray]:
        """Return the tokens of each text, of `token_type`, without end-of-text.

        UnicodeEncodeError for lone surrogates.
        """

    def given_back(self, texts: list[str], encoded: list[np.ndarray]) -> list[str]:
        """Return the text that the tokens of each text stand for: the text itself, unless the tokenizer changes it."""

    def decode(self, tokens: np.ndarray) -> str:
        """Return the text of tokens of shape (n,); invalid UTF-8 becomes U+FFFD, end-of-text its name."""


class Gpt2Tokenizer:
    """GPT-2's byte-pair encoding (Radford et al., 2019) in `tiktoken`. UserError if its vocabulary is missing."""

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
        # No special token is allowed or refused: the name of a special token is ordinary text.
        encode = self._encoding.encode_to_numpy
        return [encode(text, disallowed_special=()).astype(token_type(self.vocab_size)) for text in texts]

    def given_back(self, texts: list[str], encoded: list[np.ndarray]) -> list[str]:
        return texts

    def decode(self, tokens: np.ndarray) -> str:
        return self._encoding.decode(np.asarray(tokens).tolist(), errors="replace")


class ByteTokenizer:
    """UTF-8 bytes, and 256 for the end of a text."""

    name: ClassVar[str] = "bytes"
    vocab_size: ClassVar[int] = 257
    eot_id: ClassVar[int] = 256

    def encode_batch(self, texts: list[str]) -> list[np.ndarray]:
        return [
            np.frombuffer(text.encode("utf-8"), dtype=np.uint8).astype(token_type(self.vocab_size)) for text in texts
        ]

    def given_back(self, texts: list[str], encoded: list[np.ndarray]) -> list[str]:
        return texts

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


class FileTokenizer:
    """The tokenizer in a tokenizer.json, run by `tokenizers`."""

    def __init__(self, tokenizer: "tokenizers.Tokenizer", vocab_size: int, eot_id: int) -> None:
        """Run a tokenizer of the library. `vocab_size`: the number of tokens that the network predicts."""
        self.vocab_size, self.eot_id = vocab_size, eot_id
        self._tokenizer = tokenizer
        _as_text(tokenizer)

    def encode_batch(self, texts: list[str]) -> list[np.ndarray]:
        for text in texts:
            text.encode()  # lone surrogates
        # Names of special tokens are ordinary text.
        encoded = self._tokenizer.encode_batch(texts, add_special_tokens=False)
        return [np.array(each.ids, dtype=token_type(self.vocab_size)) for each in encoded]

    def given_back(self, texts: list[str], encoded: list[np.ndarray]) -> list[str]:
        return list(self._tokenizer.decode_batch([ids.tolist() for ids in encoded], skip_special_tokens=False))

    def decode(self, tokens: np.ndarray) -> str:
        return str(self._tokenizer.decode(np.asarray(tokens).tolist(), skip_special_tokens=False))


@dataclasses.dataclass(frozen=True)
class TokenizerFacts:
    """What is known about a tokenizer without loading it."""

    name: str
    """The value of `data.tokenizer`."""
    vocab_size: int
    eot_id: int
    path: Path | None = None
    """The file of the tokenizer of a base; None for other tokenizers."""

    def load(self) -> Tokenizer:
        """Return the tokenizer, loaded once per process; UserError if its vocabulary cannot be loaded."""
        return _loaded(self)


def tokenizer_facts(name: str, pretrained: Path | None = None) -> TokenizerFacts:
    """Return the facts of a tokenizer, given its name; that of a base is read in the pretrained model's folder.

    UserError if the folder holds no tokenizer that this library can use.
    """
    if name in TOKENIZERS:
        kind = TOKENIZERS[name]
        return TokenizerFacts(name, kind.vocab_size, kind.eot_id)
    if pretrained is None:
        raise ValueError("the tokenizer of a base needs the folder of the base")
    return _of_pretrained(pretrained)[0]


def import_tokenizer(pretrained: Path, folder: Path) -> TokenizerFacts:
    """Copy the tokenizer of a pretrained model to `folder`/tokenizer.json; UserError as in `tokenizer_facts`.

    A note says what stood in the model's file and would have changed documents.
    """
    facts, tokenizer = _of_pretrained(pretrained, note)
    path = folder / TOKENIZER_FILE
    write_bytes(path, tokenizer.to_str().encode())
    return dataclasses.replace(facts, path=path)


def pretrained_tokenizer(pretrained: Path) -> Tokenizer:
    """Return the tokenizer in the folder of a pretrained model; UserError as in `tokenizer_facts`."""
    facts, tokenizer = _of_pretrained(pretrained)
    return FileTokenizer(tokenizer, facts.vocab_size, facts.eot_id)


def load_tokenizer(name: str) -> Tokenizer:
    """Load a tokenizer that needs no base by its name; UserError if its vocabulary cannot be loaded."""
    return tokenizer_facts(name).load()


@functools.cache
def _loaded(facts: TokenizerFacts) -> Tokenizer:
    if facts.path is not None:
        return FileTokenizer(_read_tokenizer(facts.path), facts.vocab_size, facts.eot_id)
    return TOKENIZERS[facts.name]()


def _read_tokenizer(path: Path) -> "tokenizers.Tokenizer":
    import tokenizers

    fix = "prepare the data again (sublora prepare --config FILE)"
    read_json(path, missing=f"; {fix}", fix=fix)  # the library's own errors have no type
    return tokenizers.Tokenizer.from_file(str(path))


def _of_pretrained(
    folder: Path, say: Callable[[str], None] = lambda text: None
) -> "tuple[TokenizerFacts, tokenizers.Tokenizer]":
    """Read the tokenizer in a model's folder.

    UserError if the library `tokenizers` runs none of its tokenizers, if it changes text, if it is code in the folder,
    or if it has no token for the end of a text alone. `say`: told what was switched off.
    """
    # Read it with transformers, which know all formats of a model's folder.
    transformers = import_transformers("data.tokenizer base")
    check_model_folder(folder)
    found = gguf_files(folder)
    gguf = {"gguf_file": found[0]} if found else {}
    try:
        wrapped = transformers.AutoTokenizer.from_pretrained(folder, **LOCAL, **gguf)
        settings = transformers.AutoConfig.from_pretrained(folder, **LOCAL, **gguf).get_text_config()
    except (OSError, ValueError, KeyError, ImportError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{folder}: transformers cannot read a tokenizer ({reason}); {ANOTHER_PATH}") from None
    tokenizer = getattr(wrapped, "backend_tokenizer", None)
    if tokenizer is None:
        raise UserError(f"{folder}: its tokenizer does not belong to the library `tokenizers`; {ANOTHER_PATH}")
    if cleared := _as_text(tokenizer):
        say(f"{folder}: switched off in its tokenizer: {', '.join(cleared)}")
    eot_id = _end_of_text(tokenizer, wrapped.eos_token_id, folder)
    # The tokenizer must return text unchanged, and the model must predict each of its tokens.
    ids = tokenizer.encode(PROBE, add_special_tokens=False).ids
    if tokenizer.decode(ids, skip_special_tokens=False) != PROBE:
        raise UserError(
            f"{folder}: its tokenizer does not give text back as it was (byte-level ones do); {ANOTHER_PATH}"
        )
    if max(tokenizer.get_vocab().values()) >= settings.vocab_size:
        raise UserError(f"{folder}: its tokenizer has tokens beyond the {settings.vocab_size} that the model predicts")
    return TokenizerFacts(OF_THE_BASE, settings.vocab_size, eot_id), tokenizer


def _as_text(tokenizer: "tokenizers.Tokenizer") -> list[str]:
    """Make a tokenizer map each text by itself, whole, and always alike; return in words what was switched off.

    Padding and truncation get into tokenizer.json with the first call that asks for them, and dropout of merges is a
    device of training.
    """
    tokenizer.encode_special_tokens = True  # names of special tokens are ordinary text
    cleared = []
    if tokenizer.padding is not None:
        tokenizer.no_padding()
        cleared.append("padding")
    if tokenizer.truncation is not None:
        tokenizer.no_truncation()
        cleared.append("truncation")
    if getattr(tokenizer.model, "dropout", None):
        tokenizer.model.dropout = None
        cleared.append("dropout")
    return cleared


def _end_of_text(tokenizer: "tokenizers.Tokenizer", own: int | None, folder: Path) -> int:
    """Return the token for the end of a text: GPT-2's if the tokenizer has it, else the model's own.

    If it is not a special token, it becomes one, so that its name in a text is ordinary text. UserError if there is no
    such token, or if it is a piece of text as well.
    """
    import tokenizers

    eot_id: int | None = tokenizer.token_to_id(END_OF_TEXT)
    eot_id = own if eot_id is None else eot_id
    name = None if eot_id is None else tokenizer.id_to_token(eot_id)
    if eot_id is None or name is None:
        raise UserError(f"{folder}: its tokenizer has no {END_OF_TEXT} and no end-of-sequence token")
    added = tokenizer.get_added_tokens_decoder().get(eot_id)
    if added is None or not added.special:
        tokenizer.add_special_tokens([tokenizers.AddedToken(name, special=True, normalized=False)])
    if eot_id in tokenizer.encode(name, add_special_tokens=False).ids:
        raise UserError(
            f"{folder}: its end-of-text token {printable(name, 40)!r} stands for text as well, so it cannot mark the "
            f"end of a document; {ANOTHER_PATH}"
        )
    return eot_id
