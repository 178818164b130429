"""The predicted bound: agreement with the inequality and with a finished run, limits, and honest verdicts."""

import dataclasses
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from base_samples import complaint
from conftest import REPOSITORY, write_settings

from sublora import config
from sublora.bounds.inequalities import kl_inverse
from sublora.runs.bound import bound_run, read_losses
from sublora.runs.message_cost import code_bits
from sublora.runs.score import score_run
from sublora.runs.train import train_run
from sublora.tools.expected_bound import Guess, KnownData, known_data, predict, print_prediction

ANCHORED = config.load_settings(REPOSITORY / "demo/config/config.yaml")
DEMO = ANCHORED.model_copy(update={"scoring": ANCHORED.scoring.model_copy(update={"anchor": "guessing"})})
"""The demo with the direct bound."""
BYTES = KnownData(n_units=72_354, vocab_size=257, targets=400.0)


def expected(guess: Guess, data: KnownData = BYTES, settings: config.Settings = DEMO) -> list:
    return list(predict(settings, data, guess))


def changed(settings: config.Settings, section: str, **values: object) -> config.Settings:
    return settings.model_copy(update={section: getattr(settings, section).model_copy(update=values)})


@pytest.mark.parametrize("quantizer", ["plain", "entropy"])
def test_a_finished_run_has_the_predicted_message_and_bound(tiny_root: Path, tmp_path: Path, quantizer: str) -> None:
    """Given what the run turned out to be: its loss, its spread and its bits for each coordinate."""
    root = Path(shutil.copytree(tiny_root, tmp_path / "root"))
    changes = {"message": {"quantizer": quantizer}, "scoring": {"documents": "all", "smoothing": ["document(4)"]}}
    settings = config.load_settings(write_settings(root, changes))
    out = root / "results/runs/d60_learned_seed1"
    train_run(settings, config.parse_run(60, "learned", 1), root=root, out=out)
    score_run(out, root=root)
    record = json.loads(bound_run(out).read_text(encoding="utf-8"))
    per_coordinate = record["code_items"]["symbols"] / 60
    assert code_bits(settings, 60, per_coordinate) == record["code_bits"]
    losses = read_losses(out / "losses.npz").arrays["losses_bits"]
    guess = Guess(losses.mean(), deviation_bits=losses.std(), bits_per_coordinate=per_coordinate)
    (prediction,) = (each for each in expected(guess, known_data(settings, root, None), settings) if each.budget == 60)
    assert prediction.bound == pytest.approx(record["bound_value"], abs=0.03)
    assert prediction.bound_smallest <= record["bound_value"] <= prediction.bound_largest


def test_losses_at_the_ends_of_their_range_give_the_inequality_of_coins() -> None:
    """Betting on coins is the Chernoff bound plus the price of the grid of bets."""
    settings = changed(changed(DEMO, "scoring", documents="all", smoothing=("document(1)",)), "grid", budgets=(1000,))
    (prediction,) = expected(Guess(3.0), dataclasses.replace(BYTES, targets=1e9), settings)
    upper = np.log2(257) + 1 / (settings.data.min_tokens + 1)
    share = 3.0 / upper
    losses = np.append(np.full(round(share * 72_354), upper), np.zeros(72_354 - round(share * 72_354)))
    bits = prediction.code_bits
    coin = kl_inverse(losses, lower=0.0, upper=upper, code_bits=bits, n=72_354, delta=settings.bound.delta)
    assert prediction.bound_largest == pytest.approx(coin, abs=0.01)
    assert prediction.bound_smallest < prediction.bound < prediction.bound_largest


def test_the_bound_follows_n_message_and_loss() -> None:
    small, large = expected(Guess(2.9))
    assert (small.budget, large.budget) == (1000, 2000)
    assert 2.9 < small.bound < large.bound and 0 < small.price < large.price
    without_w = expected(Guess(2.9, bits_per_coordinate=0.0))[1].bound
    assert large.bound - without_w < large.price < 1.2 * (large.bound - without_w)  # its arm and gates cost bits too
    for worse in (
        expected(Guess(3.0)),
        expected(Guess(2.9, bits_per_coordinate=3.0)),
        expected(Guess(2.9, deviation_bits=0.8)),
        expected(Guess(2.9), dataclasses.replace(BYTES, n_units=20_000)),
    ):
        assert worse[1].bound > large.bound
    nothing = expected(Guess(2.9, bits_per_coordinate=0.0), dataclasses.replace(BYTES, n_units=10**9))[0]
    assert nothing.bound < 3.0  # what is left pays for the draw


@pytest.mark.slow
def test_the_n_that_is_needed_is_the_smallest_that_pays() -> None:
    guess = Guess(2.8, base_loss_bits=3.2)
    for short in expected(guess, dataclasses.replace(BYTES, n_units=4_716)):
        assert not short.is_worth_it
        at, before = (
            next(each for each in expected(guess, dataclasses.replace(BYTES, n_units=n)) if each.budget == short.budget)
            for n in (short.n_needed, short.n_needed - 1)
        )
        assert at.is_worth_it and not before.is_worth_it
    assert all(each.is_worth_it for each in expected(guess))
    assert [each.n_needed for each in expected(Guess(3.2, base_loss_bits=3.2))] == [None, None]


def test_the_anchored_bound_is_that_of_the_demo_s_runs() -> None:
    """docs/studies/demo.md: mean loss 2.86 and 2.80 where the base has 3.21; n, C and draws as there."""
    small, large = expected(Guess(2.864, base_loss_bits=3.2104), settings=ANCHORED)
    assert small.base_bound == large.base_bound == pytest.approx(3.242, abs=0.01)
    assert small.bound == pytest.approx(2.951, abs=0.012)
    (large,) = expected(Guess(2.776, base_loss_bits=3.2104), settings=ANCHORED)[1:]
    assert large.bound == pytest.approx(2.890, abs=0.012)
    assert large.gain == pytest.approx(large.base_bound - large.bound, abs=1e-4)
    assert large.bound_smallest < large.bound < large.bound_largest


@pytest.mark.slow
def test_an_anchor_needs_the_base_s_loss_and_takes_the_measured_one() -> None:
    assert "guess it with --base-loss" in complaint(lambda: expected(Guess(2.9), settings=ANCHORED))
    losses_U = 3.2 + 0.4 * np.random.default_rng(0).standard_normal(6000)
    measured = dataclasses.replace(BYTES, base_losses_U=losses_U)
    known, guessed = expected(Guess(2.9), measured, ANCHORED), expected(Guess(2.9, 3.2), settings=ANCHORED)
    for one, other in zip(known, guessed, strict=True):
        assert one.bound == pytest.approx(other.bound, abs=0.02)
    # A measured base may be worse than guessing, which is then what a bound has to beat.
    worse = dataclasses.replace(BYTES, base_losses_U=np.full(6000, 8.05))
    assert all(each.target == each.guessing for each in expected(Guess(2.9), worse, ANCHORED))


@pytest.mark.slow
def test_with_an_anchor_a_gain_pays_from_far_fewer_documents_on() -> None:
    guess = Guess(2.9, base_loss_bits=3.2)
    for direct, anchored in zip(expected(guess), expected(guess, settings=ANCHORED), strict=True):
        assert anchored.n_needed < direct.n_needed / 3
        assert anchored.gain > 0.0 and direct.gain is None
    assert [each.n_needed for each in expected(Guess(3.2, base_loss_bits=3.2), settings=ANCHORED)] == [None, None]


@pytest.mark.slow
def test_the_verdict_is_printed_with_what_was_assumed(capsys: pytest.CaptureFixture) -> None:
    few = dataclasses.replace(BYTES, n_units=100)
    cases = {
        "worth it: ": (BYTES, Guess(2.8, 3.2)),
        "n = 100 is too small": (few, Guess(2.9)),
        "not worth it at any n": (BYTES, Guess(3.2, 3.2)),
        "worth it only if adaptation lowers the base's loss by more than": (BYTES, Guess(2.9)),
    }
    for words, (data, guess) in cases.items():
        print_prediction(DEMO, data, guess)
        text = " ".join(capsys.readouterr().out.split())
        assert text.count(words) == 2, text
        assert "which is your guess" in text and "It is an estimate, not a bound." in text


def test_impossible_guesses_and_unknown_n_are_one_line(tmp_path: Path) -> None:
    assert "guessing over 257 tokens costs 8.006" in complaint(lambda: expected(Guess(9.0)))
    assert "--base-loss 9" in complaint(lambda: expected(Guess(3.0, 9.0)))
    assert "finite number" in complaint(lambda: Guess(-1.0))
    assert "or give it with --n" in complaint(lambda: known_data(DEMO, tmp_path, None))
    assert known_data(DEMO, tmp_path, 7).n_units == 7
    of_a_base = changed(DEMO, "data", tokenizer="base")
    assert "run sublora prepare" in complaint(lambda: known_data(of_a_base, tmp_path, 7))


def test_it_is_quick_to_ask(tiny_root: Path) -> None:
    """No torch, no GPU, nothing measured."""
    code = (
        "import sys; from typer.testing import CliRunner; from sublora.cli import app\n"
        f"words = ['plan', '--config', {str(tiny_root / 'config/config.yaml')!r}, '--loss', '3']\n"
        "result = CliRunner().invoke(app, words); assert result.exit_code == 0, result.output\n"
        "assert 'n = 240' in result.output, result.output\n"
        "assert not {'torch', 'pandas'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
