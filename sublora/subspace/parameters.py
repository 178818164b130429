"""The parameters behind theta: named tensors, laid end to end in one vector.

Consecutive parameters may share a group (a layer) and a role (LoRA's A or B, or a weight), so that a role, and a role
within a group, is a slice of theta.
"""

import dataclasses
import math
from collections.abc import Iterable


@dataclasses.dataclass(frozen=True)
class Parameter:
    """One tensor in theta."""

    name: str
    shape: tuple[int, ...]
    group: str
    """Parameters that share a gate: a layer, or the head."""
    role: str
    """Parameters that an allocation treats alike: A, B, or weight."""
    start: int

    @property
    def stop(self) -> int:
        """The position after the tensor's last entry."""
        return self.start + math.prod(self.shape)


@dataclasses.dataclass(frozen=True)
class ParameterSpace:
    """The positions of all parameters in theta."""

    parameters: tuple[Parameter, ...]

    @classmethod
    def of(cls, described: Iterable[tuple[str, tuple[int, ...], str, str]]) -> "ParameterSpace":
        """Lay out parameters given as (name, shape, group, role), in the order of theta.

        ValueError if there are no parameters, a name occurs twice, or the parameters of a role, or of a role within a
        group, are not consecutive.
        """
        # Place the parameters end to end.
        parameters: list[Parameter] = []
        for name, shape, group, role in described:
            start = parameters[-1].stop if parameters else 0
            parameters.append(Parameter(name, shape, group, role, start))
        if not parameters:
            raise ValueError("a parameter space needs at least one parameter")
        names = [parameter.name for parameter in parameters]
        if len(set(names)) < len(names):
            raise ValueError(f"parameter names occur twice: {names}")
        space = cls(tuple(parameters))
        # A role, alone and within a group, must be one slice: check that nothing else lies between its parameters.
        spans: list[tuple[str, str | None]] = [(p.role, None) for p in parameters]
        spans += [(p.role, p.group) for p in parameters]
        for span_role, span_group in dict.fromkeys(spans):
            found, span = space.found(span_role, span_group), space.span(span_role, span_group)
            if sum(p.stop - p.start for p in found) != span_length(span):
                raise ValueError(f"parameters of role {span_role} and group {span_group} do not follow one another")
        return space

    @property
    def size(self) -> int:
        """D, the number of entries of theta."""
        return self.parameters[-1].stop

    @property
    def groups(self) -> tuple[str, ...]:
        """The groups, in the order of their first parameters."""
        return tuple(dict.fromkeys(parameter.group for parameter in self.parameters))

    def found(self, role: str, group: str | None = None) -> list[Parameter]:
        """Return the parameters of a role, in one group or in all."""
        return [p for p in self.parameters if p.role == role and group in (None, p.group)]

    def span(self, role: str, group: str | None = None) -> slice:
        """Return the slice of theta that holds a role, in one group or in all. ValueError if nothing has that role."""
        found = self.found(role, group)
        if not found:
            raise ValueError(f"no parameter has the role {role}" + (f" in group {group}" if group else ""))
        return slice(found[0].start, found[-1].stop)


def span_length(span: slice) -> int:
    """Return the number of entries in a slice with both ends given."""
    return span.stop - span.start
