import os
import subprocess
import sys

import numpy as np
import pytest
from conftest import lacking
from fetch_gpt2_vocabulary import CACHE, is_cached
from hypothesis import given, settings
from hypothesis import strategies as st

from sublora.data.tokenizers import TOKENIZERS, ByteTokenizer, Gpt2Tokenizer, load_tokenizer

TEXT = st.text(st.characters(exclude_categories=["Cs"]))  # Cs: surrogates, which no valid text holds
AWKWARD = ["", " ", "\n\n \t", "naïve café", "<|endoftext|>", "a<|endoftext|>b", "日本語 🙂", "\x00\ufeff", "ab" * 999]


@pytest.fixture(scope="module")
def gpt2():
    if not is_cached():
        lacking("GPT-2's vocabulary is not here; get it with: python tests/fetch_gpt2_vocabulary.py")
    before = os.environ.get("TIKTOKEN_CACHE_DIR")
    os.environ["TIKTOKEN_CACHE_DIR"] = str(CACHE)
    yield load_tokenizer("gpt2")
    if before is None:
        del os.environ["TIKTOKEN_CACHE_DIR"]
    else:
        os.environ["TIKTOKEN_CACHE_DIR"] = before


def check_round_trip(tokenizer, texts):
    encoded = tokenizer.encode_batch(texts)
    assert [tokenizer.decode(tokens) for tokens in encoded] == texts
    for tokens in encoded:
        assert tokens.dtype == np.uint16
        assert not np.any(tokens == tokenizer.eot_id)
        assert np.all(tokens < tokenizer.vocab_size)


@given(st.lists(TEXT, max_size=5))
@settings(max_examples=50, deadline=None)
def test_bytes_round_trip(texts):
    check_round_trip(ByteTokenizer(), texts + AWKWARD)


@given(st.lists(TEXT, max_size=5))
@settings(max_examples=50, deadline=None)
def test_gpt2_round_trip(gpt2, texts):
    check_round_trip(gpt2, texts + AWKWARD)


def test_bytes_are_utf8():
    (tokens,) = ByteTokenizer().encode_batch(["é<"])
    assert tokens.tolist() == [0xC3, 0xA9, ord("<")]


def test_gpt2_known_tokens(gpt2):
    # Token ids of GPT-2 as published; the special token's name in text is seven ordinary tokens.
    hello, special = gpt2.encode_batch(["hello world", "<|endoftext|>"])
    assert hello.tolist() == [31373, 995]
    assert special.tolist() == [27, 91, 437, 1659, 5239, 91, 29]


def test_gpt2_facts_are_those_of_tiktoken(gpt2):
    import tiktoken

    encoding = tiktoken.get_encoding("gpt2")
    assert (Gpt2Tokenizer.vocab_size, Gpt2Tokenizer.eot_id) == (encoding.n_vocab, encoding.eot_token)
    text = "The quick brown fox;  jumps\n\n over 123456 dogs' tails."
    assert gpt2.encode_batch([text])[0].tolist() == encoding.encode_ordinary(text)


@pytest.mark.parametrize("name", sorted(TOKENIZERS))
def test_decoding_shows_the_end_of_text_and_broken_bytes(name, request):
    tokenizer = request.getfixturevalue("gpt2") if name == "gpt2" else ByteTokenizer()
    first, second = tokenizer.encode_batch(["one", "é"])
    tokens = np.concatenate([first, [tokenizer.eot_id], second]).astype(np.uint16)
    assert tokenizer.decode(tokens) == "one<|endoftext|>é"
    assert tokenizer.decode(np.array([ByteTokenizer().eot_id]) if name == "bytes" else [50256]) == "<|endoftext|>"


def test_half_a_character_becomes_the_replacement_character():
    assert ByteTokenizer().decode(np.array([0x61, 0xC3])) == "a\ufffd"


def test_bytes_refuse_other_ids():
    with pytest.raises(ValueError, match="expected tokens in 0 ... 256"):
        ByteTokenizer().decode(np.array([3, 257]))


def test_missing_vocabulary_names_the_mend(tmp_path):
    code = "from sublora.data.tokenizers import load_tokenizer; load_tokenizer('gpt2')"
    nowhere = {"HTTPS_PROXY": "http://127.0.0.1:9", "TIKTOKEN_CACHE_DIR": str(tmp_path)}
    result = subprocess.run([sys.executable, "-c", code], env=os.environ | nowhere, capture_output=True, text=True)
    last = result.stderr.strip().splitlines()[-1]
    assert "UserError: data.tokenizer gpt2: cannot load its vocabulary (ProxyError" in last
    assert "TIKTOKEN_CACHE_DIR=FOLDER python -c" in last
