"""Text that a language model writes, one token at a time.

Shape legend: T tokens, V vocabulary.
"""

import dataclasses

import numpy as np
import torch
from numpy.typing import NDArray

from sublora.models.protocol import LanguageModel
from sublora.system.errors import UserError


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
