"""Find the files of a pretrained model: in a folder, or in the cache of the Hugging Face hub. Does not import torch."""

from pathlib import Path
from typing import Any

from sublora.system.errors import UserError

MODEL_FILES = ("config.json", "*.safetensors", "model.safetensors.index.json", "*.gguf")
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.json", "merges.txt")


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
