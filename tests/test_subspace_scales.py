"""Scales of a subspace: from the base's gradients to the verdict, and what a prover may not do with them."""

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from attacks import Prover
from base_samples import TRAINED, base_settings
from conftest import TINY, build_on, demo_values, merged

from sublora import config
from sublora.config.marks import differing_keys
from sublora.data.base_and_target import base_data, open_target
from sublora.data.dataset import TokenDataset
from sublora.data.prepare import prepare_all
from sublora.runs.base import load_base, make_base
from sublora.runs.bound import bound_run
from sublora.runs.message import read_message
from sublora.runs.networks import make_network
from sublora.runs.scales import load_scale_points, make_scales, measured_points
from sublora.runs.score import score_run
from sublora.runs.train import train_run
from sublora.runs.verify.files import Claim
from sublora.runs.verify.verify import verify_claim
from sublora.subspace.allocations import parse_allocation
from sublora.subspace.hashes import projection_sha256
from sublora.subspace.parameters import ParameterSpace
from sublora.subspace.scales import (
    agree,
    entry_scales,
    gradient_points,
    parse_scale,
    rounded_points,
    scales_of_points,
)
from sublora.subspace.subspace import Subspace, SubspaceShape
from sublora.system.errors import UserError
from sublora.system.names import SCALES_PATH
from sublora.system.streams import generator

SPACE = ParameterSpace.of([("A", (2, 5), "0", "A"), ("B", (4, 2), "0", "B")])
SCALE = "gradient(-0.5)"
CPU = torch.device("cpu")
SPEC = config.RunSpec(budget=40, allocation="learned", seed=1)
SCALES_DIFFER = "scales are those of the base's gradients"


# The arithmetic


@pytest.mark.parametrize("kind", ["gradient", "fisher"])
def test_scales_are_powers_of_the_gradients_with_mean_square_1(kind):
    """Per matrix g^a; per row along the longer side F^a, that is g^(2a)."""
    squares_D = generator("squares").exponential(size=SPACE.size) * 1e-3
    points = gradient_points(squares_D, SPACE, kind)
    found_D = entry_scales(SPACE, scales_of_points(points, parse_scale(f"{kind}(-0.5)")))
    a, b = squares_D[:10].reshape(2, 5), squares_D[10:].reshape(4, 2)
    if kind == "gradient":
        wanted = [np.full(10, a.mean() ** -0.25), np.full(8, b.mean() ** -0.25)]
    else:
        wanted = [np.tile(a.mean(0) ** -0.5, 2), np.repeat(b.mean(1) ** -0.5, 2)]
    wanted_D = np.concatenate(wanted)
    np.testing.assert_allclose(found_D, wanted_D / np.sqrt(np.mean(wanted_D**2)), rtol=1e-6)
    assert np.mean(np.square(found_D, dtype=np.float64)) == pytest.approx(1.0, abs=1e-6)
    # On the grid a scale is off by a sixteenth of an octave at most, before both are normalized.
    rounded_D = entry_scales(SPACE, scales_of_points(rounded_points(points), parse_scale(f"{kind}(-0.5)")))
    assert np.abs(np.log2(rounded_D / found_D)).max() <= 2 * 2 * 0.5 / 16


def test_points_agree_with_gradients_that_round_otherwise_and_with_no_others():
    points = rounded_points({"A": [3.497], "B": [-1.2]})
    assert agree(points, {"A": [3.505], "B": [-1.2]})
    assert not agree(points, {"A": [3.52], "B": [-1.2]})
    assert not agree(points, {"A": [3.497]}) and not agree(points, {"A": [3.497, 3.497], "B": [-1.2]})


def test_a_parameter_without_gradient_has_a_scale():
    squares_D = np.concatenate([np.full(10, 1e-4), np.zeros(8)])
    points = rounded_points(gradient_points(squares_D, SPACE, "gradient"))
    assert points["A"][0] - points["B"][0] == 8 * 20
    assert np.isfinite(entry_scales(SPACE, scales_of_points(points, parse_scale("gradient(2)")))).all()
    with pytest.raises(ValueError, match="expected a positive number"):
        gradient_points(np.zeros(SPACE.size), SPACE, "gradient")


@pytest.mark.parametrize(
    ("scales", "expected"),
    [
        ({"A": [1.0]}, "'B' has no scale"),
        ({"A": [1.0], "B": [1.0], "C": [1.0]}, "'C' is not a trained parameter"),
        ({"A": [1.0, 2.0], "B": [1.0]}, r"'A' of shape \(2, 5\) has 2, expected 1 or 5"),
        ({"A": [1.0], "B": [0.0]}, "must be positive"),
        ({"A": [math.inf], "B": [1.0]}, "must be positive"),
        ({"A": [1e-300], "B": [1.0]}, "more than float32 can hold"),
    ],
)
def test_scales_that_do_not_fit_are_refused(scales, expected):
    with pytest.raises(ValueError, match=expected):
        entry_scales(SPACE, scales)


@pytest.mark.parametrize(
    "text", ["gradient(0)", "gradient(3)", "gradient()", "gradient(nan)", "gradient", "entry(1)", ""]
)
def test_names_that_are_none(text):
    with pytest.raises(ValueError, match=r"expected gradient\(a\) or fisher\(a\)"):
        parse_scale(text)


def test_a_scale_has_one_spelling():
    assert {str(parse_scale(text)) for text in ("gradient(-0.5)", " gradient( -.50 ) ", "gradient(-5e-1)")} == {SCALE}


# The subspace


def subspace_of(scale_D: np.ndarray | None, allocation: str = "learned") -> Subspace:
    shape = SubspaceShape(SPACE, parse_allocation(allocation), 6, scale_D=scale_D)
    theta_D = generator("theta").standard_normal(SPACE.size).astype(np.float32)
    return Subspace(shape, theta_D, lambda name: generator(1, name))


@pytest.mark.parametrize("allocation", ["uniform", "fixed-0.5", "learned"])
def test_theta_is_scaled_entry_by_entry_with_its_gradients(allocation):
    scale_D = entry_scales(SPACE, {"A": [3.0], "B": [1.0, 0.1, 2.0, 5.0]})
    plain, scaled = subspace_of(None, allocation).double(), subspace_of(scale_D, allocation).double()
    w = torch.randn(6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for width in (0.0, 1.5):
        moved = plain.theta(w, plain.masks(width)) - plain.origin_D
        theta = scaled.theta(w, scaled.masks(width))
        torch.testing.assert_close(theta - scaled.origin_D, moved * torch.from_numpy(scale_D).double())
    # In w and in the gates, by finite differences.
    assert torch.autograd.gradcheck(lambda w: scaled.theta(w, scaled.masks(1.5)), w.requires_grad_())
    for gate in scaled.gating_params.values():

        def theta_of(logit: torch.Tensor, gate: torch.Tensor = gate) -> torch.Tensor:
            gate.data.copy_(logit.detach())
            share = torch.sigmoid(logit)[None]
            masks = torch.sigmoid((share * 6 - torch.arange(6) - 0.5) / 1.5)[None]
            return scaled.theta(w.detach(), masks)

        assert torch.autograd.gradcheck(theta_of, torch.zeros((), dtype=torch.float64, requires_grad=True))


def test_the_hash_of_the_projection_covers_the_scales():
    ones, other = np.ones(SPACE.size, dtype=np.float32), np.ones(SPACE.size, dtype=np.float32)
    other[3] += np.float32(1e-6)
    plain, same, changed = (projection_sha256(subspace_of(each)) for each in (None, ones, other))
    assert plain == same != changed


def test_scales_are_no_part_of_the_state():
    scaled = subspace_of(np.ones(SPACE.size, dtype=np.float32))
    assert scaled.state_dict().keys() == subspace_of(None).state_dict().keys()


# Settings


def test_without_scales_settings_are_as_before_there_were_any(tiny_settings):
    """Whether or not the key is given: the same plain values, from which digests and certificates follow."""
    values = tiny_settings.model_dump(mode="json")
    assert "scale" not in values["subspace"]
    given = config.parse_settings(merged(values, {"subspace": {"scale": None}}), source="given")
    assert given.model_dump(mode="json") == values
    for stage in ("base", "train", "score", "yardsticks", "bound"):
        assert "scale" not in json.dumps(config.stage_settings(given, stage))


def test_scales_are_charged_in_both_directions():
    plain = base_settings(TRAINED)
    scaled = base_settings(TRAINED, subspace={"scale": SCALE})
    assert differing_keys(scaled, plain) == differing_keys(plain, scaled) == ["subspace.scale"]
    assert config.stage_settings(scaled, "train")["subspace"]["scale"] == SCALE
    assert config.stage_settings(scaled, "base") == config.stage_settings(plain, "base")


@pytest.mark.parametrize(
    ("sections", "expected"),
    [
        ({}, "needs base.kind trained, found random"),
        ({"base": TRAINED, "grid": {"trained": ["lora-kronecker_qr"]}}, "grid.trained compares"),
    ],
)
def test_settings_that_have_no_scales(sections, expected):
    values = merged(merged(demo_values(), TINY), {"subspace": {"scale": SCALE}})
    base = {"base": sections.get("base", values["base"])}
    grid = {"grid": values["grid"] | sections.get("grid", {})}
    with pytest.raises(UserError, match=expected):
        config.parse_settings(values | base | grid, source="tiny")


# From the base to the verdict


def settings_of(scale: str | None = SCALE, **sections: dict) -> config.Settings:
    changes = {"subspace": {"scale": scale}, "message": {"quantizer": "plain"}}
    return base_settings(TRAINED, **changes | sections)


@pytest.fixture(scope="module")
def honest(tmp_path_factory) -> Path:
    """A finished run with scales on a base that was trained for twelve steps."""
    import yaml

    root, settings = tmp_path_factory.mktemp("scales") / "root", settings_of()
    (root / "config").mkdir(parents=True)
    path = root / "config/config.yaml"
    path.write_text(yaml.safe_dump(settings.model_dump(mode="json")), encoding="utf-8")
    prepare_all(settings, root)
    make_base(settings, root=root)
    assert make_scales(settings, root=root) == root / SCALES_PATH
    out = root / "results/runs" / SPEC.name
    train_run(settings, SPEC, root=root, out=out)
    score_run(out, config_path=path)
    bound_run(out, config_path=path)
    return root


@pytest.fixture
def prover(honest, tmp_path) -> Prover:
    return Prover.of(honest, tmp_path / "root", SPEC.name)


def test_gradients_are_those_of_finite_differences(honest):
    """The mean square over batches and starts of d loss / d theta, for one entry of an A and one of a B."""
    settings = settings_of()
    dataset = TokenDataset.open(honest, base_data(settings))
    base = load_base(settings, 1, dataset.vocab_size, honest)
    from sublora.losses.windows import ChunkSampler

    sampler = ChunkSampler(dataset.tokens("train"), settings.model.context_length, 4, "scales")
    squares: dict[str, list[float]] = {}
    for start in range(8):
        network, start_D = make_network(settings, base, vocab_size=dataset.vocab_size, seed=start, device=CPU)
        noise_D = generator("scales", "theta", start).standard_normal(len(start_D), dtype=np.float32)
        theta_D = torch.from_numpy(start_D + np.float32(0.01) * noise_D)
        for batch in range(8):
            inputs, targets = (torch.from_numpy(each) for each in sampler.batch(8 * start + batch))

            def loss_at(theta_D, network=network, inputs=inputs, targets=targets):
                model = network.at(theta_D)
                return model.cross_entropy(model.hidden(inputs).flatten(0, 1), targets.flatten())

            for p in network.space.parameters[:1] + network.space.parameters[-1:]:
                direction_D = torch.zeros_like(theta_D)
                direction_D[p.start : p.stop] = torch.randn(
                    p.stop - p.start, generator=torch.Generator().manual_seed(batch + 100 * start)
                )
                slope = (loss_at(theta_D + 0.01 * direction_D) - loss_at(theta_D - 0.01 * direction_D)) / 0.02
                # E (gradient . N(0, 1))^2 is the sum of squares, so the mean over many is near it.
                squares.setdefault(p.name, []).append(float(slope) ** 2 / (p.stop - p.start))
    measured = measured_points(settings, base, dataset, CPU)
    for name, values in squares.items():
        # 64 draws of one degree of freedom: a standard deviation of 0.26 octaves of g^2, 1.0 points.
        assert measured[name][0] == pytest.approx(4 * math.log2(np.mean(values)), abs=4.0)


def test_scales_of_all_runs_are_the_same_whatever_their_seed_budget_and_exponent(honest):
    settings, points = settings_of(), load_scale_points(settings_of(), honest)
    assert load_scale_points(settings_of("gradient(0.25)"), honest) == points
    found = []
    for spec in (SPEC, SPEC.model_copy(update={"seed": 2, "budget": 60, "allocation": "uniform"})):
        subspace = build_on(honest, settings, spec).subspace
        found.append(subspace.scale_D)
        assert float(subspace.scale_D.double().square().mean()) == pytest.approx(1.0, abs=1e-6)
    assert torch.equal(*found) and len(found[0].unique()) > 1
    assert load_scale_points(settings_of(None), honest) is None


def test_no_document_of_the_target_reaches_the_scales(honest, tmp_path):
    """They are computed where the target's data are not."""
    root = tmp_path / "root"
    shutil.copytree(honest, root)
    before = (root / SCALES_PATH).read_bytes()
    shutil.rmtree(root / "data" / settings_of().data.name)
    make_scales(settings_of(), root=root)
    assert (root / SCALES_PATH).read_bytes() == before


@pytest.mark.parametrize(
    ("sections", "key"),
    [
        ({"lora": {"rank": 1}}, "rank"),
        ({"lora": {"alpha": 4.0}}, "alpha"),
        ({"lora": {"init": "both_random"}}, "init"),
        ({"subspace": {"scale": "fisher(-0.25)"}}, "kind"),
    ],
)
def test_scales_of_other_parameters_are_refused(honest, sections, key):
    settings = base_settings(TRAINED, **{"subspace": {"scale": SCALE}} | sections)
    with pytest.raises(UserError, match=rf"scales.json: computed with {key} .*sublora scales --config"):
        load_scale_points(settings, honest)


@pytest.mark.parametrize("damage", [None, "[]", '{"format": 0}', '{"format": 1, "of": 3}', "points"])
def test_a_missing_or_damaged_file_of_scales(honest, tmp_path, damage):
    root = tmp_path / "root"
    shutil.copytree(honest, root)
    path = root / SCALES_PATH
    value = json.loads(path.read_text(encoding="utf-8")) | {"points": {"0.query.lora_A": [1.5]}}
    path.unlink()
    if damage is not None:
        path.write_text(json.dumps(value) if damage == "points" else damage, encoding="utf-8")
    with pytest.raises(UserError, match=r"scales.json.*sublora scales --config"):
        load_scale_points(settings_of(), root)


@pytest.mark.parametrize(("scale", "adapt"), [("fisher(-0.25)", "lora"), ("gradient(0.5)", "vectors")])
def test_other_scales_are_trained_and_verified(honest, tmp_path, scale, adapt):
    """One for each input of an A and output of a B; one for each gain and bias vector."""
    root = tmp_path / "root"
    shutil.copytree(honest, root)
    settings = settings_of(None, subspace={"scale": scale, "adapt": adapt}, grid={"allocations": ["uniform"]})
    make_scales(settings, root=root)
    network, _ = make_network(settings, load_base(settings, 1, 257, root), vocab_size=257, seed=1, device=CPU)
    points = load_scale_points(settings, root)
    rows = {p.name: max(p.shape) if scale.startswith("fisher") else 1 for p in network.space.parameters}
    assert {name: len(each) for name, each in points.items()} == rows
    out = root / "results/runs/d60_uniform_seed1"
    train_run(settings, SPEC.model_copy(update={"budget": 60, "allocation": "uniform"}), root=root, out=out)
    score_run(out, root=root)
    bound_run(out)
    verdict = verify_claim(Claim.of(out, root=root))
    assert verdict.verified, verdict.wrong


def test_an_honest_claim_is_verified_and_the_certificate_suffices(prover):
    verdict = prover.verdict()
    assert verdict.verified, verdict.wrong
    assert SCALES_DIFFER in [check.name for check in verdict.checks]
    assert verdict.premises["subspace.scale"] == SCALE
    # The file of scales is for trainings; certificates hold what they need of it.
    (prover.root / SCALES_PATH).unlink()
    assert prover.verdict().verified


def test_a_checkpoint_of_other_scales_is_refused(honest, tmp_path):
    root = tmp_path / "root"
    shutil.copytree(honest, root)
    path = root / SCALES_PATH
    value = json.loads(path.read_text(encoding="utf-8"))
    value["points"]["head.head.lora_B"][0] += 1
    path.write_text(json.dumps(value), encoding="utf-8")
    with pytest.raises(UserError, match="trained with other scales of the subspace"):
        score_run(root / "results/runs" / SPEC.name, root=root)


# Attacks


def tuned(prover: Prover) -> None:
    """Scales chosen on the n documents: the points of a certificate that was trained with them, and its own file."""
    path = prover.root / SCALES_PATH
    value = json.loads(path.read_text(encoding="utf-8"))
    settings = settings_of()
    target = open_target(settings, prover.root)
    base = load_base(settings, 1, target.vocab_size, prover.root)
    points = rounded_points(measured_points(settings, base, target, CPU))
    assert points != {name: tuple(each) for name, each in value["points"].items()}
    path.write_text(json.dumps(value | {"points": points}), encoding="utf-8")
    shutil.rmtree(prover.path)
    train_run(settings, SPEC, root=prover.root, out=prover.path)
    score_run(prover.path, root=prover.root)
    bound_run(prover.path)


def test_scales_that_were_tuned_on_the_documents_are_refused_or_named(prover):
    tuned(prover)
    verdict = prover.verdict()
    assert verdict.wrong == [SCALES_DIFFER]
    # Without the base's corpus nobody can tell: then the verdict names what it trusts.
    shutil.rmtree(prover.root / "data" / TRAINED["name"])
    verdict = prover.verdict()
    assert verdict.verified and any("not tuned on the n documents" in text for text in verdict.trusted)


def test_points_of_the_header_changed(prover):
    """By one step for one matrix: another predictor than the hashes name."""
    prover.reseal(lambda header: header["scale_points"]["head.head.lora_B"].__setitem__(0, 0))
    prover.bound()
    prover.refused("projection")


@pytest.mark.parametrize(
    ("edit", "expected"),
    [
        (lambda header: header.pop("scale_points"), "scale_points is missing"),
        (lambda header: header["settings"]["subspace"].pop("scale"), "scale_points is there"),
        (lambda header: header["scale_points"].pop("head.head.lora_B"), "'head.head.lora_B' has no scale"),
        (lambda header: header["scale_points"].update({"head.head.lora_B": [1, 2]}), "has 2, expected 1 or"),
        (lambda header: header["scale_points"].update({"head.head.lora_B": [10**6]}), "scale_points"),
    ],
)
def test_points_that_fit_no_network(prover, edit, expected):
    prover.reseal(edit)
    with pytest.raises(UserError, match=expected):
        prover.bound()
        prover.verdict()


def test_another_exponent_is_another_map(prover):
    prover.set(subspace={"scale": "gradient(-0.25)"})
    prover.bound()
    prover.refused("projection")


def test_the_header_of_a_run_without_scales_has_none(honest, tmp_path):
    root, settings = tmp_path / "root", settings_of(None)
    shutil.copytree(honest, root)
    out = root / "results/runs/d60_uniform_seed1"
    train_run(settings, SPEC.model_copy(update={"budget": 60, "allocation": "uniform"}), root=root, out=out)
    score_run(out, root=root)
    header = read_message(out / "certificate.bin").header
    assert "scale_points" not in header.model_dump(exclude_unset=True) and "scale" not in header.settings["subspace"]
