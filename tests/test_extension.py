"""An allocation of the benchmarks and an imagined projection: each is one class, and every stage takes it as it comes.

Nothing but `sublora.subspace.allocations` may have to know of a new allocation, and nothing but
`sublora.subspace.projections` of a new projection.
"""

import dataclasses
import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from analysis_data import write_results
from conftest import build_on, write_settings

from benchmarks.gate_variants import OneGate
from sublora import config
from sublora.analysis.arms import arms_of
from sublora.analysis.figures import style
from sublora.analysis.hypotheses import hypothesis_table
from sublora.analysis.runs_table import collect_runs
from sublora.runs.bound import bound_run
from sublora.runs.message import Message, read_message
from sublora.runs.score import score_run
from sublora.runs.train import train_run
from sublora.runs.verify.verify import verify_run
from sublora.subspace import allocations
from sublora.subspace.projections import PROJECTIONS, register
from sublora.system.errors import UserError
from sublora.system.names import CHECKPOINT_NAME
from sublora.training import checkpoint


class DenseGaussian:
    """P with independent entries N(0, 1 / total)."""

    def __init__(self, rows: int, columns: int, *, total: int) -> None:
        self.shape, self.scale = (rows, columns), 1.0 / math.sqrt(total)

    def arrays(self, stream: np.random.Generator) -> dict[str, np.ndarray]:
        return {"matrix": stream.standard_normal(self.shape).astype(np.float32)}

    def apply(self, arrays, w_S: torch.Tensor) -> torch.Tensor:
        return self.scale * (arrays["matrix"] @ w_S)


@dataclasses.dataclass(frozen=True)
class Swapped(allocations.Fixed):
    """Another kind that has a ratio."""

    mode: ClassVar[str] = "swapped"


@pytest.fixture
def one_gate(monkeypatch) -> str:
    monkeypatch.setattr(allocations, "ALLOCATIONS", (*allocations.ALLOCATIONS, OneGate))
    return OneGate.mode


@pytest.fixture
def dense_gaussian() -> Iterator[str]:
    register("dense_gaussian")(DenseGaussian)
    yield "dense_gaussian"
    del PROJECTIONS["dense_gaussian"]


def whole_way(tiny_root: Path, root: Path, allocation: str, changes: dict) -> tuple[config.Settings, Message, dict]:
    """Train, encode, score, bound and verify a run of 20 steps; its settings, message and trained parameters.

    A network rebuilt from the seeds gives the same theta for the message as the network of the training.
    """
    shutil.copytree(tiny_root, root)
    settings = config.load_settings(write_settings(root, changes | {"grid": {"allocations": [allocation]}}))
    spec = config.RunSpec(budget=40, allocation=allocation, seed=1)
    out = root / "results/runs" / spec.name
    train_run(settings, spec, root=root, out=out)
    score_run(out, root=root)
    bound_run(out)
    trained = checkpoint.load(out / CHECKPOINT_NAME)["raw_model"]
    assert float(trained["subspace_params"].abs().max()) > 0.0
    message = read_message(out / "certificate.bin")
    thetas = []
    for start in (None, trained):
        subspace = build_on(root, settings, spec).subspace
        if start is not None:
            subspace.load_state_dict(start)
        masks = subspace.split_masks(torch.tensor(message.contents.gates))
        thetas.append(subspace.theta(torch.from_numpy(message.contents.weights.values()), masks))
    assert torch.equal(*thetas) and not torch.equal(thetas[0], subspace.origin_D)
    (out / CHECKPOINT_NAME).unlink()
    assert verify_run(out, root=root).verified
    return settings, message, trained


@pytest.mark.parametrize("quantizer", ["plain", "entropy"])
def test_a_new_allocation_is_one_class(tiny_root, tmp_path, one_gate, quantizer):
    """Its gate is trained, costs its bits in the message, and comes back as it was written."""
    changes = {"message": {"quantizer": quantizer}}
    _, message, trained = whole_way(tiny_root, tmp_path / "root", one_gate, changes)
    assert set(trained) == {"subspace_params", "gating_params.all"}
    logit = float(trained["gating_params.all"])
    assert logit != 0.0
    assert message.contents.gates == (round(40 / (1.0 + math.exp(-logit))),)
    assert message.payload.items["gates"] == math.ceil(math.log2(41))
    assert [gate.group for gate in message.gates] == ["all"]


@pytest.mark.parametrize("allocation", ["fixed-0.5", "learned"])
def test_a_new_projection_is_one_class(tiny_root, tmp_path, dense_gaussian, allocation):
    """theta - theta_0 of the decoded w, against the matrices drawn here."""
    changes = {"subspace": {"projection": dense_gaussian}}
    settings, message, _ = whole_way(tiny_root, tmp_path / "root", allocation, changes)
    run = build_on(tmp_path / "root", settings, message.spec)
    w, subspace = torch.from_numpy(message.contents.weights.values()), run.subspace
    moved = subspace.theta(w, subspace.split_masks(torch.tensor(message.contents.gates))) - subspace.origin_D
    for part in subspace.parts:
        share = torch.ones(40)
        if part.gate is not None:
            below = torch.arange(40) < message.contents.gates[part.gate]
            share = (below if part.takes_first else ~below).float()
        matrix = getattr(subspace, f"{part.name}__matrix") / math.sqrt(subspace.shape.space.size)
        torch.testing.assert_close(moved[part.rows], matrix @ (share * w)[part.coordinates], rtol=1e-4, atol=1e-6)


def test_tables_and_figures_take_new_allocations_as_kinds_of_their_own(tmp_path, monkeypatch):
    """H1 is about fixed splits; every arm has a colour and a marker of its own."""
    monkeypatch.setattr(allocations, "ALLOCATIONS", (*allocations.ALLOCATIONS, OneGate, Swapped))
    names = ("uniform", "fixed-0.5", "fixed-0.8", "learned", "one_gate", "swapped-0.5", "swapped-0.8")
    grid = config.Grid(budgets=(1000,), allocations=names, seeds=(1, 2, 3))
    runs = collect_runs(write_results(tmp_path, grid))
    arms = arms_of(runs)
    assert [arm.allocation for arm in arms] == list(names)
    assert len({style.colour_of(arm) for arm in arms}) == len({style.marker_of(arm, arms) for arm in arms}) == len(arms)
    comparisons = hypothesis_table(runs).set_index("hypothesis").loc["H1", "comparison"]
    assert not comparisons.str.contains("swapped").any() and comparisons.str.contains("fixed-0.8").all()


def test_messages_and_help_list_the_kinds_that_there_are(monkeypatch):
    assert allocations.allocation_forms(" or ") == "uniform, fixed-<share of B> or learned"
    monkeypatch.setattr(allocations, "ALLOCATIONS", (*allocations.ALLOCATIONS, OneGate, Swapped))
    assert allocations.allocation_forms() == "uniform, fixed-<share of B>, learned, one_gate, swapped-<share of B>"
    with pytest.raises(ValueError) as error:
        allocations.parse_allocation("even")
    ratios = [f"{mode}-<ratio> with 0 < ratio < 1 (for example {mode}-0.2)" for mode in ("fixed", "swapped")]
    assert str(error.value) == f"allocation 'even' is not one of uniform, learned, one_gate, {', '.join(ratios)}"


def test_nothing_is_left_behind():
    assert not {OneGate, Swapped} & set(allocations.ALLOCATIONS) and "dense_gaussian" not in PROJECTIONS
    with pytest.raises(ValueError, match="allocation 'one_gate' is not one of uniform"):
        allocations.parse_allocation("one_gate")


@pytest.mark.parametrize(
    ("section", "key", "value", "expected"),
    [
        ("grid", "allocations", ["one_gate"], "allocation 'one_gate' is not one of uniform"),
        ("subspace", "projection", "dense_gaussian", "projection 'dense_gaussian' is not one of kronecker_qr"),
    ],
)
def test_settings_know_the_new_name_while_its_class_is_there(tmp_path, request, section, key, value, expected):
    """In a settings file, and from the command line."""
    path = write_settings(tmp_path, {section: {key: value}})
    with pytest.raises(UserError, match=expected):
        config.load_settings(path)
    request.getfixturevalue(value[0] if isinstance(value, list) else value)
    found = getattr(getattr(config.load_settings(path), section), key)
    assert found == (tuple(value) if isinstance(value, list) else value)
    if section == "grid":
        assert config.parse_run(40, value[0], 1).mode == "one_gate"
