"""The files of a pretrained model, in a folder or in the cache of the Hugging Face hub, and what is refused in them.

Does not import torch.
"""

import collections
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from sublora.system.errors import UserError, note, printable
from sublora.system.files import read_json

MODEL_FILES = ("config.json", "*.safetensors", "model.safetensors.index.json", "*.gguf")
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.json", "merges.txt")
LOCAL: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
"""Options of every reading by transformers: only files of the folder, and no code that comes with them."""
ANOTHER_PATH = "give another base.path"
POINTER = b"version https://git-lfs.github.com/spec/"
"""How the file begins that Git LFS leaves in the place of a file that it has not fetched."""
POINTER_BYTES = 1024
"""A pointer is shorter than this."""
NAMED = 3
"""How many tensors a message names."""


def pretrained_folder(path: str, revision: str | None, root: Path) -> Path:
    """Return the folder of a model's files.

    Args:
        path: a folder relative to `root`, or else a model's name on the hub, which is downloaded into its cache.
        revision: of the model on the hub; a folder has none.
        root: the folder above config/ and data/.

    Raises:
        UserError: there is no such folder, and the download failed.
    """
    folder = root / path
    return folder if folder.is_dir() else _downloaded(path, revision)


def is_pointer(path: Path) -> bool:
    """Return whether a file is what Git LFS leaves in the place of one that it has not fetched."""
    if path.stat().st_size >= POINTER_BYTES:
        return False
    with open(path, "rb") as handle:
        return handle.read(len(POINTER)) == POINTER


def pointer_error(path: Path) -> UserError:
    """Return the error for such a file."""
    return UserError(f"{path}: a pointer of Git LFS and not the file itself; fetch it (git lfs pull)")


def check_model_folder(folder: Path) -> None:
    """Refuse files that transformers would misread, run, or look up elsewhere.

    UserError for a file that Git LFS has not fetched, for the adapter of another model, and for a tokenizer that is
    code in the folder.
    """
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if path.is_file() and is_pointer(path):
            raise pointer_error(path)
    if (folder / "adapter_config.json").exists():
        raise UserError(
            f"{folder}: has adapter_config.json, the adapter of another model; merge the two (merge_and_unload in "
            "peft) and save the result"
        )
    path = folder / "tokenizer_config.json"
    if not path.exists():
        return
    facts = read_json(path, missing="", fix=ANOTHER_PATH)
    code = facts.get("auto_map") if isinstance(facts, dict) else None
    name = facts.get("tokenizer_class") if code else None
    if code and not (isinstance(name, str) and hasattr(import_transformers("a tokenizer"), name)):
        raise UserError(
            f"{path}: the tokenizer is code of its own (auto_map, class {printable(name, 60)}), which no command runs; "
            "if tokenizer.json holds all of it, delete auto_map and tokenizer_class"
        )


def check_loaded(
    info: Mapping[str, Collection[str]], where: Path | str, *, new: Callable[[str], bool] = lambda name: False
) -> None:
    """Refuse a model some of whose tensors were in no file; a note names tensors that the model does not have.

    Args:
        info: what transformers returns with output_loading_info=True.
        where: the folder or the file, for messages.
        new: whether a tensor of this name is meant to be drawn at random, as a classifier's head is.
    """
    missing = sorted(name for name in info["missing_keys"] if not new(name))
    spare = sorted(info["unexpected_keys"])
    if missing:
        raise UserError(
            f"{where}: tensors of the model are missing, and would be drawn at random: {_some(missing)}; "
            f"{renaming_hint(missing, spare) or f'save the model again, or {ANOTHER_PATH}'}"
        )
    ignored = [name for name in spare if not new(name)]
    if ignored:
        note(f"{where}: tensors that the model does not have are ignored: {_some(ignored)}")


def renaming_hint(missing: Collection[str], spare: Collection[str]) -> str | None:
    """Return what to take out of the names of `spare` tensors so that they become `missing` ones, as advice.

    torch.compile, DataParallel and peft put such parts into names. None if nothing fits half of the missing tensors.
    """
    wanted = set(missing)
    found: collections.Counter[str] = collections.Counter()
    for name in spare:
        parts = name.split(".")
        # One run of parts is too many, at any place.
        for start in range(len(parts)):
            for end in range(start + 1, len(parts)):
                if ".".join(parts[:start] + parts[end:]) in wanted:
                    found[".".join(parts[start:end])] += 1
    best = found.most_common(1)
    if not best or 2 * best[0][1] < len(wanted):
        return None
    merge = ", after merging the adapters (merge_and_unload in peft)" if best[0][0] == "base_layer" else ""
    return f"the files have {best[0][1]} of them with '{best[0][0]}.' in the name; save them without it{merge}"


def _some(names: Collection[str]) -> str:
    """Return the first names, and how many more there are."""
    shown = ", ".join(printable(name, 80) for name in list(names)[:NAMED])
    return shown if len(names) <= NAMED else f"{shown} and {len(names) - NAMED} more"


def gguf_files(folder: Path) -> list[str]:
    """Return the names of the .gguf files that hold the model, sorted; none where config.json describes it."""
    return [] if (folder / "config.json").exists() else sorted(path.name for path in folder.glob("*.gguf"))


def import_transformers(wanted: str) -> Any:
    """Import the library; UserError, which names what needs it, if it is not installed."""
    try:
        import transformers
    except ImportError:
        raise UserError(f"{wanted} needs the package transformers; pip install 'sublora[hf]'") from None
    return transformers


def _downloaded(path: str, revision: str | None) -> Path:
    from huggingface_hub import errors, snapshot_download

    # Errors of whichever HTTP library the hub uses. A file that neither the hub nor the cache has is an OSError.
    http_error = errors.HTTPError  # type: ignore[attr-defined]
    patterns = [*MODEL_FILES, *TOKENIZER_FILES]
    try:
        return Path(snapshot_download(path, revision=revision, allow_patterns=patterns))
    except (http_error, errors.HFValidationError, OSError) as error:
        reason = str(error).strip().split("\n", 1)[0]
        raise UserError(
            f"base.path '{path}': no such folder, and the download from the Hugging Face hub failed ({reason}); give a "
            "folder with config.json and safetensors, or run `sublora base` where the internet can be reached"
        ) from None
