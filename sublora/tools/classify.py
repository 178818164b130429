"""`sublora classify`: adapt a two-class transformer to local examples, encode it as a message, and certify it.

This is the second experiment of Lotfi et al., ICML 2024 (QQP and CoLA). The loss is the error, 0 or 1, or the
cross-entropy of a smoothed predictor, in bits. Both bounds use all n training examples and hold for new examples.

Shape legend: E examples, A candidates of the smoothing, L tokens.
"""

import dataclasses
import functools
import math
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from sublora.bounds.certify import Certified, certify
from sublora.bounds.smoothing import TokenSmoothing
from sublora.config.classify import ClassifyAdapters, ClassifySettings
from sublora.data.classification import Example, labels_of, read_examples, split_examples
from sublora.system.errors import UserError, note
from sublora.system.files import atomic_path, write_bytes, write_json
from sublora.system.pretrained import LOCAL, check_loaded, check_model_folder
from sublora.system.streams import generator, stream_key
from sublora.wrapping.message import EncodedMessage, decode, encode, message_bits
from sublora.wrapping.module import Wrapped, wrap

MESSAGE_NAME, LOSSES_NAME, BOUNDS_NAME = "message.bin", "losses.npz", "bounds.json"
SCORING_BATCH = 64
CLASSES = 2
UNREADABLE = (OSError, ValueError, KeyError, RuntimeError, TypeError)
"""What transformers raises for a folder with other contents; its errors have no type of their own."""


@dataclasses.dataclass(frozen=True)
class Tokens:
    """Examples as a network reads them, as arguments that are the same for every batch."""

    columns: dict[str, Tensor]
    """input_ids, attention_mask and whatever else the tokenizer returns, int64 (E x L)."""
    labels: Tensor
    """The labels, int64 (E)."""

    def rows(self, rows: Tensor | slice) -> dict[str, Tensor]:
        """Return the columns of some examples."""
        return {name: column[rows] for name, column in self.columns.items()}


def classify(settings: ClassifySettings, *, root: Path, out: Path, message: Path | None = None) -> Path:
    """Train, encode, decode, score and bound; write message.bin, losses.npz and bounds.json into `out`.

    With a `message` nothing is trained: its predictor is rebuilt and scored on the examples, as a reviewer would do it.
    Returns the path of bounds.json. UserError for files that are missing or do not fit.
    """
    # Read and split the examples, and tokenize all of them alike.
    torch.set_num_threads(settings.training.threads)
    path = root / settings.data.path
    examples = read_examples(path, settings.data.task, broken_rows=settings.data.broken_rows)
    if examples.broken_rows:
        note(f"{path}: {examples.broken_rows} broken rows are left out (data.broken_rows: skip)")
    test, training = split_examples(
        examples.distinct, test_examples=settings.data.test_examples, seed=settings.data.shuffle_seed, path=path
    )
    tokens = tokenize(root / settings.model.path, training + test, settings.data.max_tokens)
    build = functools.partial(build_network, settings, root, tokens)
    # Train a message, or read one.
    if message is None:
        data = train_classifier(settings, _wrapped(build(), settings.adapters), tokens, len(training)).data
    else:
        data = _read(message)
    # Score the decoded predictor, never the trained module, and bound its losses.
    predictor, read = decode(data, _wrapped(build(), settings.adapters))
    if read.choices != len(settings.bound.smoothing):
        raise UserError(f"{message}: chose among {read.choices} smoothings, bound.smoothing lists others")
    probabilities = class_probabilities(predictor, tokens)
    losses = Losses.of(probabilities, tokens.labels.numpy(), len(training), settings.bound.smoothing[read.choice])
    record = bounds_record(losses, read, settings, labels_of(training))
    if examples.broken_rows:
        record["broken_rows_left_out"] = examples.broken_rows
    write_bytes(out / MESSAGE_NAME, data)
    with atomic_path(out / LOSSES_NAME) as temporary, open(temporary, "wb") as handle:
        np.savez(handle, **dataclasses.asdict(losses))
    write_json(out / BOUNDS_NAME, record)
    print_record(record)
    return out / BOUNDS_NAME


def _read(message: Path) -> bytes:
    try:
        return message.read_bytes()
    except FileNotFoundError:
        raise UserError(f"{message}: no such message; without --message one is trained") from None


def tokenize(folder: Path, examples: list[Example], max_tokens: int) -> Tokens:
    """Tokenize all examples with the tokenizer in the model's folder.

    They are padded on the right to one length of at most `max_tokens`. UserError if there is no tokenizer, or if it is
    code in the folder.
    """
    from transformers import AutoTokenizer

    check_model_folder(folder)
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(folder), **LOCAL)
    except UNREADABLE as error:
        raise UserError(f"{folder}: no tokenizer of transformers ({_first_line(error)})") from None
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.convert_ids_to_tokens(0)
    # Columns of first and, for pairs, second texts.
    columns = zip(*(example.texts for example in examples), strict=True)
    encoded = tokenizer(
        *map(list, columns),
        truncation=True,
        max_length=max_tokens,
        padding=True,
        padding_side="right",
        return_tensors="pt",
    )
    return Tokens(dict(encoded), torch.from_numpy(labels_of(examples)))


def build_network(settings: ClassifySettings, root: Path, tokens: Tokens) -> nn.Module:
    """Return the frozen network in evaluation mode, the same in every call: new weights are drawn from the seed.

    UserError if the folder holds no classifier, lacks tensors other than those of the head, or does not fit the tokens.
    """
    from transformers import AutoConfig, AutoModelForSequenceClassification
    from transformers.utils import logging

    logging.set_verbosity_error()  # it would report that the head is new
    logging.disable_progress_bar()
    folder = root / settings.model.path
    torch.manual_seed(stream_key(settings.adapters.seed, "classifier weights") % 2**63)
    try:
        config = AutoConfig.from_pretrained(str(folder), num_labels=CLASSES, **LOCAL)
        if config.pad_token_id is None:
            config.pad_token_id = config.eos_token_id if config.eos_token_id is not None else 0
        # The head is new in either case: its weights come from the seed above.
        if settings.model.weights == "random":
            network = AutoModelForSequenceClassification.from_config(config)
        else:
            network, info = AutoModelForSequenceClassification.from_pretrained(
                str(folder), config=config, use_safetensors=True, output_loading_info=True, **LOCAL
            )
            check_loaded(info, folder, new=functools.partial(_is_new, network.base_model_prefix))
    except UNREADABLE as error:
        raise UserError(f"{folder}: no classifier of transformers ({_first_line(error)})") from None
    network = network.float().eval()
    _check_fit(network, tokens, folder)
    return network


def _is_new(prefix: str, name: str) -> bool:
    """Return whether a tensor belongs to the head: outside the encoder, or in a pooler, which language models lack."""
    return not name.startswith(f"{prefix}.") or "pooler" in name.split(".")


@torch.no_grad()
def _check_fit(network: nn.Module, tokens: Tokens, folder: Path) -> None:
    """Refuse a network that cannot read the tokens: its vocabulary or its context is too small."""
    known = cast(Any, network).get_input_embeddings().weight.shape[0]
    largest = int(tokens.columns["input_ids"].max())
    if largest >= known:
        raise UserError(f"{folder}: its tokenizer has token {largest}, its network knows {known}; the two do not fit")
    try:
        network(**tokens.rows(slice(1)))
    except (IndexError, RuntimeError, TypeError) as error:
        length = tokens.columns["input_ids"].shape[1]
        raise UserError(
            f"{folder}: the network cannot read inputs of {length} tokens ({_first_line(error)}); lower data.max_tokens"
        ) from None


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]  # messages of libraries have many lines


def _wrapped(network: nn.Module, adapters: ClassifyAdapters) -> Wrapped:
    try:
        return wrap(network, **adapters.model_dump())
    except ValueError as error:
        raise UserError(f"adapters: {error}") from None


def train_classifier(settings: ClassifySettings, model: Wrapped, tokens: Tokens, n: int) -> EncodedMessage:
    """Adapt to the first n examples and encode; the message names the smoothing with their smallest cross-entropy."""
    # Adam on w and the gates, with another rate for the step.
    training, seed = settings.training, settings.adapters.seed
    w, gates = model.subspace.subspace_params, list(model.subspace.gating_params.values())
    optimizer = torch.optim.Adam(
        [
            {"params": [w, *gates], "lr": training.learning_rate},
            {"params": [model.log_step], "lr": training.step_learning_rate},
        ]
    )
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, training.steps)
    model.eval()  # no dropout, since few numbers are trained
    # Minimize the cross-entropy plus the price of the message.
    for step in range(training.steps):
        model.anneal(step / training.steps, soft_until=training.round_from, round_from=training.round_from)
        rows = torch.from_numpy(generator(seed, "batch", step).integers(0, n, training.batch_examples))
        loss = nn.functional.cross_entropy(model(**tokens.rows(rows)).logits, tokens.labels[rows])
        if not bool(torch.isfinite(loss)):
            raise UserError(f"the loss of step {step} is not finite; lower training.learning_rate")
        price = training.price * math.log(2) / n
        optimizer.zero_grad()
        (loss + price * message_bits(model)).backward()
        optimizer.step()
        schedule.step()
    # Choose the smoothing on the training examples; the message pays for the choice.
    labels = tokens.labels[:n].numpy()
    probabilities = class_probabilities(model, Tokens(tokens.rows(slice(n)), tokens.labels[:n]))
    means = [cross_entropy_bits(probabilities, labels, a).mean() for a in settings.bound.smoothing]
    return encode(model, choice=int(np.argmin(means)), choices=len(means), extra_bits=settings.bound.extra_bits)


@torch.no_grad()
def class_probabilities(model: nn.Module, tokens: Tokens) -> np.ndarray:
    """Return the probabilities of both classes, float64 (E x 2)."""
    size = len(tokens.labels)
    batches = [tokens.rows(slice(start, start + SCORING_BATCH)) for start in range(0, size, SCORING_BATCH)]
    return torch.cat([model(**batch).logits.double().softmax(dim=-1) for batch in batches]).numpy()


def cross_entropy_bits(probabilities: np.ndarray, labels: np.ndarray, a: float) -> np.ndarray:
    """Return -log2((1 - a) p + a / 2) of each example's label, float64 (E)."""
    p = np.take_along_axis(probabilities, labels[:, None], axis=1)[:, 0]
    return -np.log2((1.0 - a) * p + a / CLASSES)


@dataclasses.dataclass(frozen=True)
class Losses:
    """Per-example losses of the decoded predictor: errors (0 or 1) and cross-entropies in bits."""

    errors: np.ndarray
    bits: np.ndarray
    test_errors: np.ndarray
    test_bits: np.ndarray

    @classmethod
    def of(cls, probabilities: np.ndarray, labels: np.ndarray, n: int, a: float) -> "Losses":
        """Return the losses of the first n examples, for training, and of the others, for test."""
        errors = (probabilities.argmax(axis=1) != labels).astype(np.float64)
        bits = cross_entropy_bits(probabilities, labels, a)
        return cls(errors[:n], bits[:n], errors[n:], bits[n:])


def bounds_record(
    losses: Losses, message: EncodedMessage, settings: ClassifySettings, training_labels: np.ndarray
) -> dict[str, Any]:
    """Return the contents of bounds.json: for each loss its bound, a held-out bound and a trivial one."""
    a = settings.bound.smoothing[message.choice]
    lower, upper = TokenSmoothing(a).loss_range_bits(CLASSES, 1)
    delta = settings.bound.delta

    def bound(values: np.ndarray, code_bits: float, low: float, high: float) -> Certified:
        return certify(values, code_bits=code_bits, n=len(values), lower=low, upper=high, delta=delta)

    # The majority class, and guessing under the same smoothing.
    share = training_labels.mean()
    majority_errors = (training_labels != int(share > 0.5)).astype(np.float64)
    guess = cross_entropy_bits(np.full((1, CLASSES), 0.5), np.zeros(1, dtype=np.int64), a)[0]
    return {
        "n": len(losses.errors),
        "test_examples": len(losses.test_errors),
        "delta": delta,
        "code_bits": message.bits,
        "items": message.items,
        "smoothing": a,
        "error": bound(losses.errors, message.bits, 0.0, 1.0).as_json(),
        "error_held_out": bound(losses.test_errors, 0.0, 0.0, 1.0).as_json(),
        # Naming the majority class costs one bit.
        "error_majority_class": bound(majority_errors, 1.0, 0.0, 1.0).as_json(),
        "cross_entropy_bits": bound(losses.bits, message.bits, lower, upper).as_json(),
        "cross_entropy_bits_held_out": bound(losses.test_bits, 0.0, lower, upper).as_json(),
        "cross_entropy_bits_of_guessing": float(guess),
    }


def print_record(record: dict[str, Any]) -> None:
    """Print four columns per loss: mean of the n examples and its bound, held-out mean and its bound."""
    table = Table("loss", "train", "bound", "held out", "held-out bound", "knows nothing")
    for name, trivial in (
        ("error", record["error_majority_class"]["value"]),
        ("cross_entropy_bits", record["cross_entropy_bits_of_guessing"]),
    ):
        own, apart = record[name], record[f"{name}_held_out"]
        numbers = (own["mean_loss"], own["value"], apart["mean_loss"], apart["value"], trivial)
        table.add_row(name, *(f"{number:.4f}" for number in numbers))
    console = Console(width=100)
    console.print(table)
    console.print(
        f"n = {record['n']:,}, C = {record['code_bits']:,.0f} bits; each bound holds with probability "
        f"{1 - record['delta']:g}. 'Knows nothing': the bound of the majority class, and guessing",
        soft_wrap=True,
    )
