"""Which documents of a split belong together: a unit is drawn independently from the population.

Units are runs of neighbouring documents. Shape legend: U units, D documents.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class Units:
    """The units of a split, or of some of its documents."""

    documents: int
    """D, the number of documents."""
    starts_U: NDArray[np.int64] | None = None
    """First document of each unit, ascending from 0; None if every document is a unit."""

    def __len__(self) -> int:
        """Return U, the number of units."""
        return self.documents if self.starts_U is None else len(self.starts_U)

    @cached_property
    def ends_U(self) -> NDArray[np.int64]:
        """The position after the last document of each unit."""
        if self.starts_U is None:
            return np.arange(1, self.documents + 1)
        return np.append(self.starts_U[1:], self.documents)

    @property
    def sizes_U(self) -> NDArray[np.int64]:
        """The number of documents of each unit."""
        if self.starts_U is None:
            return np.ones(self.documents, dtype=np.int64)
        return self.ends_U - self.starts_U

    def size_around(self, documents: slice) -> NDArray[np.int64] | int:
        """Return the size of the unit of each of some consecutive documents, (D,); 1 if every document is a unit."""
        if self.starts_U is None:
            return 1
        last = min(documents.stop, self.documents)
        units_D = np.searchsorted(self.starts_U, np.arange(documents.start, last), side="right") - 1
        ends_D = self.ends_U[units_D]
        sizes_D: NDArray[np.int64] = ends_D - self.starts_U[units_D]
        return sizes_D

    def leading(self, documents: int) -> int:
        """Return the smallest number of first units that hold at least this number of documents.

        ValueError if all units together hold fewer.
        """
        if documents > self.documents:
            raise ValueError(f"{documents} documents of {self.documents}")
        if self.starts_U is None:
            return documents
        return int(np.searchsorted(self.ends_U, documents)) + 1

    def take(self, units_U: NDArray[np.int64]) -> tuple[NDArray[np.int64], "Units"]:
        """Return the documents of some units, one unit after another, shape (D,), and how they are grouped."""
        if self.starts_U is None:
            return units_U, Units(len(units_U))
        ends_U = self.ends_U[units_U]
        sizes_U = ends_U - self.starts_U[units_U]
        offsets_U = np.concatenate([[0], np.cumsum(sizes_U)]).astype(np.int64)
        documents_D = np.arange(offsets_U[-1]) + np.repeat(ends_U - offsets_U[1:], sizes_U)
        return documents_D, Units(int(offsets_U[-1]), offsets_U[:-1])

    def documents_of(self, units_N: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.int64]:
        """Draw one document from each of the units, uniformly; nothing is drawn if every document is a unit."""
        if self.starts_U is None:
            return units_N
        first_N = self.starts_U[units_N]
        ends_N = self.ends_U[units_N]
        drawn_N: NDArray[np.int64] = rng.integers(first_N, ends_N)
        return drawn_N

    def means(self, values_D: NDArray) -> NDArray:
        """Return the mean over the documents of each unit along the first axis.

        values_D has shape (D, ...); the result has shape (U, ...) and is float64. Where every document is a unit, the
        result is `values_D` itself.
        """
        if len(values_D) != self.documents:
            raise ValueError(f"values of {len(values_D)} documents for units of {self.documents}")
        if self.starts_U is None:
            return values_D
        sums_U = np.add.reduceat(values_D.astype(np.float64), self.starts_U, axis=0)
        return sums_U / self.sizes_U.reshape(-1, *[1] * (values_D.ndim - 1))
