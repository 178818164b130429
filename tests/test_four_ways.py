"""What is trained: adapters or weights, in a subspace or whole; one code for the four."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import build_on, demo_values, merged, write_settings

from sublora import config
from sublora.models.adapted import AdaptedModel, WeightsNetwork
from sublora.models.gpt import GPT
from sublora.models.spaces import model_parameters, weights_space, weights_theta
from sublora.models.weights import random_weights
from sublora.runs.bound import bound_run
from sublora.runs.message import decoder_header, read_message
from sublora.runs.networks import random_base
from sublora.runs.score import score_run
from sublora.runs.train import train_run
from sublora.runs.verify.verify import verify_run
from sublora.system.errors import UserError

FOUR = ["lora-kronecker_qr", "lora-identity", "weights-kronecker_feistel", "weights-identity"]
GRID = {"grid": {"budgets": [40], "allocations": ["uniform", "learned"], "seeds": [1], "trained": FOUR}}
RATES = {"training": {"learning_rates": {"weights-identity": 0.005}}}
"""A subspace moves each weight by less."""


def settings_with(changes: dict) -> config.Settings:
    from conftest import TINY

    return config.parse_settings(merged(merged(demo_values(), TINY), changes), source="test")


@pytest.fixture(scope="module")
def four(tiny_root, tmp_path_factory) -> tuple[Path, config.Settings]:
    """The runs of all four, trained, scored and bounded."""
    root = tmp_path_factory.mktemp("four") / "root"
    shutil.copytree(tiny_root, root)
    settings = config.load_settings(write_settings(root, GRID | RATES | {"message": {"quantizer": "entropy"}}))
    for spec in settings.grid.runs():
        out = root / "results/runs" / spec.name
        train_run(settings, spec, root=root, out=out)
        score_run(out, root=root, config_path=root / "config/config.yaml")
        bound_run(out, config_path=root / "config/config.yaml")
    return root, settings


def test_the_grid_has_one_run_of_what_has_no_subspace_or_no_split():
    settings = settings_with(GRID)
    assert [spec.name for spec in settings.grid.runs()] == [
        "lora-kronecker_qr_d40_uniform_seed1",
        "lora-kronecker_qr_d40_learned_seed1",
        "lora-identity_dall_uniform_seed1",
        "weights-kronecker_feistel_d40_uniform_seed1",
        "weights-identity_dall_uniform_seed1",
    ]


def test_a_run_s_settings_are_its_own_and_stay_so():
    settings = settings_with(GRID | RATES)
    specs = {spec.trained: spec for spec in settings.grid.runs()}
    own = {name: settings.for_run(spec) for name, spec in specs.items()}
    assert {(each.subspace.adapt, each.subspace.projection) for each in own.values()} == {
        (name.split("-")[0], name.split("-")[1]) for name in FOUR
    }
    assert all(each.for_run(specs[name]) == each for name, each in own.items())
    whole, base = own["weights-identity"].training, settings.training
    assert whole.learning_rate == 0.005
    assert whole.final_learning_rate == pytest.approx(base.final_learning_rate * 0.005 / base.learning_rate)
    assert own["lora-identity"].training == base.model_copy(update={"learning_rates": None})


@pytest.mark.slow
def test_all_four_are_trained_coded_bounded_and_verified(four):
    root, settings = four
    for spec in settings.grid.runs():
        out = root / "results/runs" / spec.name
        message = read_message(out / "certificate.bin")
        run = build_on(root, settings, spec)
        d = run.network.space.size if spec.budget == config.ALL else 40
        assert len(message.contents.weights.symbols) == d == len(run.subspace.subspace_params)
        assert np.abs(message.contents.weights.symbols).max() > 0
        assert len(message.contents.gates) == (3 if spec.allocation == "learned" else 0)
        (out / "best_ckpt.pt").unlink()
        assert verify_run(out, root=root).verified, spec.name


def test_identity_is_theta_minus_its_start(four):
    root, settings = four
    for trained in ("lora-identity", "weights-identity"):
        spec = config.RunSpec(budget="all", allocation="uniform", seed=1, trained=trained)
        subspace = build_on(root, settings, spec).subspace
        w = torch.randn(len(subspace.origin_D))
        assert torch.equal(subspace.theta(w), subspace.origin_D + w)
        assert not list(subspace.parts[0:0]) and len(subspace.parts) == 1


def test_training_reaches_every_weight_and_starts_from_the_base(four):
    """theta at w = 0 is the base; after some steps embeddings, norms, biases and all matrices have moved."""
    root, settings = four
    spec = next(spec for spec in settings.grid.runs() if spec.trained == "weights-identity")
    run = build_on(root, settings, spec)
    base = random_base(settings, 257, 1)
    assert np.array_equal(run.subspace.origin_D.numpy(), weights_theta(base.weights, run.network.space))
    w = read_message(root / "results/runs" / spec.name / "certificate.bin").contents.weights.values()
    for p in run.network.space.parameters:
        assert np.any(w[p.start : p.stop]), p.name


def test_a_header_says_how_many_parameters_all_are(four):
    root, settings = four
    headers = {
        spec.trained: read_message(root / "results/runs" / spec.name / "certificate.bin")
        for spec in settings.grid.runs()
    }
    weights = headers["weights-identity"]
    assert weights.header.parameters == model_parameters(settings.model, 257)
    assert decoder_header(weights)["adapted"]["scale"] is None
    assert headers["lora-kronecker_qr"].header.parameters is None


def test_weights_as_theta_are_the_network_of_those_weights(tiny_settings):
    """Every model keeps its own theta, and gradients are those of the weights."""
    space = weights_space(tiny_settings.model, 101)
    gpt = GPT(tiny_settings.model, 101)
    network = WeightsNetwork(gpt, space, "0" * 64)
    tokens = torch.from_numpy(np.random.default_rng(1).integers(0, 101, (3, 16)))
    thetas, outcomes = [], []
    for seed in (1, 2):
        weights = random_weights(tiny_settings.model, 101, seed)
        thetas.append(torch.from_numpy(weights_theta(weights, space)).requires_grad_())
        plain = GPT(tiny_settings.model, 101)
        plain.load(weights)
        outcomes.append(AdaptedModel(plain, None).logits(plain.hidden(tokens)))
    models = [network.at(theta) for theta in thetas]
    for model, outcome in zip(models, outcomes, strict=True):
        assert torch.equal(model.logits(model.hidden(tokens)), outcome)
    loss = models[0].cross_entropy(models[0].hidden(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())
    loss.backward()
    direction = torch.randn(space.size, generator=torch.Generator().manual_seed(0)) / space.size**0.5
    slope = float(thetas[0].grad @ direction)
    ahead, behind = (network.at(thetas[0].detach() + sign * 0.05 * direction) for sign in (1.0, -1.0))
    losses = [
        float(m.cross_entropy(m.hidden(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())) for m in (ahead, behind)
    ]
    assert slope == pytest.approx((losses[0] - losses[1]) / 0.1, rel=0.02)
    assert float(gpt.weight("wte.weight").abs().max()) == 0.0


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"subspace": {"projection": "identity"}}, r"grid.budgets: with projection identity .* expected \[all\]"),
        ({"grid": {"budgets": ["all"]}}, r"all is the budget of projection identity; lora-kronecker_qr need numbers"),
        ({"grid": GRID["grid"] | {"budgets": [40, "all"]}}, r"found \[40, all\]"),
        (
            {"subspace": {"adapt": "weights"}, "grid": {"allocations": ["uniform", "learned"]}},
            "nothing to divide between A and B; expected uniform alone, found learned",
        ),
        (
            {"grid": {"trained": ["lora-qr"]}},
            "'lora-qr' is not <adapt>-<projection> of lora, weights, vectors, cores and",
        ),
        ({"training": {"learning_rates": {"lora-identity": 0.1}}}, "lora-identity is not in grid.trained"),
        (
            {"subspace": {"adapt": "weights"}, "training": {"keep_initialization": True}},
            "keep_initialization writes files of adapters",
        ),
        ({"grid": {"budgets": [0]}}, "expected a whole number of at least 1, or all, found 0"),
    ],
)
def test_settings_that_make_no_sense_together_are_refused(changes, expected):
    with pytest.raises(UserError, match=expected):
        settings_with(changes)


def test_a_number_as_the_budget_of_all_parameters_names_d(tiny_root):
    settings = settings_with(
        {"subspace": {"projection": "identity"}, "grid": {"budgets": ["all"], "allocations": ["uniform"]}}
    )
    with pytest.raises(UserError, match="maps 41 coordinates to .* parameters"):
        build_on(tiny_root, settings, config.RunSpec(budget=41, allocation="uniform", seed=1))
