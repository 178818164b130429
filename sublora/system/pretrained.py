"""Where the files of a pretrained model are: a folder, or the cache of the Hugging Face hub. Does not import torch."""

from pathlib import Path
from typing import Any

from sublora import config
from sublora.system.errors import UserError

MODEL_FILES = ("config.json", "*.safetensors", "model.safetensors.index.json", "*.gguf")
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.json", "merges.txt")


def pretrained_folder(base: config.PretrainedBase, root: Path) -> Path:
    """The folder of a model's files, downloaded into the cache of the hub if `base.path` is no folder below `root`.

    UserError if they cannot be had.
    """
    folder = root / base.path
    return folder if folder.is_dir() else _downloaded(base)


def gguf_files(folder: Path) -> list[str]:
    """Names of the .gguf files that hold the model, sorted; none where config.json describes it."""
    return [] if (folder / "config.json").exists() else sorted(path.name for path in folder.glob("*.gguf"))


def import_transformers(wanted: str) -> Any:
    """The library; UserError, naming what needs it, if it is not installed."""
    try:
        import transformers
    except ImportError:
        raise UserError(f"{wanted} needs the package transformers; pip install 'sublora[hf]'") from None
    return transformers


def _downloaded(base: config.PretrainedBase) -> Path:
    from huggingface_hub import errors, snapshot_download

    # Of whichever HTTP library the hub uses; a file that neither the hub nor the cache has is an OSError.
    http_error = errors.HTTPError  # type: ignore[attr-defined]
    patterns = [*MODEL_FILES, *TOKENIZER_FILES]
    try:
        return Path(snapshot_download(base.path, revision=base.revision, allow_patterns=patterns))
    except (http_error, errors.HFValidationError, OSError) as error:
        reason = str(error).strip().split("\n", 1)[0]
        raise UserError(
            f"base.path '{base.path}': no such folder, and not to be had from the Hugging Face hub ({reason}); give a "
            "folder with config.json and safetensors, or run `sublora base` where the internet can be reached"
        ) from None
