"""Is a line Python or English? LoRA on an encoder of transformers, with a bound on the error of new lines.

A random BERT of two layers is frozen; 100 numbers move LoRA on its queries, values and classifier. The bound on the
error needs one 0 or 1 per line; the bound on the cross-entropy one bounded loss per line.

    python examples/encoder.py
"""

import copy
import math

import numpy as np
import torch
from report import Result, result, show
from texts import BYTES, code, comments
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import BertConfig, BertForSequenceClassification

import sublora
from sublora.bounds.smoothing import TokenSmoothing

LINES, HELD_OUT = 3000, 1000
STEPS, BATCH = 400, 64
SMOOTHING = TokenSmoothing(2.0**-5)
"""Fixed beforehand: (1 - a) p + a / 2 over the two classes."""


def network() -> nn.Module:
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = BertConfig(vocab_size=256, max_position_embeddings=BYTES, num_labels=2, **sizes)
    return BertForSequenceClassification(config).eval()


def lines() -> tuple[Tensor, Tensor]:
    """Bytes (lines x BYTES), and 1 for Python, 0 for English, as many of each."""
    parts = comments()[:LINES], code()[:LINES]
    rows = np.concatenate(parts)
    labels = np.repeat([0, 1], [len(part) for part in parts])
    order = np.random.default_rng(1).permutation(len(labels))
    return torch.from_numpy(rows[order]), torch.from_numpy(labels[order])


def train(model: sublora.Wrapped, x: Tensor, y: Tensor) -> None:
    groups = [{"params": [model.subspace.subspace_params], "lr": 0.1}, {"params": [model.log_step], "lr": 0.01}]
    optimizer = torch.optim.Adam(groups)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    stream = torch.Generator().manual_seed(0)
    for step in range(STEPS):
        model.anneal(step / STEPS)
        rows = torch.randint(len(y), (BATCH,), generator=stream)
        loss = cross_entropy(model(input_ids=x[rows]).logits, y[rows])
        loss = loss + 2.0 * math.log(2) / len(y) * sublora.message_bits(model)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()


def class_probabilities(model: nn.Module, x: Tensor) -> np.ndarray:
    """(lines x 2)."""
    with torch.no_grad():
        logits = torch.cat([model(input_ids=batch).logits for batch in x.split(256)])
    return logits.double().softmax(dim=1).numpy()


def losses_bits(p: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Cross-entropy of each line's label under the smoothed predictor, in bits."""
    return -np.log2((1.0 - SMOOTHING.a) * np.take_along_axis(p, labels[:, None], axis=1)[:, 0] + SMOOTHING.a / 2)


def main() -> list[Result]:
    x, y = lines()
    base = network()
    receivers = copy.deepcopy(base)
    model = sublora.wrap(base, ["query", "value", "classifier"], budget=100, allocation="fixed-0.5", seed=0)
    train(model, x[HELD_OUT:], y[HELD_OUT:])
    message = sublora.encode(model)

    predictor, _ = sublora.decode(message.data, receivers)
    p, labels = class_probabilities(predictor, x), y.numpy()
    errors, bits = (p.argmax(axis=1) != labels).astype(float), losses_bits(p, labels)
    lower, upper = SMOOTHING.loss_range_bits(2, min_targets=1)
    split = (slice(HELD_OUT, None), slice(0, HELD_OUT))
    return [
        result("encoder, error", message, *(errors[part] for part in split), lower=0.0, upper=1.0, guessing=0.5),
        result("encoder, bits", message, *(bits[part] for part in split), lower=lower, upper=upper, guessing=1.0),
    ]


if __name__ == "__main__":
    show(main())
