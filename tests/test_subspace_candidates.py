"""Other trained parameters than LoRA matrices: cores between singular vectors, and gains and biases."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from base_samples import PRETRAINED, TRAINED, base_settings
from conftest import TINY, build_on, demo_values, merged, write_settings

from sublora import config
from sublora.models.adapted import AdaptedModel
from sublora.models.spaces import vectors_space
from sublora.models.weights import weight_shapes
from sublora.runs.base import load_base
from sublora.runs.bound import bound_run
from sublora.runs.decode import CertificateFiles, decode_certificate
from sublora.runs.message import read_message
from sublora.runs.networks import trained_parameters
from sublora.runs.score import score_run
from sublora.runs.train import train_run
from sublora.runs.verify.verify import verify_run
from sublora.subspace.cores import CORE_ROLE, singular_factors
from sublora.system.errors import UserError
from sublora.system.streams import generator

CPU = torch.device("cpu")
VOCABULARY = 257
UNIFORM = {"allocations": ["uniform"]}
TARGETS = ["query", "value", "mlp_in", "mlp_out", "head"]
CANDIDATES = {
    "cores": {"subspace": {"adapt": "cores"}, "lora": {"rank": 4, "targets": TARGETS}},
    "vectors": {"subspace": {"adapt": "vectors"}},
}
SIZES = {"cores": 9 * 16, "vectors": 2 * (4 * 16 + 3 * 16 + 16 + 4 * 16 + 16) + 2 * 16}
SPEC = config.RunSpec(budget=60, allocation="uniform", seed=1)


def settings_of(root: Path, candidate: str, **sections: dict) -> config.Settings:
    changes = merged({"grid": UNIFORM} | CANDIDATES[candidate], sections)
    return config.load_settings(write_settings(root, changes))


@pytest.fixture
def root(tiny_root, tmp_path) -> Path:
    shutil.copytree(tiny_root, tmp_path / "root")
    return tmp_path / "root"


@pytest.mark.parametrize("shape", [(12, 7), (7, 12), (9, 9)])
def test_factors_are_the_best_approximation_of_a_rank(shape):
    weight_OI = generator("weight").standard_normal(shape)
    factor_OR, vectors_RI = singular_factors(weight_OI, 3)
    left, values, right = np.linalg.svd(weight_OI)
    best_OI = (left[:, :3] * values[:3]) @ right[:3]
    # Both factors are rounded to 2^-14 of their scale.
    np.testing.assert_allclose(factor_OR @ vectors_RI, best_OI, atol=2e-3)
    np.testing.assert_allclose(vectors_RI @ vectors_RI.T, np.eye(3), atol=1e-3)
    assert np.array_equal(vectors_RI * 2**14, np.rint(vectors_RI * 2**14))


def test_factors_do_not_depend_on_the_signs_and_last_bits_of_a_decomposition(monkeypatch):
    """As on a machine with other linear algebra."""
    weight_OI = generator("weight").standard_normal((12, 7))
    honest, svd = singular_factors(weight_OI, 3), np.linalg.svd

    def other(matrix, full_matrices):
        left, values, right = svd(matrix, full_matrices=full_matrices)
        signs = np.array([-1.0, 1.0, -1.0, 1.0, -1.0, 1.0, -1.0])
        return left * signs * (1 + 1e-13), values, right * signs[:, None] * (1 - 1e-13)

    monkeypatch.setattr(np.linalg, "svd", other)
    for here, there in zip(honest, singular_factors(weight_OI, 3), strict=True):
        assert np.array_equal(here, there) and not np.signbit(here[here == 0.0]).any()


def test_the_cores_move_a_weight_between_its_largest_singular_vectors(root):
    settings = settings_of(root, "cores")
    run = build_on(root, settings, SPEC)
    assert run.subspace.shape.space.size == SIZES["cores"]
    assert {p.role for p in run.subspace.shape.space.parameters} == {CORE_ROLE}
    w = torch.randn(60, generator=torch.Generator().manual_seed(0))
    start, theta_D = run.subspace.origin_D, run.subspace.theta(w)
    for p in run.network.space.parameters:
        moved = (theta_D - start)[p.start : p.stop]
        assert bool(moved.any()) == (p.role == "B")
    model = run.network.at(theta_D)
    for group, target in (("0", "query"), ("1", "value"), ("0", "mlp_in"), ("1", "mlp_out"), ("head", "head")):
        down, up = model.adapters.pair(group, target)
        update, weight = (up @ down).double(), run.network.backbone.target_weight(group, target).double()
        left, _, right = torch.linalg.svd(weight)
        left, right = left[:, :4], right[:4]
        assert int(torch.linalg.matrix_rank(update, rtol=1e-3)) == 4
        torch.testing.assert_close(left @ left.T @ update @ right.T @ right, update, rtol=0.01, atol=1e-4)


@pytest.mark.parametrize("target", TARGETS)
def test_the_weight_of_a_target_is_the_one_that_its_adapter_changes(root, target):
    """An adapter (I, E) adds E to it: the same as a base whose weight is changed by E."""
    settings = settings_of(root, "cores")
    run = build_on(root, settings, SPEC)
    gpt, group = run.network.backbone, "head" if target == "head" else "1"
    weight = gpt.target_weight(group, target)
    change = 0.1 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(1))

    class One:
        def pair(self, one_group, one_target):
            return (torch.eye(weight.shape[1]), change) if (one_group, one_target) == (group, target) else None

    tokens = torch.arange(12).view(1, 12)
    adapted = AdaptedModel(gpt, One())
    hidden = adapted.hidden(tokens)
    if target == "head":
        found = adapted.differentiable_logits(hidden)
        expected = hidden @ (weight + change).T
    else:
        found = hidden
        weight += change  # a view of the base's own weight
        expected = gpt.hidden(tokens)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_only_gains_and_biases_move(root):
    settings = settings_of(root, "vectors")
    run = build_on(root, settings, SPEC)
    assert run.network.space.size == SIZES["vectors"] == vectors_space(settings.model, VOCABULARY).size
    base = load_base(settings, 1, VOCABULARY, root)
    model = run.network.at(run.subspace.theta(torch.ones(60)))
    for name, shape in weight_shapes(settings.model, VOCABULARY).items():
        same = torch.equal(model.backbone.weight(name), torch.from_numpy(base.weights[name]))
        assert same == (len(shape) > 1), name


@pytest.mark.parametrize("candidate", CANDIDATES)
def test_training_starts_from_the_base(root, candidate):
    settings = settings_of(root, candidate)
    run = build_on(root, settings, SPEC)
    plain = build_on(root, settings_of(root, candidate, subspace={"adapt": "lora"}), SPEC)
    tokens = torch.arange(12).view(1, 12)
    torch.testing.assert_close(run.base().hidden(tokens), plain.base().hidden(tokens))
    assert trained_parameters(settings, VOCABULARY) == run.subspace.shape.space.size == SIZES[candidate]


@pytest.mark.parametrize("budget", [60, "all"])
@pytest.mark.parametrize("candidate", CANDIDATES)
def test_a_run_is_trained_encoded_verified_and_decoded(root, candidate, budget):
    sections = {"grid": UNIFORM | {"budgets": [budget]}}
    if budget == "all":
        sections["subspace"] = {"projection": "identity"}
    settings = settings_of(root, candidate, **sections)
    spec = SPEC.model_copy(update={"budget": budget})
    out = root / "results/runs" / spec.name
    train_run(settings, spec, root=root, out=out)
    score_run(out, root=root)
    bound_run(out)
    verdict = verify_run(out, root=root)
    assert verdict.verified, verdict.wrong
    message = read_message(out / "certificate.bin")
    assert message.header.parameters == (SIZES[candidate] if budget == "all" else None)
    decoded = decode_certificate(CertificateFiles.of(out, root=root), CPU)
    assert float((decoded.theta_D - build_on(root, settings, spec).subspace.origin_D).abs().max()) > 0.0


@pytest.mark.parametrize(
    ("candidate", "sections", "expected"),
    [
        ("cores", {"grid": {"allocations": ["uniform", "learned"]}}, "nothing to divide between A and B"),
        ("vectors", {"grid": {"allocations": ["fixed-0.5"]}}, "nothing to divide between A and B"),
        ("cores", {"training": {"keep_initialization": True}}, "adapt cores has none"),
    ],
)
def test_settings_that_mean_nothing_for_a_candidate(tmp_path, candidate, sections, expected):
    with pytest.raises(UserError, match=expected):
        settings_of(tmp_path, candidate, **sections)


def test_cores_have_no_other_scales():
    with pytest.raises(UserError, match="singular values of the weights for scales"):
        base_settings(TRAINED, subspace={"adapt": "cores", "scale": "gradient(1)"}, grid=UNIFORM)


def test_vectors_need_a_network_of_this_library():
    values = merged(merged(demo_values(), TINY), {"grid": UNIFORM, "subspace": {"adapt": "vectors"}})
    model = {"kind": "huggingface", "n_layer": 2, "context_length": 16}
    with pytest.raises(UserError, match="adapt vectors needs model.kind gpt2, found huggingface"):
        config.parse_settings(values | {"base": PRETRAINED, "model": model}, source="tiny")


def test_a_core_larger_than_a_weight_is_refused(root):
    settings = settings_of(root, "cores", lora={"rank": 17})
    with pytest.raises(UserError, match="subspace.adapt cores: rank 17 exceeds that of a weight of shape"):
        build_on(root, settings, SPEC)


@pytest.mark.parametrize("candidate", CANDIDATES)
def test_a_budget_beyond_the_candidate_s_parameters_is_refused(root, candidate):
    settings = settings_of(root, candidate, grid=UNIFORM | {"budgets": [SIZES[candidate] + 1]})
    with pytest.raises(UserError, match=f"exceeds the {SIZES[candidate]} trained parameters"):
        build_on(root, settings, SPEC.model_copy(update={"budget": SIZES[candidate] + 1}))
