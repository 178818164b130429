"""What `sublora adapt` was asked for, and the settings that follow from the request, the model and the documents.

The settings are what a person would write after a look at the model and at the documents. Paths of documents and model
are seen from the folder of the results.
"""

import dataclasses
import hashlib
import os
import re
from pathlib import Path
from typing import Any, Literal

import yaml

from sublora import config
from sublora.data.corpora.reader import Reader
from sublora.data.tokenizers import Tokenizer
from sublora.system.device import gpu_is_present
from sublora.system.errors import UserError, printable
from sublora.system.files import write_bytes
from sublora.system.pretrained import gguf_files, import_transformers, pretrained_folder
from sublora.tools.statement import ELSEWHERE, NOT_STATED

COMMIT = re.compile("[0-9a-f]{40}")
OPTIONS = {
    "data.corpus.text_field": "--text",
    "data.corpus.unit_field": "--unit",
    "data.corpus.path": "DOCUMENTS",
    "base.path": "--model",
}
"""Settings in the messages of other modules, and the argument of this command that stands for each."""


@dataclasses.dataclass(frozen=True)
class AdaptRequest:
    """The arguments that decide what is computed. Paths are relative to the folder of the results."""

    documents: str
    """A file or a folder."""
    model: str
    """A folder, or a hub id."""
    revision: str | None = None
    text_field: str = "text"
    unit: str | None = None
    """The key by which documents are grouped into units; None: each document is a unit."""
    targets: tuple[str, ...] | None = None
    """Names of the linear maps that are adapted; None: those of peft."""
    budget: int | None = None
    hours: float | None = None
    """Time for the training; None: the default number of steps."""
    steps: int | None = None
    device: Literal["cpu", "cuda"] | None = None
    independence: str | None = None
    """Why the model was fixed without the documents, in words."""

    def __post_init__(self) -> None:
        if self.hours is not None and self.steps is not None:
            raise UserError("--hours and --steps: give one of them")
        if self.hours is not None and not 0.0 < self.hours < 1e5:
            raise UserError(f"--hours {self.hours:g}: expected more than 0 and less than 100,000")
        for name, least in (("budget", 1), ("steps", 10)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise UserError(f"--{name} {value}: expected at least {least}")
        if self.independence is not None and not self.independence.strip():
            raise UserError("--independence: blank; say in words why the model has not read these documents")

    def as_json(self) -> dict[str, Any]:
        """Return the arguments as plain values."""
        return dataclasses.asdict(self) | {"targets": None if self.targets is None else list(self.targets)}

    def difference(self, found: dict[str, Any]) -> str | None:
        """Return in words the first argument that another request has otherwise; None if they agree.

        The statement of independence may be given later: it reaches the certificate alone, not the training.
        """
        own = self.as_json()
        for key in own.keys() - {"independence"}:
            if found.get(key) != own[key]:
                return f"{key.replace('_field', '')}: {printable(found.get(key), 80)} there, {own[key]} here"
        return None


def located(documents: Path, model: str, revision: str | None, out: Path) -> tuple[str, str]:
    """Return (documents, model) as settings name them: relative to `out`, or the model's id on the hub.

    Raises:
        UserError: there are no such documents, results would be read as documents, or the model is neither a folder nor
            an id of the hub.
    """
    root = out.resolve()
    found = documents.resolve()
    if not found.exists():
        raise UserError(f"{documents}: no such file or folder; give the documents' file or folder")
    if found.is_dir() and root.is_relative_to(found):
        raise UserError(f"--out {out}: lies in the folder of the documents, which would then hold results too")
    return os.path.relpath(found, root), _model_path(model, revision, root)


def _model_path(model: str, revision: str | None, root: Path) -> str:
    folder = Path(model)
    if folder.is_dir():
        if revision is not None:
            raise UserError(f"--revision {revision}: {model} is a folder, which has no revisions; leave it out")
        return os.path.relpath(folder.resolve(), root)
    expected = "expected a folder with config.json and safetensors, or a model's name on the Hugging Face hub"
    if folder.exists():
        raise UserError(f"--model {model}: a file; {expected}")
    if folder.is_absolute() or model.startswith(".") or not 1 <= len(folder.parts) <= 2:
        raise UserError(f"--model {model}: no such folder; {expected}")
    return model


def fixed_revision(model: str, revision: str | None, root: Path) -> tuple[Path, str | None]:
    """Return the folder of the model's files, and the commit on the hub that they are of; None for a folder.

    A branch may move between two stages, a commit does not.
    """
    folder = pretrained_folder(model, revision, root)
    if folder == root / model:
        return folder, None
    return folder, folder.name if COMMIT.fullmatch(folder.name) else revision


def in_options(error: UserError) -> UserError:
    """Return the error with the command's arguments in the place of settings, which the user has not written."""
    line = str(error)
    for key, option in OPTIONS.items():
        line = line.replace(key, option)
    return UserError(line)


MIN_TOKENS = 10
"""Shorter documents are left out: the range of a document's loss, and with it the bound, grows as they get shorter."""
FEWEST_DOCUMENTS = 100
SHARES = {"val": (0.05, 20, 500), "test": (0.1, 20, 1000)}
"""Share of the documents in each split that is not trained on, and its smallest and largest size."""
SCORED = {"cpu": 2_000, "cuda": 10_000}
"""Training units that are scored: all of them up to this number, else a draw of it."""
VAL_SCORED = 200
COUNTED = max(int(largest / share) for share, _, largest in SHARES.values())
"""Documents after which counting stops, since no split grows any more."""
CONTEXT = {"cpu": 256, "cuda": 1024}
"""Longest context; the model's own, and that of the longest document, may be shorter."""
SHORTEST_CONTEXT = 16
SEQUENCES = 8
"""Windows of documents per step of the training."""
STEPS = 300
SEED = 42
HEADER = """\
# Written by `sublora adapt`; a key that is not here has its default. Everything was fixed before the training.
# For the whole grid, list more budgets, allocations and seeds under grid, and run snakemake --directory on the folder
# above this one.
"""


@dataclasses.dataclass(frozen=True)
class ModelFacts:
    """What the configuration of a pretrained model says."""

    layers: int
    context: int | None
    """Positions that it was made for; None if it does not say."""
    targets: tuple[str, ...]
    """Names of the linear maps that are adapted."""


@dataclasses.dataclass(frozen=True)
class DocumentFacts:
    """What counting the documents says, in tokens of the model."""

    count: int
    """Distinct documents that are long enough, or COUNTED if there are more."""
    longest: int


def model_facts(folder: Path, targets: tuple[str, ...] | None) -> ModelFacts:
    """Read a model's configuration; `targets`: the maps to adapt, None for those that peft adapts.

    UserError if the folder has none that transformers reads, or peft knows no targets for its type.
    """
    transformers = import_transformers("sublora adapt")
    found = gguf_files(folder)
    if not (folder / "config.json").exists() and len(found) != 1:
        raise UserError(f"{folder}: expected config.json and safetensors, or one .gguf file; give another --model")
    gguf = {"gguf_file": found[0]} if found else {}
    try:
        whole = transformers.AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False, **gguf)
    except (OSError, ValueError, KeyError, TypeError, ImportError) as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"{folder}: transformers cannot read its configuration ({reason}); give another --model"
        ) from None
    text = whole.get_text_config()
    layers = getattr(text, "num_hidden_layers", None)
    if not isinstance(layers, int):
        raise UserError(f"{folder}: config.json has no number of layers; give another --model")
    sizes = (getattr(text, key, None) for key in ("max_position_embeddings", "max_seq_len"))
    context = next((size for size in sizes if isinstance(size, int)), None)
    return ModelFacts(layers, context, targets or peft_targets(str(text.model_type)))


def peft_targets(model_type: str) -> tuple[str, ...]:
    """Return the names of the maps that peft adapts by default in a type of model; UserError if it has no list."""
    by_hand = "name them with --targets, for example --targets q_proj,v_proj"
    try:
        from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as TARGETS
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "peft":
            raise
        raise UserError(f"the maps to adapt are looked up in peft: pip install 'sublora[hf]', or {by_hand}") from None
    names = TARGETS.get(model_type)
    # A text is a regular expression over the whole name, which `lora.targets` does not take.
    if names is None or isinstance(names, str):
        raise UserError(f"peft has no list of maps to adapt for models of type {model_type}; {by_hand}")
    return tuple(names)


def count_documents(reader: Reader, tokenizer: Tokenizer) -> DocumentFacts:
    """Count the distinct documents that are long enough, up to COUNTED; UserError if there are too few."""
    seen: set[bytes] = set()
    count, longest = 0, 0
    for batch in reader.batches():
        fresh = []
        for text in batch.read().documents:
            data = text.encode(errors="replace")
            key = hashlib.blake2b(data, digest_size=16).digest()
            if key not in seen:
                seen.add(key)
                fresh.append(data.decode())
        lengths = [len(tokens) for tokens in tokenizer.encode_batch(fresh)]
        count += sum(length >= MIN_TOKENS for length in lengths)
        longest = max([longest, *lengths])
        if count >= COUNTED:
            return DocumentFacts(COUNTED, longest)
    if count < FEWEST_DOCUMENTS:
        raise UserError(
            f"{reader.where}: {count} distinct documents of at least {MIN_TOKENS} tokens ({len(seen)} of any length), "
            f"expected at least {FEWEST_DOCUMENTS}; give more documents"
        )
    return DocumentFacts(count, longest)


def adapt_settings(
    request: AdaptRequest,
    model: ModelFacts,
    documents: DocumentFacts,
    *,
    revision: str | None,
    n_units: int | None = None,
    budget: int = 1,
    steps: int | None = None,
) -> config.Settings:
    """Return the settings of one run that is named beforehand.

    Args:
        request: what was asked for.
        model: what its configuration says.
        documents: how many there are, and how long.
        revision: the commit of a model on the hub.
        n_units: the number of training units, once they are prepared.
        budget: d, once it is chosen.
        steps: of the training, once they are chosen.
    """
    device = request.device or ("cuda" if gpu_is_present() else "cpu")
    sizes = {split: _within(round(share * documents.count), *ends) for split, (share, *ends) in SHARES.items()}
    context = _context(model, documents, device)
    scores_all = n_units is None or n_units <= SCORED[device]
    scored = "all" if scores_all else SCORED[device]
    values: dict[str, Any] = {
        "grid": {"budgets": [budget], "allocations": ["uniform"], "seeds": [SEED]},
        "data": {
            "name": "documents",
            "corpus": {
                "kind": "folder",
                "path": request.documents,
                "text_field": request.text_field,
                "unit_field": request.unit,
            },
            "unit": "document" if request.unit is None else "source",
            "tokenizer": "base",
            "min_tokens": MIN_TOKENS,
            "val_documents": sizes["val"],
            "test_documents": sizes["test"],
            # Processes would be started anew, which a script that calls `adapt` must be written for.
            "workers": 1,
        },
        "base": {
            "kind": "pretrained",
            "path": request.model,
            "revision": revision,
            "independence": independence(request.independence).model_dump(),
        },
        "model": {"kind": "huggingface", "n_layer": model.layers, "context_length": context},
        "lora": {"targets": list(model.targets)},
        "training": {
            "steps": steps or request.steps or STEPS,
            "tokens_per_step": SEQUENCES * context,
            "micro_batch_sequences": SEQUENCES,
            "learning_rate": 0.02,
            "final_learning_rate": 0.001,
        },
        "compute": {"device": device, "threads": _threads()},
        "message": {"extra_bits": 0.0},
        "scoring": {
            "documents": scored,
            "anchor_k0": 12,
            "base_documents": scored,
            "sliding_window": context,
            "val_documents": min(sizes["val"], VAL_SCORED),
            "test_documents": sizes["test"],
        },
        "bound": {"delta": 0.05, "delta_sample": 0.045, "delta_base": 0.01},
    }
    if not scores_all:
        values["bound"] |= {"delta_base_sample": 0.009, "delta_excess_sample": 0.036}
    return config.parse_settings(values, source="sublora adapt")


def independence(statement: str | None) -> config.Independence:
    """Return the premise on the base as the settings hold it, from one statement in words or from none."""
    if statement is None:
        return config.Independence(training_cutoff=NOT_STATED, document_dates=NOT_STATED, how_checked=NOT_STATED)
    return config.Independence(training_cutoff=ELSEWHERE, document_dates=ELSEWHERE, how_checked=statement)


def write_settings_file(settings: config.Settings, path: Path) -> None:
    """Write a settings file as a person would: only what has no default or another value than that."""
    values = config.given_values(settings)
    text = yaml.safe_dump(values, sort_keys=False, allow_unicode=True, default_flow_style=None, width=116)
    write_bytes(path, (HEADER + text).encode())


def _within(value: int, smallest: int, largest: int) -> int:
    return max(smallest, min(value, largest))


def _context(model: ModelFacts, documents: DocumentFacts, device: str) -> int:
    """Return the context: a power of two that holds the longest document, unless model or device allow less."""
    longest = max(SHORTEST_CONTEXT, 1 << documents.longest.bit_length())
    return min(longest, CONTEXT[device], model.context or longest)


def _threads() -> int:
    """Return the number of cores that this process may use, at most 16."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, 16)
