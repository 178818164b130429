"""Generalization bounds for neural networks through compression.

The public names, each imported from its module when it is first asked for, so that importing this package is light:

    certify                   losses and bits to bounds, or two models compared (numpy alone)
    Certified, CertifiedComparison, CertifiedExcess   what it returns
    anchored_losses           losses of a language model mixed with its base, for certify
    adapt                     from documents and a pretrained model to a certificate
    wrap, Wrapped             any torch.nn.Module with d trained numbers
    message_bits              the price of the message, differentiable
    encode, decode, EncodedMessage   the trained module as bytes, and back
    AnnealCallback            annealing inside transformers' Trainer

What needs torch is in the extra `train`; the callback and `adapt` are in `hf`.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sublora.bounds.anchor import anchored_losses as anchored_losses
    from sublora.bounds.certify import Certified as Certified
    from sublora.bounds.certify import certify as certify
    from sublora.bounds.certify_pairs import CertifiedComparison as CertifiedComparison
    from sublora.bounds.certify_pairs import CertifiedExcess as CertifiedExcess
    from sublora.tools.adapt.adapt import adapt as adapt
    from sublora.wrapping.message import EncodedMessage as EncodedMessage
    from sublora.wrapping.message import decode as decode
    from sublora.wrapping.message import encode as encode
    from sublora.wrapping.message import message_bits as message_bits
    from sublora.wrapping.module import Wrapped as Wrapped
    from sublora.wrapping.module import wrap as wrap
    from sublora.wrapping.trainer import AnnealCallback as AnnealCallback

__version__ = "0.1.0"

_EXPORTS = {
    "AnnealCallback": "sublora.wrapping.trainer",
    "Certified": "sublora.bounds.certify",
    "CertifiedComparison": "sublora.bounds.certify_pairs",
    "CertifiedExcess": "sublora.bounds.certify_pairs",
    "EncodedMessage": "sublora.wrapping.message",
    "Wrapped": "sublora.wrapping.module",
    "adapt": "sublora.tools.adapt.adapt",
    "anchored_losses": "sublora.bounds.anchor",
    "certify": "sublora.bounds.certify",
    "decode": "sublora.wrapping.message",
    "encode": "sublora.wrapping.message",
    "message_bits": "sublora.wrapping.message",
    "wrap": "sublora.wrapping.module",
}
"""Public name to the module that defines it."""


def __getattr__(name: str) -> object:
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        module = importlib.import_module(_EXPORTS[name])
    except ModuleNotFoundError as error:
        from sublora.system.errors import missing_extra

        if (line := missing_extra(error, f"sublora.{name}")) is None:
            raise
        raise ImportError(line, name=error.name) from None
    return getattr(module, name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_EXPORTS])
