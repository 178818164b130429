"""How often will a small classifier be wrong on new handwritten digits? A bound on the error from 1,397 images.

A random network of 26,122 weights is frozen, and 150 numbers move all of them (rank=None). Some fifty settings (width,
d, price, learning rates) were tried by hand with these bounds in view, which is a choice that the data made: log2(50)
bits are charged for it.

    python examples/digits.py
"""

import math

import numpy as np
import torch
from report import Result, result, show
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import sublora

HELD_OUT, VALIDATION = 250, 150
SETTINGS_TRIED = 50
STEPS, BATCH = 2000, 512
PRICE = 4.0
"""On a bit of the message, in units of ln(2) / n: the error, unlike cross-entropy, suffers little from few bits."""


def images() -> list[tuple[Tensor, Tensor]]:
    """(pixels within [-1, 1], labels) of the parts held out, validation, training."""
    pixels, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(labels))
    parts = np.split(order, [HELD_OUT, HELD_OUT + VALIDATION])
    return [(torch.tensor(pixels[i] / 8.0 - 1.0, dtype=torch.float32), torch.tensor(labels[i])) for i in parts]


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 10))


def train(model: sublora.Wrapped, x: Tensor, y: Tensor) -> None:
    """Adam on cross-entropy and the price of the message; w is rounded from three tenths of the steps on."""
    groups = [{"params": [model.subspace.subspace_params], "lr": 0.1}, {"params": [model.log_step], "lr": 0.01}]
    optimizer = torch.optim.Adam(groups)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    stream = torch.Generator().manual_seed(0)
    for step in range(STEPS):
        model.anneal(step / STEPS, round_from=0.3, relative_step=1.5)
        rows = torch.randint(len(y), (BATCH,), generator=stream)
        price = PRICE * math.log(2) / len(y) * sublora.message_bits(model)
        loss = cross_entropy(model(x[rows]), y[rows]) + price
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()


def errors(model: nn.Module, x: Tensor, y: Tensor) -> np.ndarray:
    """0 or 1 for each image."""
    with torch.no_grad():
        return (model(x).argmax(dim=1) != y).double().numpy()


def main() -> Result:
    held_out, validation, training = images()
    model = sublora.wrap(network(), "*", budget=150, rank=None, seed=0)
    train(model, *training)
    message = sublora.encode(model, extra_bits=math.log2(SETTINGS_TRIED))
    # What is scored is what a stranger gets out of the bytes.
    predictor, _ = sublora.decode(message.data, network())
    print(f"validation error {errors(predictor, *validation).mean():.3f}")
    rows = errors(predictor, *training), errors(predictor, *held_out)
    return result("digits, error", message, *rows, lower=0.0, upper=1.0, guessing=0.9)


if __name__ == "__main__":
    show([main()])
