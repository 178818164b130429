"""Random projections: fixed linear maps from a few coordinates of w to many entries of theta.

A projection is described by its sizes, drawn once as small arrays, and applied to any w. Adding one takes this file
alone: a class with the three members of `Projection`, registered under its name in `subspace.projection`. Importing
this module imports neither torch nor numpy, so that settings can be read without a numerical library.

Shape legend: S coordinates of w that go in.
"""

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

Arrays = dict[str, "NDArray"]

IDENTITY, STREAMED = "identity", "kronecker_feistel"
"""Names of the projection that projects nothing, and of the one for very large theta."""
STORED_ENTRIES = 1 << 24
"""Entries of theta up to which `kronecker_qr` stores its permutation, 8 bytes each."""


class Projection(Protocol):
    """A fixed linear map P (rows x columns) from columns coordinates of w to rows entries of theta.

    The mean square of its entries must be 1 / total, where `total` is D, the size of the whole theta. Then a step in w
    moves all groups and arms by the same amount.
    """

    def __init__(self, rows: int, columns: int, *, total: int) -> None: ...

    def arrays(self, stream: "np.random.Generator") -> Arrays:
        """Return what is random about P, by name; the same stream gives the same arrays."""

    def apply(self, arrays: Mapping[str, "Tensor"], w_S: "Tensor") -> "Tensor":
        """Return P w, shape (rows,), differentiable in w of shape (columns,); `arrays` are tensors on w's device."""


PROJECTIONS: dict[str, type[Projection]] = {}
"""Every projection by its name in the settings."""


def register(name: str) -> Callable[[type], type]:
    """Return a class decorator that registers a projection under a name. ValueError if the name is taken."""

    def enter(kind: type) -> type:
        if name in PROJECTIONS:
            raise ValueError(f"a projection named {name} exists already")
        PROJECTIONS[name] = kind
        return kind

    return enter


def kronecker_sizes(rows: int, columns: int) -> tuple[int, int]:
    """Return the sides (a, b) of the Kronecker part a^2 x b^2 of a tall rows x columns projection.

    b^2 and a^2 are the largest squares for which the dense remainder (rows - a^2) x (columns - b^2) is again
    tall and leaves no row without a column; a = b = 0 when only the dense part is left.
    """
    for b in range(math.isqrt(columns), 0, -1):
        for a in range(math.isqrt(rows), b - 1, -1):
            rest_rows, rest_columns = rows - a * a, columns - b * b
            if rest_rows == rest_columns == 0 or 0 < rest_columns <= rest_rows:
                return a, b
    return 0, 0


@register("kronecker_qr")
class KroneckerQR:
    """P = scale x permutation of blockdiag(Q1 kron Q2, R), with Q1, Q2, R from QR factors; never formed.

    For a tall P the columns are orthogonal with norm sqrt(rows / total), for a wide one the rows are, with norm
    sqrt(columns / total). Source: the Kronecker structure of SubLoRA, Lotfi et al., ICML 2024.
    """

    def __init__(self, rows: int, columns: int, *, total: int) -> None:
        self.rows, self.columns, self.wide = rows, columns, columns > rows
        self.tall, self.narrow = max(rows, columns), min(rows, columns)
        self.a, self.b = kronecker_sizes(self.tall, self.narrow)
        self.scale = math.sqrt(self.tall / total)

    def arrays(self, stream: "np.random.Generator") -> Arrays:
        """Draw the factors, float32 with orthonormal columns, and the permutation `order`, int64 (tall).

        The factors are left and right (a x b) and rest (tall - a^2 x narrow - b^2). ValueError if the permutation is
        too large to be stored.
        """
        if self.tall > STORED_ENTRIES:
            raise ValueError(
                f"projection kronecker_qr would store a permutation of {self.tall} entries, at most {STORED_ENTRIES}; "
                f"set subspace.projection to {STREAMED}, which stores none"
            )
        import numpy as np

        factors = self._factors(stream)
        order = stream.permutation(self.tall)
        return factors | {"order": np.argsort(order) if self.wide else order}

    def _factors(self, stream: "np.random.Generator") -> Arrays:
        left = _orthonormal((self.a, self.b), stream)
        right = _orthonormal((self.a, self.b), stream)
        rest = _orthonormal((self.tall - self.a**2, self.narrow - self.b**2), stream)
        return {"left": left, "right": right, "rest": rest}

    def apply(self, arrays: Mapping[str, "Tensor"], w_S: "Tensor") -> "Tensor":
        return self._transposed(arrays, w_S) if self.wide else self._direct(arrays, w_S)

    def _direct(self, arrays: Mapping[str, "Tensor"], w_S: "Tensor") -> "Tensor":
        """Return the permutation of (Q1 kron Q2) w = vec(Q1 W Q2') and R w_rest."""
        return self._products(arrays, w_S)[arrays["order"]] * self.scale

    def _products(self, arrays: Mapping[str, "Tensor"], w_S: "Tensor") -> "Tensor":
        import torch

        parts = [(arrays["left"] @ w_S[: self.b**2].view(self.b, self.b) @ arrays["right"].T).flatten()]
        parts.append(arrays["rest"] @ w_S[self.b**2 :])
        return torch.cat(parts)

    def _transposed(self, arrays: Mapping[str, "Tensor"], w_S: "Tensor") -> "Tensor":
        """Apply the transpose of the tall projection with swapped sizes: unpermute, then Q1' W Q2 and R'."""
        import torch

        w_S = w_S[arrays["order"]]
        parts = [(arrays["left"].T @ w_S[: self.a**2].view(self.a, self.a) @ arrays["right"]).flatten()]
        parts.append(arrays["rest"].T @ w_S[self.a**2 :])
        return torch.cat(parts) * self.scale


@register(STREAMED)
class KroneckerFeistel(KroneckerQR):
    """The products of `kronecker_qr` with a permutation that is computed where it is needed.

    What is stored grows with the square root of the larger side, so theta may have a hundred million entries.
    """

    def arrays(self, stream: "np.random.Generator") -> Arrays:
        """Draw left, right and rest as in `kronecker_qr`, and the tables, int64, that `feistel_positions` takes."""
        from sublora.subspace.permutation import ROUNDS, feistel_side

        factors = self._factors(stream)
        side = feistel_side(self.tall)
        return factors | {"tables": stream.integers(side, size=(ROUNDS, side))}

    def _direct(self, arrays: Mapping[str, "Tensor"], w_S: "Tensor") -> "Tensor":
        from sublora.subspace.permutation import permuted

        return permuted(self._products(arrays, w_S * self.scale), arrays["tables"])

    def _transposed(self, arrays: Mapping[str, "Tensor"], w_S: "Tensor") -> "Tensor":
        from sublora.subspace.permutation import feistel_positions

        order = feistel_positions(arrays["tables"], self.tall, slice(0, self.tall)).argsort()
        return super()._transposed({**arrays, "order": order}, w_S)


@register(IDENTITY)
class Identity:
    """w is theta minus its start: no subspace, one coordinate per entry."""

    def __init__(self, rows: int, columns: int, *, total: int) -> None:
        if rows != columns:
            raise ValueError(
                f"projection identity maps {columns} coordinates to {rows} parameters, but it has one coordinate for "
                "each parameter; set grid.budgets: [all]"
            )

    def arrays(self, stream: "np.random.Generator") -> Arrays:
        return {}

    def apply(self, arrays: Mapping[str, "Tensor"], w_S: "Tensor") -> "Tensor":
        return w_S


def _orthonormal(shape: tuple[int, int], stream: "np.random.Generator") -> "NDArray[np.float32]":
    """Draw a float32 matrix with orthonormal columns, uniformly: QR of a Gaussian, signs fixed by R."""
    import numpy as np

    q, r = np.linalg.qr(stream.standard_normal(shape))
    return (q * np.where(np.diagonal(r) < 0, -1.0, 1.0)).astype(np.float32)
