"""The frozen module of `wrap`: its identity, and what a forward pass of it must not do.

A message describes the predictor only if the module computes the same function at every call, and training finds it
only if the gradient in w is the true one. Both are checked in the passes themselves, before a training is spent.
"""

import inspect
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx
from torch.autograd.graph import disable_saved_tensors_hooks

from sublora.system.digests import tensors_sha256

HARMLESS = "torch.autograd.graph"
"""The module of torch's own hooks on saved tensors (save_on_cpu), which store elsewhere and recompute nothing."""


def base_sha256(module: nn.Module) -> str:
    """Return the digest of names, types, shapes and values of all tensors in the module's state dict."""
    return tensors_sha256((name, value) for name, value in module.state_dict().items() if isinstance(value, Tensor))


def check_values(module: nn.Module) -> None:
    """Raise ValueError if a parameter or buffer has no values yet, so that nothing could identify the module."""
    for name, value in (*module.named_parameters(), *module.named_buffers()):
        if nn.parameter.is_lazy(value):
            raise ValueError(f"'{name}' has no shape yet: run one forward pass of the module before it is wrapped")
        if value.is_meta:
            raise ValueError(f"'{name}' has no values (device meta): load the module's weights before it is wrapped")


class PassWatch:
    """Watches one forward pass of a frozen module for what would make training or message wrong."""

    def __init__(self, module: nn.Module, sha256: str, *, check_state: bool) -> None:
        """Begin before the pass.

        `check_state`: whether the module's tensors, whose digest was `sha256`, are compared before and after the pass.
        ValueError if the module says that it uses gradient checkpointing.
        """
        self._module, self._sha256 = module, sha256
        self._gradients = torch.is_grad_enabled()
        if self._gradients and any(getattr(m, "gradient_checkpointing", False) for m in module.modules()):
            raise ValueError("the module uses gradient checkpointing, which would recompute without w; turn it off")
        self._saving = _saving_hooks() if self._gradients else None
        self._with_gradients: set[str] = set()
        self._without_gradients: set[str] = set()
        self._check_state = check_state
        self._lent: list[tuple[str, Tensor]] = []
        if check_state:
            self._buffers = {name: value.clone() for name, value in _saved_buffers(module)}
            self._versions = _versions(module)

    def saw(self, name: str, lent: Tensor | None = None) -> None:
        """Note that something which w moves is used now; `lent` is a moved weight that its reader should not change.

        ValueError if what the backward pass needs is not stored but recomputed, which would happen without w.
        """
        if lent is not None and self._check_state:
            self._lent.append((name, lent))
        if not self._gradients:
            return
        if torch.is_grad_enabled():
            self._with_gradients.add(name)
        elif _in_own_function():
            self._without_gradients.add(name)
        saving = _saving_hooks()
        if saving not in (None, self._saving) and not _harmless(saving):
            raise ValueError(
                f"the module uses gradient checkpointing around '{name}', which would recompute without w; turn it off"
            )

    def finish(self) -> None:
        """Check the pass once it is over.

        ValueError if something that w moves was only used inside an autograd.Function, which computes its gradient by
        itself, or if the module changed its own tensors; changed buffers get their values back.
        """
        if lost := sorted(self._without_gradients - self._with_gradients):
            raise ValueError(
                f"{_some(lost)} ran without gradients, so the gradient in w would be wrong. Turn off what did this "
                "(gradient checkpointing with use_reentrant=True, or a backward pass of the module's own), choose "
                "other targets, or call the wrapped module under torch.no_grad() if only outputs are needed"
            )
        if self._check_state and (changed := self._changed()):
            mode = "training" if self._module.training else "evaluation"
            raise ValueError(
                f"a forward pass in {mode} mode changes {_some(changed)} of the module, and a message cannot describe "
                "that; turn the update off" + ", or train in evaluation mode (.eval())" * self._module.training
            )

    @torch.no_grad()
    def _changed(self) -> list[str]:
        """Return the names of tensors that the pass changed, after giving buffers their values back."""
        changed = [name for name, value in self._lent if value._version > 0]
        buffers = dict(_saved_buffers(self._module))
        for name in buffers.keys() ^ self._buffers.keys():
            changed.append(name)
        for name in buffers.keys() & self._buffers.keys():
            now, before = buffers[name], self._buffers[name]
            if not _same(now, before):
                changed.append(name)
                if now.shape == before.shape:
                    now.copy_(before)
        # A new version may hold the old values; the digest tells.
        versions = _versions(self._module)
        written = [name for name in versions if versions[name] != self._versions.get(name)]
        if written and base_sha256(self._module) != self._sha256:
            changed += written
        return sorted(set(changed))


def _saved_buffers(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield the buffers that are part of the state dict."""
    parameters = dict(module.named_parameters(remove_duplicate=False))
    for name, value in module.state_dict().items():
        if isinstance(value, Tensor) and name not in parameters:
            yield name, value


def _versions(module: nn.Module) -> dict[str, tuple[int, int]]:
    """Return for every parameter its place in memory and how often it was written to."""
    # torch counts no writes to tensors that were made in inference mode, and refuses most of them.
    known = ((name, p) for name, p in module.named_parameters() if not p.is_inference())
    return {name: (p.data_ptr(), p._version) for name, p in known}


def _same(first: Tensor, second: Tensor) -> bool:
    """Return whether two tensors have the same bytes, NaN included."""
    if (first.shape, first.dtype) != (second.shape, second.dtype):
        return False
    bytes_of = (value.detach().reshape(-1).view(torch.uint8) for value in (first, second))
    return torch.equal(*bytes_of)


def _saving_hooks() -> object:
    """Return the hooks in force on tensors that are saved for the backward pass, or None."""
    read = getattr(torch._C._autograd, "_top_saved_tensors_default_hooks", None)
    if read is not None:  # torch 2.8 and later
        return read(True)
    try:
        with disable_saved_tensors_hooks("in use"):
            return None
    except RuntimeError:
        return True


def _in_own_function() -> bool:
    """Return whether the forward pass of an autograd.Function is running, by the context among its local variables."""
    frame = inspect.currentframe()
    while frame is not None:
        if any(isinstance(value, FunctionCtx) for value in frame.f_locals.values()):
            return True
        frame = frame.f_back
    return False


def _harmless(saving: object) -> bool:
    return isinstance(saving, tuple) and all(getattr(hook, "__module__", None) == HARMLESS for hook in saving)


def _some(names: list[str]) -> str:
    """Return the first names for a message."""
    shown = ", ".join(f"'{name}'" for name in names[:4])
    return shown + (f" and {len(names) - 4} more" if len(names) > 4 else "")
