"""A bound that is anchored on the base, from the base's losses to the verdict, and what a prover may not do to it."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from attacks import Prover
from base_samples import TRAINED
from conftest import TINY, build_on, demo_values, merged
from scipy import stats

from sublora import config
from sublora.bounds.anchor import AnchoredMixture, FailureShare, base_bound, certified_gain_bits, excess_bound
from sublora.bounds.smoothing import DocumentMixture
from sublora.data.corpora.markov import MarkovSource
from sublora.data.dataset import TokenDataset
from sublora.data.prepare import prepare_all
from sublora.data.tokenizers import load_tokenizer
from sublora.losses.documents import score_documents
from sublora.runs.base import make_base
from sublora.runs.bound import bound_run
from sublora.runs.losses_file import read_losses
from sublora.runs.message import read_message
from sublora.runs.score import decoded_predictor, score_run
from sublora.runs.train import train_run
from sublora.runs.verify.verify import verify_run
from sublora.runs.yardsticks import make_yardsticks
from sublora.system.errors import UserError
from sublora.system.names import BASE_LOSSES_PATH
from sublora.yardsticks.record import read_yardsticks

SPEC = config.RunSpec(budget=40, allocation="learned", seed=1)
ANCHORED = {
    "base": TRAINED,
    "message": {"quantizer": "entropy", "extra_bits": 3.0},
    "scoring": {
        "anchor": "base",
        "anchor_k0": 12,
        "base_documents": 60,
        "documents": 50,
        "smoothing": ["document(2)", "document(4)", "document(8)"],
    },
    "bound": {"delta_base": 0.01, "delta_base_sample": 0.009, "delta_excess_sample": 0.036},
}


def write_anchored(root: Path, **sections: dict) -> Path:
    import yaml

    values = merged(merged(merged(demo_values(), TINY), ANCHORED | {"base": {}}), sections)
    path = root / "config" / "config.yaml"
    path.parent.mkdir(exist_ok=True, parents=True)
    path.write_text(yaml.safe_dump(values | {"base": TRAINED}), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def honest(tmp_path_factory) -> Path:
    """An experiment with one finished run that is anchored on a base trained for twelve steps."""
    root = tmp_path_factory.mktemp("anchored") / "root"
    config_path = write_anchored(root)
    settings = config.load_settings(config_path)
    prepare_all(settings, root)
    make_base(settings, root=root)
    make_yardsticks(settings, root=root)
    out = root / "results/runs" / SPEC.name
    train_run(settings, SPEC, root=root, out=out)
    score_run(out, config_path=config_path)
    bound_run(out, config_path=config_path)
    return root


@pytest.fixture
def prover(honest, tmp_path) -> Prover:
    return Prover.of(honest, tmp_path / "root", SPEC.name)


def differs_in(prover: Prover) -> str:
    verdict = verify_run(prover.path, root=prover.root)
    assert not verdict.verified
    return ", ".join(verdict.wrong)


def edit_arrays(prover: Prover, **changes) -> None:
    prover.edit_losses(lambda arrays: arrays.update({name: change(arrays[name]) for name, change in changes.items()}))


# The honest claim.


def test_the_record_is_the_sum_of_two_bounds_on_the_files_losses(honest):
    out = honest / "results/runs" / SPEC.name
    record, losses = json.loads((out / "bounds.json").read_text()), read_losses(out / "losses.npz").arrays
    message = read_message(out / "certificate.bin")
    mixture, population = message.mixture, (message.header.vocab_size, message.settings.data.min_tokens + 1)
    assert isinstance(mixture, AnchoredMixture) and mixture.k0 == 12
    n = message.header.n_units
    u_b = base_bound(
        losses["base_losses_bits"],
        mixture.anchor.loss_range_bits(*population),
        n=n,
        share=FailureShare(0.01, 0.009),
        picked_bits=3.0,
    )
    u_D = excess_bound(
        losses["excess_bits"],
        mixture.excess_range_bits(*population),
        n=n,
        code_bits=record["code_bits"],
        share=FailureShare(0.05 - 0.01, 0.036),
    )
    assert record["bound_value"] == u_b + u_D
    assert record["certified_gain_bits"] == certified_gain_bits(u_D, 12, population[1])
    assert record["bound_value"] < record["bound_all_runs"]
    assert record["bound_direct"] == record["bounds"]["betting_subsampled"]
    assert record["upper_bits"] == pytest.approx(mixture.loss_range_bits(*population).upper)


def test_the_bases_row_among_the_yardsticks_is_its_part_of_the_bound(honest):
    out, losses = honest / "results/runs" / SPEC.name, np.load(honest / BASE_LOSSES_PATH)
    record = json.loads((out / "bounds.json").read_text())
    (path,) = honest.glob("results/yardsticks.json")
    row = read_yardsticks(path, record["data_hash"]).rows["frozen_base"]
    assert row.bound_bits == record["anchor"]["base_bound"]
    assert row.empirical_loss_bits == record["anchor"]["base_loss"] == losses["base_losses_bits"].mean()
    assert (row.smoothing, row.n, row.m) == ("document(12)", record["n_units"], 60)
    assert (row.delta, row.delta_sample, row.code_bits_items) == (0.01, 0.009, {"extra": 3.0})
    # The loss on test documents is that of the anchor in losses.npz: the certified predictor's loss less its excess.
    own = read_losses(out / "losses.npz").arrays
    assert row.test_loss_bits == pytest.approx((own["test_losses_bits"] - own["test_excess_bits"]).mean(), rel=1e-9)
    lengths = TokenDataset.open(honest, config.load_settings(honest / "config/config.yaml").data).document_lengths(
        "val"
    )
    count = len(losses["val_log_p_nats"])
    assert row.val_loss_bits == pytest.approx(
        DocumentMixture(12).losses_bits(losses["val_log_p_nats"], lengths[:count] + 1, 257).mean(), rel=1e-9
    )


def test_losses_excesses_and_both_log_probabilities_agree(honest):
    out = honest / "results/runs" / SPEC.name
    losses, message = read_losses(out / "losses.npz").arrays, read_message(out / "certificate.bin")
    logs = losses["log_p_nats"], losses["base_log_p_nats"], losses["target_counts"], message.header.vocab_size
    np.testing.assert_allclose(losses["losses_bits"], message.mixture.losses_bits(*logs), rtol=1e-12)
    np.testing.assert_allclose(losses["excess_bits"], message.mixture.excess_bits(*logs), atol=1e-12)
    base = message.mixture.base_losses_bits(*logs[1:])
    np.testing.assert_allclose(losses["losses_bits"] - losses["excess_bits"], base, rtol=1e-9)


def test_an_honest_claim_is_verified_with_a_draw_of_the_verifiers_own_as_well(honest):
    from sublora.runs.verify.files import Options

    out = honest / "results/runs" / SPEC.name
    verdict = verify_run(out, root=honest, options=Options(redraw=40, nonce="mine"))
    assert verdict.verified, verdict.sentence()
    assert {"bound_value", "bound_direct", "bound_redraw"} <= verdict.bounds.keys()


@pytest.mark.slow
def test_the_true_risk_on_fresh_text_of_the_same_chain_is_below_the_sum(honest):
    """Base, excess and their sum on 2,000 new documents of the Markov chain, each with a 99 % interval."""
    out = honest / "results/runs" / SPEC.name
    record = json.loads((out / "bounds.json").read_text(encoding="utf-8"))
    message = read_message(out / "certificate.bin")
    settings = config.load_settings(honest / "config/config.yaml")
    run = build_on(honest, settings, SPEC)
    predictor = decoded_predictor(run, message)
    source = MarkovSource(settings.data.corpus)
    tokens = load_tokenizer(settings.data.tokenizer).encode_batch(source.fresh_documents(2000, 1))
    scores, of_base = (
        score_documents(model, tokens, run.scoring_rule, run.device) for model in (predictor.model, predictor.base)
    )
    logs = scores.document_log_p_D(), of_base.document_log_p_D(), scores.counts_D, run.dataset.vocab_size
    excess, losses = message.mixture.excess_bits(*logs), message.mixture.losses_bits(*logs)
    highs = [stats.t.interval(0.99, len(v) - 1, v.mean(), stats.sem(v))[1] for v in (losses - excess, excess, losses)]
    anchor = record["anchor"]
    for high, bound in zip(highs, (anchor["base_bound"], anchor["excess_bound"], record["bound_value"]), strict=True):
        assert high < bound
    assert losses.mean() > source.entropy_rate_bits


@pytest.mark.parametrize("scoring", [{"documents": "all"}, {"base_documents": "all"}])
def test_a_verifiers_own_draw_has_its_part_of_delta_where_the_settings_drew_nothing(honest, tmp_path, scoring):
    from sublora.runs.verify.files import Options

    root = tmp_path / "root"
    shutil.copytree(honest, root)
    config_path, out = write_anchored(root, scoring=ANCHORED["scoring"] | scoring), root / "results/runs" / SPEC.name
    settings = config.load_settings(config_path)
    make_yardsticks(settings, root=root)
    # The objective of training depends on how many documents are scored.
    shutil.rmtree(out)
    train_run(settings, SPEC, root=root, out=out)
    score_run(out, config_path=config_path)
    bound_run(out, config_path=config_path)
    verdict = verify_run(out, root=root, options=Options(redraw=40, nonce="mine"))
    assert verdict.verified, verdict.sentence()
    assert verdict.bounds["bound_redraw"] > verdict.bounds["bound_value"]


def test_the_base_that_the_reader_expects(honest):
    from sublora.runs.verify.files import Options

    out = honest / "results/runs" / SPEC.name
    sha256 = read_message(out / "certificate.bin").header.base_sha256
    assert any(sha256[:12] in text and "--redraw" in text for text in verify_run(out, root=honest).trusted)
    assert verify_run(out, root=honest, options=Options(base_sha256=sha256)).verified
    assert verify_run(out, root=honest, options=Options(base_sha256="0" * 64)).wrong == ["base that was asked for"]
    with pytest.raises(UserError, match="--base-sha256 abc: expected 64 hexadecimal digits"):
        Options(base_sha256="abc")


def test_the_draw_of_the_base_depends_on_nothing_of_a_run(honest, tmp_path):
    """Another smoothing grid and another m: the same documents of the base, scored once."""
    root = tmp_path / "root"
    shutil.copytree(honest, root)
    before = np.load(root / BASE_LOSSES_PATH)["base_indices"]
    config_path = write_anchored(root, scoring=ANCHORED["scoring"] | {"documents": 30, "smoothing": ["document(6)"]})
    make_yardsticks(config.load_settings(config_path), root=root)
    np.testing.assert_array_equal(np.load(root / BASE_LOSSES_PATH)["base_indices"], before)


# Single runs: what is missing or foreign is said in one line.


def test_without_the_bases_losses_scoring_names_the_command(prover):
    (prover.root / BASE_LOSSES_PATH).unlink()
    with pytest.raises(UserError, match=r"base_losses\.npz: no such file; .* run `sublora yardsticks --config FILE`"):
        score_run(prover.path, config_path=prover.root / "config/config.yaml")


def test_losses_of_another_draw_of_the_base_are_refused(prover):
    config_path = write_anchored(prover.root, scoring=ANCHORED["scoring"] | {"base_documents": 61})
    with pytest.raises(UserError, match=r"losses of a base with documents 60, this run has 61; compute them again"):
        score_run(prover.path, config_path=config_path)


def test_damaged_losses_of_the_base_are_one_line(prover):
    path = prover.root / BASE_LOSSES_PATH
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"base_losses\.npz: damaged \(.*compute them again"):
        score_run(prover.path, config_path=prover.root / "config/config.yaml")


# Settings.


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"scoring": {"smoothing": ["document(4)", "token(0.1)"]}}, r"takes document\(k\) alone.* token\(0\.1\)"),
        ({"scoring": {"anchor_k0": None}}, r"needs scoring\.anchor_k0 \(or set scoring\.anchor to guessing\)"),
        ({"bound": {"delta_base": 0.05}}, r"delta_base 0\.05 must be smaller than delta 0\.05"),
        (
            {"bound": {"delta_excess_sample": 0.04}},
            r"delta_excess_sample 0\.04 must be smaller than delta - delta_base",
        ),
        ({"bound": {"delta_base_sample": 0.01}}, r"delta_base_sample 0\.01 must be smaller than delta_base"),
    ],
)
def test_settings_that_do_not_fit_an_anchor(tmp_path, changes, line):
    sections = {name: ANCHORED[name] | keys for name, keys in changes.items()}
    with pytest.raises(UserError, match=line):
        config.load_settings(write_anchored(tmp_path, **sections))


def test_a_random_base_has_no_anchor(tmp_path):
    values = merged(merged(demo_values(), TINY), {"scoring": {"anchor": "base"}})
    with pytest.raises(UserError, match=r"scoring\.anchor base needs a base that is not random"):
        config.parse_settings(values, source="here")
    values["scoring"]["anchor"] = None
    assert not config.parse_settings(values, source="here").anchors_on_the_base


# Attacks.


def test_lowered_losses_of_the_base_are_refused(prover):
    edit_arrays(prover, base_losses_bits=lambda values: values - 0.1)
    prover.bound()
    assert "largest difference in base_losses_bits" in differs_in(prover)


def test_lowered_log_probabilities_of_the_base_are_refused(prover):
    """The excess looks better where the base looks worse."""
    edit_arrays(prover, base_log_p_nats=lambda values: values - 5.0, excess_bits=lambda values: values - 0.2)
    prover.bound()
    assert "largest difference in base_log_p_nats" in differs_in(prover)


def test_other_documents_of_the_base_are_refused(prover):
    edit_arrays(prover, base_indices=lambda values: np.sort(values))
    prover.bound()
    assert "documents scored for the base" in differs_in(prover)


def test_an_excess_that_is_clipped_from_above_is_refused(prover):
    edit_arrays(prover, excess_bits=lambda values: np.minimum(values, np.median(values) - 0.01))
    prover.bound()
    assert "largest difference in excess_bits" in differs_in(prover)


def test_a_lowered_sum_or_gain_in_the_record_is_refused(prover):
    prover.edit_claim(lambda claim: claim.update(bound_value=claim["bound_value"] - 0.01))
    assert "bound_value" in differs_in(prover)
    prover.bound()
    prover.edit_claim(lambda claim: claim.update(certified_gain_bits=claim["certified_gain_bits"] + 0.01))
    assert "certified_gain_bits" in differs_in(prover)
    prover.bound()
    prover.edit_claim(lambda claim: claim["anchor"].update(base_bound=claim["anchor"]["base_bound"] - 0.01))
    assert "anchor.base_bound" in differs_in(prover)


@pytest.mark.parametrize(("key", "value"), [("anchor_k0", 3), ("anchor", "guessing")])
def test_an_anchor_that_was_changed_after_the_fact_is_refused(prover, key, value):
    """Another k0, or none, is another predictor with another draw."""
    prover.reseal(lambda header: header["settings"]["scoring"].update({key: value}))
    try:
        prover.bound()
        assert differs_in(prover)
    except UserError as error:
        assert "losses.npz" in str(error)


def test_parts_of_delta_that_were_changed_after_the_fact_are_a_premise_and_have_no_strict_bound(prover):
    prover.reseal(lambda header: header["settings"]["bound"].update(delta_base=0.0125))
    claim = prover.bound()
    assert claim["bound_strict"] is None and "bound.delta_base is 0.0125" in claim["bound_strict_absent"]
    verdict = verify_run(prover.path, root=prover.root)
    assert verdict.premises["bound.delta_base"] == 0.0125


def test_the_settings_that_the_reader_expects_include_the_parts_of_delta(prover):
    from sublora.runs.verify.files import Options

    expected = write_anchored(prover.root / "mine", bound=ANCHORED["bound"] | {"delta_base": 0.011})
    verdict = verify_run(prover.path, root=prover.root, options=Options(config_path=expected))
    assert "settings: bound.delta_base" in verdict.wrong


def test_the_adapted_network_itself_as_anchor_is_another_base(prover):
    """base.safetensors with changed weights does not hash to what the certificate names."""
    from safetensors.numpy import load_file, save_file

    path = prover.root / "results/base/base.safetensors"
    tensors = load_file(path)
    name = sorted(tensors)[0]
    tensors[name] = tensors[name] + 0.01
    save_file(tensors, path)
    assert "base weights" in differs_in(prover)
