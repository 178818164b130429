"""Text written by a certified network, one token at a time."""

import dataclasses
import os
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from sublora.models.protocol import LanguageModel
from sublora.runs.decode import CertificateFiles, DecodedRun, decode_message
from sublora.runs.message import read_message
from sublora.system.device import claim_device
from sublora.system.errors import UserError
from sublora.system.streams import generator


@dataclasses.dataclass(frozen=True)
class Choice:
    """How the next token is chosen, given the model's probabilities."""

    temperature: float = 1.0
    """Logits are divided by it: 1 draws from the model itself, 0 takes the most probable token."""
    top_k: int | None = None
    """The number of most probable tokens that can be drawn; None for all."""

    def __post_init__(self) -> None:
        if not 0.0 <= self.temperature < np.inf:
            raise ValueError(f"temperature {self.temperature}: expected a finite number of at least 0")
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"top_k {self.top_k}: expected at least 1")

    def next_token(self, logits_V: NDArray[np.floating], stream: np.random.Generator) -> int:
        """Choose a token id; of equally probable ones the first counts as more probable.

        One number is drawn from the stream, or none at temperature 0.
        """
        if self.temperature == 0.0:
            return int(np.argmax(logits_V))
        order = np.argsort(-logits_V, kind="stable")[: self.top_k]
        scaled = logits_V[order].astype(np.float64) / self.temperature
        cumulative = np.cumsum(np.exp(scaled - scaled[0]))
        place = np.searchsorted(cumulative, stream.random() * cumulative[-1], side="right")
        return int(order[min(int(place), len(order) - 1)])


@torch.no_grad()
def continuation(
    model: LanguageModel,
    prompt_T: NDArray[np.integer],
    *,
    end_id: int,
    most_tokens: int,
    choice: Choice,
    stream: np.random.Generator,
    device: torch.device,
) -> NDArray[np.int64]:
    """Return the token ids that follow the prompt (at least one token, T), without `end_id`, which ends the text.

    The model sees as many of the last tokens as fit into its context. Every token takes a full pass: nothing is cached.
    UserError if it predicts no numbers.
    """
    written = [int(token) for token in prompt_T]
    # Choose token after token until the text ends.
    for _ in range(most_tokens):
        seen_NT = torch.tensor([written[-model.context_length :]], device=device)
        logits_KV = model.logits(model.hidden(seen_NT)[0, -1:])
        logits_V = logits_KV[0].cpu().numpy()
        if not np.isfinite(logits_V).all():
            raise UserError("the network's logits are no numbers: its weights are too large; take another certificate")
        token = choice.next_token(logits_V, stream)
        if token == end_id:
            break
        written.append(token)
    return np.array(written[len(prompt_T) :], dtype=np.int64)


@dataclasses.dataclass(frozen=True)
class Writing:
    """The text to be written."""

    prompt: str
    """The beginning of a document; if empty, the network begins it."""
    most_tokens: int
    choice: Choice
    seed: int

    @classmethod
    def of(cls, prompt: str, *, most_tokens: int, temperature: float, top_k: int | None, seed: int) -> "Writing":
        """Check and collect the options. UserError for a temperature or a top-k out of its range."""
        try:
            return cls(prompt, most_tokens, Choice(temperature, top_k), seed)
        except ValueError as error:
            raise UserError(f"--{str(error).replace('_', '-')}") from None


def generate_text(files: CertificateFiles, writing: Writing, *, device: Literal["cpu", "cuda"] = "cpu") -> str:
    """Return the prompt and the decoded network's continuation, up to the end of the document.

    The network writes by its own probabilities, without the guessing that is mixed in for a bound. The same seed gives
    the same text on one machine. UserError as for `decode_certificate`, and for a prompt that is not valid text.
    """
    message = read_message(files.certificate)
    threads = min(message.settings.compute.threads, os.cpu_count() or 1)
    changes = {"device": device, "gpus_per_training": 1, "threads": threads}
    compute = message.settings.compute.model_copy(update=changes)
    with claim_device(compute) as claimed:
        return write(decode_message(message, files, claimed), writing)


def write(decoded: DecodedRun, writing: Writing) -> str:
    """Do the work of `generate_text` with a network that has been decoded."""
    tokenizer = decoded.tokenizer
    try:
        (prompt_T,) = tokenizer.encode_batch([writing.prompt])
    except UnicodeEncodeError:
        raise UserError("--prompt: not valid UTF-8") from None
    # A document starts from the end-of-text token, as in training and scoring.
    written_T = continuation(
        decoded.model,
        np.concatenate([[tokenizer.eot_id], prompt_T.astype(np.int64)]),
        end_id=tokenizer.eot_id,
        most_tokens=writing.most_tokens,
        choice=writing.choice,
        stream=generator(writing.seed, "generate"),
        device=decoded.device,
    )
    return tokenizer.decode(np.concatenate([prompt_T, written_T]))
