"""The canonical decoder header: one spelling for one predictor, by which the documents to score are drawn.

A prover who could name the same predictor in several ways would have as many draws to choose from. So nothing stands
here by the name that settings give it: arrays stand as their hashes, w and its gates as the numbers that were decoded,
the rule of scoring as far as the documents see it. Does not import torch.
"""

import hashlib
from typing import Any

import numpy as np

from sublora import config
from sublora.runs.message import Message


def decoder_header(message: Message) -> dict[str, Any]:
    """Return what the decoded predictor and its losses on these documents depend on, as plain JSON values.

    Two messages with equal headers stand for the same predictor; whether it was named by another seed, ratio, quantizer
    or pattern of targets, or beside other candidates of the smoothing, makes no difference.
    """
    header = message.header
    scale, w_sha256 = _weights(message)
    return {
        # The frozen network, theta at w = 0, and the map from w to theta.
        "base": header.seen_base_sha256,
        "origin": header.lora_init_sha256,
        "projection": header.projection_sha256,
        # How theta enters the network.
        "adapted": {"space": header.space_sha256, "scale": scale, "subtracts_origin": _subtracts_origin(message)},
        "heads": message.settings.model.n_head if isinstance(message.settings.model, config.Model) else None,
        # What the message chose.
        "w": w_sha256,
        "gates": list(message.contents.gates),
        "predictor": _predictor(message),
        # How documents are read.
        "windows": _windows(message),
        "numerics": header.numerics_versions["score"],
    }


def _weights(message: Message) -> tuple[float | None, str]:
    """Return (scale of the adapters, sha256 of w), None for a scale that nothing depends on.

    Where no coordinate reaches an A, theta enters the network as scale times w: twice the scale and half the step are
    one predictor, so w stands multiplied by the scale.
    """
    settings, w_d = message.settings, message.contents.weights.values().astype(np.float64)
    scale: float | None = None
    if settings.subspace.adapt == "lora":
        scale = settings.lora.alpha / settings.lora.rank
        if message.gates and all(k == gate.size for k, gate in zip(message.contents.gates, message.gates, strict=True)):
            w_d, scale = w_d * scale, None
    # Adding 0.0 gives zero one sign.
    return scale, hashlib.sha256((w_d + 0.0).astype("<f8").tobytes()).hexdigest()


def _subtracts_origin(message: Message) -> bool:
    return message.settings.subspace.adapt == "lora" and message.settings.lora.init == "both_random"


def _predictor(message: Message) -> str | dict[str, int]:
    """Return the chosen smoothing, with an anchor its k and k0."""
    if message.mixture is None:
        return message.smoothing.name
    return {"k": message.mixture.k, "k0": message.mixture.k0}


def _windows(message: Message) -> dict[str, int] | None:
    """Return context and stride of the window; None where every train document fits into one."""
    context_length = message.settings.model.context_length
    if message.header.longest_targets <= context_length:
        return None
    return {"context_length": context_length, "sliding_window": message.settings.scoring.sliding_window}
