"""The variants of the gates at a tiny size: the start sees where a signal is, the choice never makes things worse."""

import csv
import dataclasses
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import build_on, write_settings

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # `benchmarks` is not installed

from benchmarks import gate_summary, gate_variants, gates
from sublora import config
from sublora.runs.verify.verify import verify_run
from sublora.subspace import allocations
from sublora.system.errors import UserError
from sublora.system.streams import generator

BUDGETS = (40, 60)
CHANGES = {"message": {"quantizer": "entropy"}, "lora": {"init": "both_random"}}


@pytest.fixture(autouse=True)
def one_thread():
    """As the settings have it: networks this small only wait for more."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def study(tiny_root, tmp_path) -> gates.Study:
    return gates.Study.of(write_settings(tmp_path, CHANGES), tiny_root, [1, 2], BUDGETS)


@pytest.fixture
def run(tiny_root, tmp_path):
    settings = config.load_settings(write_settings(tmp_path, CHANGES))
    return build_on(tiny_root, settings, config.RunSpec(budget=40, allocation="learned", seed=1))


def planted(run, role: str | None, seed: int) -> torch.Tensor:
    """Gradients (N x D): noise of size 1, and in the entries of a role a mean of the same size."""
    stream, space = generator("planted gradients", seed), run.network.space
    mean_D = np.zeros(space.size)
    if role is not None:
        span = space.span(role)
        mean_D[span] = stream.standard_normal(span.stop - span.start)
    noise_ND = stream.standard_normal((gate_variants.START_BATCHES, space.size))
    return torch.from_numpy((mean_D + noise_ND).astype(np.float32))


@pytest.mark.parametrize(("role", "above"), [("A", False), ("B", True)])
def test_the_start_turns_to_where_the_signal_is(run, role, above):
    for seed in range(5):
        gamma_G = gate_variants.start_gammas(run.subspace, planted(run, role, seed))
        assert ((gamma_G > 0.5) == above).all()
        assert (gamma_G >= 0.05).all() and (gamma_G <= 0.95).all()


@pytest.mark.slow
def test_without_a_signal_the_start_is_a_half_on_average(run):
    gamma_SG = torch.stack([gate_variants.start_gammas(run.subspace, planted(run, None, seed)) for seed in range(40)])
    means_S = gamma_SG.mean(1)
    assert abs(float(means_S.mean()) - 0.5) < 3 * float(means_S.std()) / 40**0.5
    nothing = torch.zeros(3, run.network.space.size)
    assert gate_variants.start_gammas(run.subspace, nothing).tolist() == [0.5] * len(run.subspace.gates)


def test_the_gradient_of_a_part_is_that_of_its_matrix(run):
    """P^T g, against a projection that is written out column by column."""
    subspace, gradients = run.subspace, planted(run, None, 1)[:2]
    found = {(gate, first): pulled for gate, first, pulled in gate_variants.coordinate_gradients(subspace, gradients)}
    assert len(found) == len(subspace.parts)
    for part in subspace.parts:
        mask = torch.full((len(subspace.gates), 40), float(part.takes_first))
        with torch.no_grad():
            columns = [subspace.theta(unit, mask)[part.rows] - subspace.origin_D[part.rows] for unit in torch.eye(40)]
        expected = gradients[:, part.rows] @ torch.stack(columns, 1)
        torch.testing.assert_close(found[part.gate, part.takes_first], expected, rtol=1e-3, atol=1e-4)


def test_the_start_owes_nothing_to_the_batches_of_training(run):
    gradients_ND = gate_variants.start_gradients(run)
    assert gradients_ND.shape == (gate_variants.START_BATCHES, run.network.space.size)
    assert torch.isfinite(gradients_ND).all() and float(gradients_ND.abs().max()) > 0.0
    assert torch.equal(gradients_ND, gate_variants.start_gradients(run))


def test_the_choice_is_the_best_of_what_it_tried():
    tried = {}

    def criterion(logits):
        tried[logits] = (logits[0] - 1.0) ** 2 + (logits[1] + 2.0) ** 2
        return tried[logits]

    choice = gate_variants.choose_logits((0.1, -0.3), criterion)
    assert choice.value == min(tried.values()) == tried[choice.logits] <= choice.trained_value == tried[0.1, -0.3]
    shift, single = max(gate_variants.JOINT_SHIFTS), max(gate_variants.SINGLE_SHIFTS)
    joint = {(0.1 + s, -0.3 + s) for s in (-shift, shift)}
    assert {(0.0, 0.0), *joint} <= tried.keys()
    # Downwards together gains most, since the second gate is the farther from its best; then each gate for itself.
    assert choice.logits == pytest.approx((0.1 - shift + single, -0.3 - shift - single))
    # A criterion that is lowest at the trained split leaves it alone.
    assert gate_variants.choose_logits((1.0, -2.0), criterion).logits == (1.0, -2.0)


@pytest.mark.parametrize(("soft_fraction", "started"), [(0.8, True), (0.5, False)])
@pytest.mark.parametrize(
    "variant",
    [*(pytest.param(name, marks=pytest.mark.slow) for name in ("learned", "start", "choice")), "start_choice"],
)
def test_certificates_of_all_variants_verify(study, tiny_root, tmp_path, variant, soft_fraction, started):
    """With a soft phase that ends within the rate phase, and before it."""
    gating = study.settings.gating.model_copy(update={"soft_fraction": soft_fraction})
    study = dataclasses.replace(study, settings=study.settings.model_copy(update={"gating": gating}))
    trainer = gates.train_score_bound(study, gates.Task(variant, 40, 1), tmp_path / "run")
    assert verify_run(tmp_path / "run", root=tiny_root).verified
    assert (trainer.rate.first_step < trainer.soft_steps) == started
    how = gates.VARIANTS[variant]
    assert (trainer.start is not None, trainer.choice is not None) == (how.start, how.choice)
    if trainer.choice is not None:
        assert trainer.choice.value <= trainer.choice.trained_value
        assert gate_variants.logits_of(trainer.run.subspace) == pytest.approx(trainer.choice.logits)


@pytest.mark.slow
def test_a_file_grows_by_what_it_lacks_and_is_summarized(study, tmp_path, monkeypatch, capsys):
    out = tmp_path / "gates.csv"
    tasks = [gates.Task(variant, budget, 1) for budget in BUDGETS for variant in ("learned", "one_gate", "uniform")]
    gates.run_study(study, tasks[:3], out)
    first = out.read_text(encoding="utf-8")
    gates.run_study(study, tasks, out)
    assert out.read_text(encoding="utf-8").startswith(first)
    rows = {(row["variant"], row["budget"]): row for row in csv.DictReader(out.open(encoding="utf-8"))}
    assert len(rows) == 6
    assert rows["one_gate", "40"]["gate_bits"] == "6" and rows["learned", "40"]["gate_bits"] == "18"
    assert float(rows["learned", "40"]["gate_bits_cost"]) > float(rows["one_gate", "40"]["gate_bits_cost"]) > 0.0
    assert rows["uniform", "40"]["gamma"] == "" and rows["one_gate", "40"]["gamma"].startswith("all:")
    assert gate_variants.OneGate not in allocations.ALLOCATIONS

    monkeypatch.setattr(gates, "measure", lambda *_: pytest.fail("a finished run was run again"))
    gates.run_study(study, tasks, out)
    with pytest.raises(UserError, match="rows of other --seeds"):
        gates.run_study(dataclasses.replace(study, seeds=(1, 2, 3)), tasks, out)

    gates.main(["summarize", str(out)])
    assert "one_gate minus uniform" in " ".join(capsys.readouterr().out.split())


def test_all_arms_pay_the_same_index(study):
    with gates.one_gate_known():
        runs = {len(study.settings_of(variant).grid.runs()) for variant in gates.VARIANTS.values()}
    assert runs == {study.grid_runs}


def made_up(bounds: dict[str, float], seeds: int = 5) -> list[dict[str, str]]:
    """Rows of two budgets; a seed shifts all variants alike, the second budget lies 1 lower."""
    facts = {"gate_bits": "10", "gate_bits_cost": "0.01"}
    return [
        {"variant": variant, "budget": budget, "seed": str(seed), **facts}
        | {"bound_value": str(bound + seed - lower), "estimated_bound_bits": str(-bound)}
        for variant, bound in bounds.items()
        for budget, lower in (("500", 0), ("1000", 1))
        for seed in range(seeds)
    ]


def test_the_summary_pairs_by_seed_and_corrects():
    bounds = {"learned": 3.0, "start": 2.9, "choice": 3.1, "fixed-0.2": 3.2, "fixed-0.5": 2.8, "fixed-0.8": 3.0}
    rows = made_up(bounds)
    table = {line["variant"]: line for line in gate_summary.comparisons(rows)}
    start = table["start"]
    assert start["bound_bits"] == pytest.approx(2.9 + 2.0 - 0.5)
    assert start["minus_learned"].mean == pytest.approx(-0.1) and start["minus_learned"].seeds == 5
    assert start["minus_learned"].p_less == 1 / 32 and start["p_holm"] == 4 / 32
    assert table["choice"]["p_holm"] == 1.0 and table["fixed-0.5"]["p_holm"] is None
    # The estimate on val, here the negative of the bound, picks fixed-0.2.
    assert table["tuned"]["bound_bits"] == table["fixed-0.2"]["bound_bits"]
    against = {(line["variant"], line["other"]): line["difference"] for line in gate_summary.against_no_gates(rows)}
    assert against["learned", "fixed-0.5"].mean == pytest.approx(0.2)
    assert against["learned", "tuned"].mean == pytest.approx(-0.2)
    incomplete = [row for row in rows if (row["variant"], row["budget"], row["seed"]) != ("start", "500", "3")]
    table = {line["variant"]: line for line in gate_summary.comparisons(incomplete)}
    assert table["start"]["minus_learned"].seeds == 4


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["summarize", "nowhere.csv"], "nowhere.csv: no such file"),
        (["--seeds", "1", "1", "--out", "x.csv"], "--seeds: expected different numbers"),
        (["--seeds", "1"], "give --seeds and --out"),
        (["draw", "x.csv"], "expected summarize FILE.csv"),
    ],
)
def test_bad_input_is_one_line(arguments, expected, capsys):
    with pytest.raises(SystemExit, match="2"):
        gates.main(arguments)
    assert expected in capsys.readouterr().err
