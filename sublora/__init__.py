"""Generalization bounds for neural networks through compression.

The public names, each imported from its module when it is first asked for, so that importing this package is light:

    certify, Certified        losses and bits to bounds (numpy alone)
    wrap, Wrapped             any torch.nn.Module with d trained numbers
    message_bits              the price of the message, differentiable
    encode, decode, EncodedMessage   the trained module as bytes, and back
    AnnealCallback            annealing inside transformers' Trainer

What needs torch is in the extra `train`, the callback in `hf`.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sublora.bounds.certify import Certified as Certified
    from sublora.bounds.certify import certify as certify
    from sublora.models.wrap import Wrapped as Wrapped
    from sublora.models.wrap import wrap as wrap
    from sublora.runs.wrapped import EncodedMessage as EncodedMessage
    from sublora.runs.wrapped import decode as decode
    from sublora.runs.wrapped import encode as encode
    from sublora.training.trainer_callback import AnnealCallback as AnnealCallback
    from sublora.training.wrapped import message_bits as message_bits

__version__ = "0.1.0"

_EXPORTS = {
    "AnnealCallback": "sublora.training.trainer_callback",
    "Certified": "sublora.bounds.certify",
    "EncodedMessage": "sublora.runs.wrapped",
    "Wrapped": "sublora.models.wrap",
    "certify": "sublora.bounds.certify",
    "decode": "sublora.runs.wrapped",
    "encode": "sublora.runs.wrapped",
    "message_bits": "sublora.training.wrapped",
    "wrap": "sublora.models.wrap",
}
"""Public name to the module that defines it."""


def __getattr__(name: str) -> object:
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        module = importlib.import_module(_EXPORTS[name])
    except ModuleNotFoundError as error:
        from sublora.extras import missing_extra

        if (line := missing_extra(error, f"sublora.{name}")) is None:
            raise
        raise ImportError(line, name=error.name) from None
    return getattr(module, name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_EXPORTS])
