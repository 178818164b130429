"""The Kronecker-QR projection against dense matrices, and the registry."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from sublora.streams import generator
from sublora.subspace.projections import PROJECTIONS, KroneckerQR, kronecker_sizes, register

TOTAL = 7000
SIZES = [(5380, 1000), (5380, 2000), (512, 1000), (300, 300), (100, 1), (17, 16), (1, 5), (97, 96)]


def drawn(rows: int, columns: int, name: str = "x") -> tuple[KroneckerQR, dict[str, torch.Tensor]]:
    """A projection and its arrays in double precision."""
    projection = KroneckerQR(rows, columns, total=TOTAL)
    arrays = {key: torch.from_numpy(array) for key, array in projection.arrays(generator(1, name)).items()}
    return projection, {key: a.double() if a.is_floating_point() else a for key, a in arrays.items()}


def matrix_of(apply: Callable[[torch.Tensor], torch.Tensor], columns: int) -> torch.Tensor:
    return torch.stack([apply(unit) for unit in torch.eye(columns, dtype=torch.float64)], dim=1)


def dense(rows: int, columns: int, name: str = "x") -> torch.Tensor:
    projection, arrays = drawn(rows, columns, name)
    return matrix_of(lambda unit: projection.apply(arrays, unit), columns)


@pytest.mark.parametrize(("rows", "columns"), SIZES)
def test_columns_or_rows_are_orthogonal_with_the_stated_norm(rows, columns):
    p = dense(rows, columns)
    assert p.shape == (rows, columns)
    gram = p.T @ p if rows >= columns else p @ p.T
    norm = max(rows, columns) / TOTAL
    torch.testing.assert_close(gram, norm * torch.eye(len(gram), dtype=torch.float64), rtol=1e-5, atol=1e-6)
    assert float(p.square().mean()) == pytest.approx(1 / TOTAL, rel=1e-5)


@pytest.mark.parametrize(("rows", "columns"), SIZES)
def test_remainder_is_tall_and_reaches_every_row(rows, columns):
    tall, narrow = max(rows, columns), min(rows, columns)
    a, b = kronecker_sizes(tall, narrow)
    rest_rows, rest_columns = tall - a * a, narrow - b * b
    assert rest_rows == rest_columns == 0 or 0 < rest_columns <= rest_rows
    assert bool((dense(rows, columns).abs().sum(1) > 0).all())


def test_kronecker_part_is_the_kronecker_product():
    projection, arrays = drawn(100, 30)
    assert projection.a * projection.b > 0
    matrix = torch.block_diag(torch.kron(arrays["left"], arrays["right"]), arrays["rest"])
    torch.testing.assert_close(dense(100, 30), matrix[arrays["order"]] * projection.scale)


def test_a_wide_projection_is_the_transpose_of_a_tall_one():
    torch.testing.assert_close(dense(30, 100), dense(100, 30).T)


def test_arrays_depend_on_the_stream_alone():
    projection = KroneckerQR(100, 30, total=TOTAL)
    first, again, other = (projection.arrays(generator(1, name)) for name in "xxy")
    assert all(np.array_equal(first[name], again[name]) for name in first)
    assert not any(np.array_equal(first[name], other[name]) for name in first)


def test_a_name_is_registered_once(monkeypatch):
    assert PROJECTIONS["kronecker_qr"] is KroneckerQR
    with pytest.raises(ValueError, match="a projection named kronecker_qr exists already"):
        register("kronecker_qr")(KroneckerQR)
    monkeypatch.delitem(PROJECTIONS, "kronecker_qr")
    assert register("kronecker_qr")(KroneckerQR) is KroneckerQR is PROJECTIONS["kronecker_qr"]
