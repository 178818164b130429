"""The Kronecker-QR projection against dense matrices, and the registry."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from sublora.subspace.permutation import ROUNDS, feistel_positions, feistel_side, permuted
from sublora.subspace.projections import PROJECTIONS, Identity, KroneckerFeistel, KroneckerQR, kronecker_sizes, register
from sublora.system.streams import generator

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


def test_a_name_is_registered_once():
    assert PROJECTIONS["kronecker_qr"] is KroneckerQR
    with pytest.raises(ValueError, match="a projection named kronecker_qr exists already"):
        register("kronecker_qr")(KroneckerQR)
    # Messages list the names in this order, which other tests read: restored with the entries.
    before = dict(PROJECTIONS)
    del PROJECTIONS["kronecker_qr"]
    try:
        assert register("kronecker_qr")(KroneckerQR) is KroneckerQR is PROJECTIONS["kronecker_qr"]
    finally:
        PROJECTIONS.clear()
        PROJECTIONS.update(before)


# The permutation that is not stored


@pytest.mark.parametrize("count", [1, 2, 3, 10, 100, 101, 4999])
def test_feistel_positions_are_a_permutation_whatever_is_asked_at_once(count):
    side = feistel_side(count)
    assert (side - 1) ** 2 < count <= side**2
    tables = torch.from_numpy(generator(1, "tables").integers(side, size=(ROUNDS, side)))
    whole = feistel_positions(tables, count, slice(0, count))
    assert torch.equal(whole.sort().values, torch.arange(count))
    pieces = [feistel_positions(tables, count, slice(start, min(start + 7, count))) for start in range(0, count, 7)]
    assert torch.equal(torch.cat(pieces), whole)


def test_feistel_positions_scatter_like_a_random_permutation():
    """Steps between the images of neighbours, and displacements, are spread as a random permutation's are."""
    count, side = 10_000, 100
    tables = torch.from_numpy(generator(2, "tables").integers(side, size=(ROUNDS, side)))
    image = feistel_positions(tables, count, slice(0, count)).double().numpy()
    for values in (np.diff(image), image - np.arange(count)):
        # Of a random permutation of n: mean 0 for large n, standard deviation n / sqrt(6).
        assert abs(values.mean()) < 0.03 * count
        assert values.std() == pytest.approx(count / 6**0.5, rel=0.03)
    assert abs(np.corrcoef(image[:-1], image[1:])[0, 1]) < 0.04
    assert len(np.unique(np.diff(image))) > 0.6 * count


def test_permuting_in_chunks_and_its_gradient(monkeypatch):
    monkeypatch.setattr("sublora.subspace.permutation.CHUNK", {"cpu": 7})
    tables = torch.from_numpy(generator(3, "tables").integers(10, size=(ROUNDS, 10)))
    values = torch.randn(95, dtype=torch.float64, requires_grad=True)
    assert torch.equal(permuted(values, tables), values[feistel_positions(tables, 95, slice(0, 95))])
    assert torch.autograd.gradcheck(lambda v: permuted(v, tables), values)


@pytest.mark.parametrize(("rows", "columns"), [(5380, 1000), (30, 100), (300, 300), (100, 1)])
def test_the_streamed_projection_is_the_stored_one_with_another_permutation(rows, columns):
    projection = KroneckerFeistel(rows, columns, total=TOTAL)
    arrays = {key: torch.from_numpy(array) for key, array in projection.arrays(generator(1, "x")).items()}
    arrays = {key: a.double() if a.is_floating_point() else a for key, a in arrays.items()}
    positions = feistel_positions(arrays["tables"], projection.tall, slice(0, projection.tall))
    order = torch.argsort(positions) if projection.wide else positions
    streamed = matrix_of(lambda unit: projection.apply(arrays, unit), columns)
    stored = KroneckerQR(rows, columns, total=TOTAL)
    torch.testing.assert_close(streamed, matrix_of(lambda u: stored.apply({**arrays, "order": order}, u), columns))
    assert sum(a.numel() for a in arrays.values()) < 10 * columns + 700 * projection.tall**0.5


def test_a_permutation_of_many_million_entries_is_not_stored():
    with pytest.raises(ValueError, match="kronecker_qr would store a permutation of 124439808 entries.*feistel"):
        KroneckerQR(124_439_808, 1000, total=124_439_808).arrays(generator(1, "x"))


def test_identity_is_the_identity_and_square():
    """Its entries have the mean square 1 / total that every projection has."""
    projection = Identity(12, 12, total=12)
    matrix = matrix_of(lambda unit: projection.apply({}, unit), 12)
    assert projection.arrays(generator(1, "x")) == {}
    assert torch.equal(matrix, torch.eye(12, dtype=torch.float64))
    assert float(matrix.square().mean()) == pytest.approx(1 / 12)
    with pytest.raises(ValueError, match=r"maps 5 coordinates to 12 parameters.*grid.budgets: \[all\]"):
        Identity(12, 5, total=12)
