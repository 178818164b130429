"""Reads of parameters as attributes of their module, each passed through a function."""

import types
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

Read = Callable[[Tensor], Tensor]
"""Returns, for the parameter's value, what the reader gets instead."""
READS = "_sublora_reads"
"""The attribute of a module that holds its functions by the parameters' names."""
_subclasses: dict[tuple[type[nn.Module], str], type[nn.Module]] = {}


class ParameterReads:
    """Functions through which chosen parameters are read until `remove`.

    `layer.weight` then gives what the function returns, in the layer's own code as in that of its owner. The parameters
    stay registered, so state dicts, `parameters()` and moves between devices see them as before.
    """

    def __init__(self) -> None:
        self._before: list[tuple[nn.Module, type[nn.Module], Any]] = []

    def attach(self, layer: nn.Module, name: str, read: Read) -> None:
        """Pass reads of a parameter of `layer` itself through `read`, after functions that were attached earlier."""
        known: dict[str, Read] = layer.__dict__.get(READS, {})
        self._before.append((layer, type(layer), known or None))
        earlier = known.get(name)
        layer.__dict__[READS] = known | {name: read if earlier is None else lambda value: read(earlier(value))}
        if earlier is None:
            layer.__class__ = _with_read(type(layer), name)

    def remove(self) -> None:
        """Restore the modules as they were."""
        while self._before:
            layer, kind, known = self._before.pop()
            layer.__class__ = kind
            if known is None:
                del layer.__dict__[READS]
            else:
                layer.__dict__[READS] = known


def _with_read(kind: type[nn.Module], name: str) -> type[nn.Module]:
    """Return a subclass that looks the same and reads one parameter through the module's function for it."""
    if (kind, name) in _subclasses:
        return _subclasses[kind, name]

    def read(layer: nn.Module) -> Tensor:
        value = layer._parameters[name]
        assert value is not None
        return layer.__dict__[READS][name](value)

    contents = {name: property(read), "__module__": kind.__module__, "__qualname__": kind.__qualname__}
    _subclasses[kind, name] = types.new_class(kind.__name__, (kind,), exec_body=lambda body: body.update(contents))
    return _subclasses[kind, name]
