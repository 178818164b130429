"""Text written by a certified network."""

import dataclasses
import os
from typing import Literal

import numpy as np

from sublora.models.generation import Choice, continuation
from sublora.runs.decode import CertificateFiles, DecodedRun, decode_message
from sublora.runs.message import read_message
from sublora.system.device import claim_device
from sublora.system.errors import UserError
from sublora.system.streams import generator


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
