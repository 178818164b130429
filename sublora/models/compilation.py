"""torch.compile, used where the settings ask for it and never imported otherwise (it takes seconds)."""

import functools
from collections.abc import Callable
from typing import Any


def compiled(function: Callable[..., Any], use_compiler: bool) -> Callable[..., Any]:
    """The function itself, or its compiled form: one for the whole process."""
    return _compiled(function) if use_compiler else function


@functools.cache
def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    import torch
    import torch._dynamo

    # Training, evaluation and scoring differ in gradients, dropout and shapes, and each combination is compiled once.
    # Beyond the limit PyTorch would go on uncompiled.
    torch._dynamo.config.recompile_limit = 64
    return torch.compile(function)
