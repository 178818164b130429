"""Every way we know to make a claim say more than it proves: each is refused, or is a premise that the verdict shows.

Here the data, the run, the losses and the settings; what is written into the files themselves is in
test_attacks_files.py. The table in docs/studies/attacks.md names these tests.
"""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from attacks import OTHER_RUN, RUN, Prover, honest_runs, lucky

from sublora.config.marks import charged_keys
from sublora.runs.bound import read_losses
from sublora.runs.verify.checks import LOSS_TOLERANCE_BITS
from sublora.runs.verify.files import Claim
from sublora.runs.verify.verify import verify_and_print
from sublora.system.errors import UserError


@pytest.fixture(scope="module")
def honest(honest_root, tmp_path_factory) -> Path:
    return honest_runs(honest_root, tmp_path_factory.mktemp("attacks") / "root")


@pytest.fixture
def prover(honest, tmp_path) -> Prover:
    return Prover.of(honest, tmp_path / "root", RUN)


def test_honest_claims_are_verified(prover):
    for options in ({}, {"config_path": prover.expected}, {"device": "cpu", "redraw": 60, "nonce": "x"}):
        verdict = prover.verdict(**options)
        assert verdict.verified, verdict.wrong
        assert verdict.bounds["bound_value"] == pytest.approx(prover.claim()["bound_value"], abs=1e-9)


# The data


def test_documents_cut_where_no_end_of_text_is(prover):
    """n grows from 240 to some 950, and the bound falls."""
    before = prover.claim()["bound_value"]
    tokens = prover.tokens("train")
    prover.rewrite_data(ends=np.append(np.arange(20, len(tokens) - 2, 20), len(tokens) - 1))
    prover.score()
    assert prover.bound()["bound_value"] < before - 0.05
    prover.refused("documents end where the end-of-text tokens are", "training documents, from the tokens")


def test_documents_stored_many_times(prover):
    before = prover.claim()["bound_value"]
    prover.rewrite_data(train=np.tile(prover.tokens("train"), 20))
    prover.score()
    assert prover.bound()["bound_value"] < before - 0.1
    prover.refused("a document that occurs twice")


@pytest.mark.parametrize("split", ["val", "test"])
def test_a_document_in_two_splits(prover, split):
    tokens = prover.tokens("train")
    prover.rewrite_data(**{split: np.append(prover.tokens(split), tokens[: np.argmax(tokens == 256) + 1])})
    prover.score()
    prover.bound()
    prover.refused("a document that occurs twice")


def test_n_edited_with_the_data_untouched(prover):
    prover.reseal(lambda header: header.update(n_documents=240_000))
    prover.bound()
    prover.refused("training documents, from the tokens")
    honest = prover.claim()["bound_value"]
    prover.reseal(lambda header: header.update(n_documents=240, n_units=240_000))
    assert prover.bound()["bound_value"] < honest
    prover.refused("training units n")


def test_tokens_outside_the_vocabulary_or_behind_the_last_document(prover):
    tokens = prover.tokens("test")
    tokens[3] = 300
    prover.rewrite_data(test=tokens)
    prover.refused("test tokens below V")
    prover.rewrite_data(test=prover.tokens("val")[:-1])
    prover.refused("test tokens after the last end-of-text")


def test_vocabulary_lowered_in_the_header(prover):
    before = prover.claim()["bound_value"]
    prover.reseal(lambda header: header.update(vocab_size=230))
    assert prover.bound()["bound_value"] < before
    prover.refused("vocabulary size V")


def test_min_tokens_raised_without_the_data(prover):
    """A narrower range for documents that are not there."""
    before = prover.claim()["bound_value"]
    raised = {"min_tokens": 80, "corpus": prover.settings.data.corpus.model_dump() | {"min_length": 80}}
    prover.set(data=raised)
    assert prover.bound()["bound_value"] < before
    with pytest.raises(UserError, match=r"made with data\.corpus .*, the settings say"):
        prover.verdict()
    meta = json.loads((prover.data / "meta.json").read_text())
    meta["settings"] |= raised
    (prover.data / "meta.json").write_text(json.dumps(meta))
    with pytest.raises(UserError, match=r"expected at least data\.min_tokens 80"):
        prover.verdict()


def test_an_empty_held_out_document(prover):
    """Opening a dataset looks at the lengths of its train documents alone."""
    prover.rewrite_data(test=np.concatenate([prover.tokens("test"), [256]]))
    prover.refused("test documents have min_tokens 1 or more")


# Whose claim it is


def test_a_grid_that_the_run_is_not_in(prover):
    """No bits for the arm."""
    grid = {"budgets": [60], "allocations": ["uniform"], "seeds": [2]}
    prover.set(grid=grid)
    assert prover.bound()["code_items"]["arm"] == 0
    prover.refused("the run is one of its own grid")


def test_the_files_of_another_run(prover):
    for name in ("certificate.bin", "losses.npz", "bounds.json"):
        shutil.copy(prover.root / "results/runs" / OTHER_RUN / name, prover.path / name)
    prover.refused("run that the folder is named after")


@pytest.mark.parametrize("name", ["certificate.bin", "losses.npz", "bounds.json"])
def test_a_file_of_another_run(prover, name):
    shutil.copy(prover.root / "results/runs" / OTHER_RUN / name, prover.path / name)
    prover.refused()


@pytest.mark.parametrize("seed", [2, 7])
def test_the_seed_of_another_run(prover, seed):
    prover.reseal(lambda header: header["run"].update(seed=seed))
    prover.bound()
    prover.refused("run that the folder is named after")
    shutil.move(prover.path, prover.path.parent / "mailed")
    moved = Prover(prover.root, "mailed")
    moved.refused("base weights" if seed == 2 else "the run is one of its own grid")


@pytest.mark.parametrize(
    ("key", "reason"),
    [
        ("base_sha256", "base weights"),
        ("lora_init_sha256", "LoRA initialization"),
        ("projection_sha256", "projection"),
        ("data_hash", "data hash"),
    ],
)
def test_hashes_in_the_header(prover, key, reason):
    """Another hash would be another draw."""
    prover.reseal(lambda header: header.update({key: "0" * 64}))
    prover.bound()
    prover.refused(reason)


@pytest.mark.parametrize(
    ("sections", "reason"),
    [
        ({"subspace": {"projection_seed": 138}}, "projection"),
        ({"model": {"init_std": 0.06}}, "base weights"),
        ({"lora": {"init": "both_random"}}, "LoRA initialization"),
    ],
)
def test_settings_behind_the_hashes(prover, sections, reason):
    prover.set(**sections)
    prover.bound()
    prover.refused(reason)


# The losses


def test_held_out_losses_replaced(prover):
    def edit(arrays):
        arrays["test_losses_bits"][:] = 0.5
        arrays["val_losses_bits"][:] = 1.5

    prover.edit_losses(edit)
    assert prover.bound()["bound_held_out"] < 3.0
    prover.refused("largest difference in test_losses_bits", "largest difference in val_losses_bits")


@pytest.mark.parametrize("shift", [0.3, 0.0019, 2e-4, 3e-5])
def test_losses_lowered(prover, shift):
    prover.edit_losses(lambda arrays: arrays["losses_bits"].__isub__(shift))
    prover.bound()
    assert "largest difference in losses_bits" in prover.verdict().wrong


def test_losses_lowered_by_less_than_the_tolerance_gain_nothing(prover):
    before = prover.claim()["bound_value"]
    prover.edit_losses(lambda arrays: arrays["losses_bits"].__isub__(0.9 * LOSS_TOLERANCE_BITS))
    assert prover.bound()["bound_value"] < before
    verdict = prover.verdict()
    assert verdict.verified and verdict.bounds["bound_value"] == pytest.approx(before, abs=1e-9)
    assert f"bound_value {before:.4f}" in verdict.sentence()


def test_the_precision_of_training_in_the_header_widens_no_tolerance(prover):
    prover.set(compute={"dtype": "bfloat16"})
    prover.edit_losses(lambda arrays: arrays["losses_bits"].__isub__(0.049))
    prover.bound()
    prover.refused("largest difference in losses_bits")


def test_top_k_errors_lowered(prover):
    prover.edit_losses(lambda arrays: arrays["topk_errors"].__imul__(np.float32(0.99)))
    prover.bound()
    prover.refused("topk_errors.1, re-scored")


def test_easier_documents_than_those_drawn(prover):
    before = prover.claim()["empirical_bpd"]
    losses = read_losses(prover.path / "losses.npz").arrays
    prover.score(np.repeat(losses["indices"][lucky(losses["losses_bits"], 10)], 5))
    assert prover.bound()["empirical_bpd"] < before
    prover.refused("scored documents")


@pytest.mark.parametrize(
    ("edit", "reason"),
    [
        (lambda arrays: arrays.update(more=np.zeros(3)), "arrays of losses.npz"),
        (lambda arrays: arrays.pop("log_p_nats"), "arrays of losses.npz"),
        (lambda arrays: arrays.update(losses_bits=arrays["losses_bits"][:40]), "type and shape of losses_bits"),
        (lambda arrays: arrays.update(val_losses_bits=np.zeros(20, np.int64)), "type and shape of val_losses_bits"),
        (lambda arrays: arrays["log_p_nats"].__imul__(0.9), "largest difference in log_p_nats"),
        (lambda arrays: arrays["target_counts"].__iadd__(1), "targets of the scored documents"),
        (lambda arrays: arrays["losses_bits"].__setitem__(0, np.nan), "largest difference in losses_bits"),
        (lambda arrays: arrays["val_losses_unquantized_bits"].__setitem__(0, np.nan), "losses.npz gives a bound"),
    ],
)
def test_arrays_of_the_losses_edited(prover, edit, reason):
    prover.edit_losses(edit)
    prover.refused(reason)


# After the draw was known


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("lora", "alpha", 7.5),
        ("scoring", "smoothing", [f"document({k})" for k in (2, 1, 3, 4, 6, 8, 12, 16)]),
        ("scoring", "sliding_window", 9),
    ],
)
def test_settings_changed_and_scored_again_on_the_same_documents(prover, section, key, value):
    """What changes the predictor changes the draw, so nobody picks the setting that likes the documents drawn."""
    drawn = prover.scored
    prover.set(**{section: {key: value}})
    prover.score(drawn[: prover.settings.scoring.documents])
    prover.bound()
    prover.refused("scored documents")
    prover.score()
    prover.bound()
    assert prover.verdict().verified, "another claim, honest in itself"
    assert f"settings: {section}.{key}" in prover.verdict(config_path=prover.expected).wrong


def test_another_m_draws_the_first_of_the_same_documents(prover):
    """Trying sizes is no choice among independent draws; m is a premise, and bound_strict charges it."""
    drawn = prover.scored
    prover.set(scoring={"documents": 49})
    prover.score()
    prover.bound()
    assert np.array_equal(prover.scored, drawn[:49])
    assert prover.verdict().verified, "another claim, honest in itself"
    assert "settings: scoring.documents" in prover.verdict(config_path=prover.expected).wrong
    assert "scoring.documents" in charged_keys()


def test_gates_changed_in_the_message(prover):
    drawn = prover.scored
    prover.rewrite_message(lambda contents: dataclasses.replace(contents, gates=(0, *contents.gates[1:])))
    prover.score(drawn)
    prover.bound()
    prover.refused("scored documents")


def test_settings_without_effect_change_no_draw(prover):
    """Otherwise they would be a free choice among draws."""
    drawn = prover.scored
    prover.set(
        training={"steps": 21, "learning_rate": 0.5},
        compute={"threads": 1, "scoring_batch_tokens": 999},
        message={"levels": 12},
        lora={"dropout": 0.25, "targets": ["head", "value", "query"]},
        gating={"soft_fraction": 0.5},
        data={"workers": 3},
    )
    prover.score()
    assert np.array_equal(prover.scored, drawn)


# Premises: what the certificate supposes, and the verdict shows


@pytest.mark.parametrize(
    ("sections", "premise"),
    [
        ({"bound": {"delta": 0.9, "delta_sample": 0.5}}, "bound.delta"),
        ({"grid": {"budgets": [40], "allocations": ["learned"], "seeds": [1]}}, "grid.allocations"),
        ({"message": {"extra_bits": 0.0}}, "message.extra_bits"),
    ],
)
def test_a_premise_that_was_changed_is_shown_and_refused_where_another_is_expected(prover, sections, premise, capsys):
    before = prover.claim()["bound_value"]
    prover.set(**sections)
    assert prover.bound()["bound_value"] < before
    section, key = premise.split(".")
    assert verify_and_print(Claim.of(prover.path, root=prover.root)) == 0
    assert premise in capsys.readouterr().out
    assert prover.verdict().premises[premise] == sections[section][key]
    verdict = prover.verdict(config_path=prover.expected)
    assert verdict.exit_status == 1 and f"settings: {premise}" in verdict.wrong and not verdict.bounds


def test_delta_and_tuning_of_another_reference_have_no_strict_bound(prover):
    assert prover.claim()["bound_strict"] is not None
    prover.set(bound={"delta": 0.9})
    assert prover.bound()["bound_strict"] is None
