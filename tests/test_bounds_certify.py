"""certify: the inequalities themselves, which one is quoted, and what is refused or asked about."""

import json
import math
import subprocess
import sys

import numpy as np
import pytest

import sublora
from sublora.bounds import inequalities
from sublora.bounds.certify import DRAW_SHARE, Certified, certify

LOWER, UPPER = 0.2, 15.6
N, M, C = 50_000, 2_000, 3_000.0
RANGE = {"lower": LOWER, "upper": UPPER}
FULL = {"code_bits": C, "n": M, **RANGE}
DRAWN = {"code_bits": C, "n": N, "subsample": True, **RANGE}


def losses(m: int = M, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).normal(4.2, 0.3, m)


def drawn_losses(m: int = M, n: int = N, seed: int = 1) -> np.ndarray:
    """Losses of a draw with replacement, in which some examples come twice."""
    return losses(n)[np.random.default_rng(seed).integers(n, size=m)]


def test_the_public_name_is_lazy_and_light():
    code = (
        "import sys, sublora; assert 'numpy' not in sys.modules; assert 'certify' in dir(sublora)\n"
        "sublora.certify([0.0, 1.0], code_bits=1, n=2, lower=0, upper=1)\n"
        "heavy = {'torch', 'pandas', 'scipy', 'rich', 'pyarrow'} & set(sys.modules); assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    assert sublora.certify is certify and sublora.Certified is Certified
    with pytest.raises(AttributeError, match="has no attribute 'certifi'"):
        sublora.certifi  # noqa: B018


def test_all_scored_equals_the_inequalities_called_directly():
    result = certify(losses(), **FULL)
    expected = {each.__name__: each(losses(), delta=0.05, **FULL) for each in inequalities.FULL_SAMPLE}
    assert result.bounds == expected
    assert (result.quoted, result.value) == ("betting", expected["betting"])
    assert (result.m, result.n, result.delta_sample, result.warnings) == (M, M, None, ())
    assert result.mean_loss == losses().mean()


def test_a_draw_equals_the_inequalities_called_directly():
    values = drawn_losses()
    result = certify(values, delta=0.04, delta_sample=0.01, **DRAWN)
    arguments = {"code_bits": C, "n": N, "delta": 0.04, "delta_sample": 0.01, **RANGE}
    assert result.bounds == {each.__name__: each(values, **arguments) for each in inequalities.SUBSAMPLED}
    assert result.quoted == "betting_subsampled" and result.warnings == ()
    assert certify(values, **DRAWN).delta_sample == pytest.approx(DRAW_SHARE * 0.05)


def test_the_quoted_inequality_is_fixed_even_where_another_is_smaller():
    values = np.full(200, 4.2)
    result = certify(values, code_bits=200, n=200, **RANGE)
    assert min(result.bounds, key=result.bounds.get) == "betting_closed_form"
    assert result.quoted == "betting" and "fixed beforehand" in result.why


def test_counts_are_repeats():
    values, counts = losses(900), np.random.default_rng(3).integers(1, 4, 900)
    assert certify(values, counts=counts, **DRAWN) == certify(np.repeat(values, counts), **DRAWN)


def test_choosing_on_the_draw_divides_its_share_of_delta():
    values, shared = drawn_losses(), {"code_bits": C, "n": N, **RANGE}
    result = certify(values, delta=0.05, delta_sample=0.032, alternatives=32, subsample=True, **shared)
    arguments = {"delta": 0.05 - 0.032 + 0.001, "delta_sample": 0.001, **shared}
    assert result.value == pytest.approx(inequalities.betting_subsampled(values, **arguments), rel=1e-12)
    kl_inverse = inequalities.kl_inverse_subsampled(values, **arguments)
    assert result.bounds["kl_inverse_subsampled"] == pytest.approx(kl_inverse, rel=1e-12)
    hoeffding = inequalities.hoeffding_subsampled(values, delta=0.05 / 32, **shared)
    assert result.bounds["hoeffding_subsampled"] == hoeffding
    assert (result.delta, result.delta_sample, result.alternatives) == (0.05, 0.032, 32)
    alone = certify(values, delta_sample=0.032, **DRAWN)
    assert all(result.bounds[name] > alone.bounds[name] for name in alone.bounds)


def test_without_a_draw_choosing_is_paid_by_the_message():
    assert certify(losses(), alternatives=32, **FULL).bounds == certify(losses(), **FULL).bounds


def test_any_unit_and_any_container():
    nats = certify(losses() * math.log(2), **FULL | {"lower": LOWER * math.log(2), "upper": UPPER * math.log(2)})
    assert nats.value == pytest.approx(certify(losses(), **FULL).value * math.log(2), rel=1e-9)
    assert certify(list(losses()), **FULL) == certify(losses(), **FULL)
    assert certify([0, 1, 1, 0], code_bits=1, n=4, lower=0, upper=1).mean_loss == 0.5


def test_json_is_plain_and_complete():
    result = certify(drawn_losses(), **DRAWN)
    record = json.loads(json.dumps(result.as_json(), allow_nan=False))
    assert record["value"] == result.value == record["bounds"][record["quoted"]]
    for field in ("code_bits", "n", "m", "lower", "upper", "delta", "delta_sample", "alternatives", "mean_loss"):
        assert record[field] == getattr(result, field)
    assert tuple(record["on_trust"]) == result.on_trust and record["warnings"] == []
    assert set(record) - {"format", "value", "why"} == set(Certified.__dataclass_fields__)


@pytest.mark.parametrize(
    ("values", "changes", "expected"),
    [
        (losses(), {"n": N}, "2000 losses, but n = 50000: score all n, or say subsample"),
        (losses(), {"n": 9_000_000_000}, "n counts independent examples, never tokens"),
        (losses(), {"n": 100}, "one loss per example, not per token"),
        (losses(), {"subsample": True}, "if every example was scored once, it is not a subsample"),
        (losses(), {"delta_sample": 0.01}, "delta_sample belongs to a draw"),
        (losses(), {"counts": np.ones(M, int)}, "counts belongs to a draw"),
        ([4.0, 16.0, 17.0], {"n": 3}, r"row 2 is 16.0, outside \[0.2, 15.6\] \(2 of 3 are\)"),
        ([4.0, 0.1], {"n": 2}, "row 2 is 0.1, outside"),
        ([4.0, 4.0, math.nan], {"n": 3}, "row 3 is nan; 1 are not finite"),
        ([4.0, math.inf], {"n": 2}, "row 2 is inf"),
        ([], {"n": 1}, "losses are empty"),
        (["4", "5"], {"n": 2}, "losses must be numbers, found <U1"),
        ([True, False], {"n": 2}, "losses must be numbers, found bool"),
        ([None, 1.0], {"n": 2}, "losses must be numbers, found object"),
        ([[4.0, 5.0]], {"n": 2}, r"one-dimensional, one per example, found shape \(1, 2\)"),
        (4.0, {"n": 1}, r"found shape \(\)"),
        (losses(), {"lower": 16.0}, "needs finite lower < upper"),
        (losses(), {"upper": math.inf}, "needs finite lower < upper"),
        (losses(), {"code_bits": -1.0}, "code_bits must be finite and not negative"),
        (losses(), {"code_bits": math.nan}, "code_bits must be finite and not negative"),
        (losses(), {"delta": 0.0}, "delta must lie strictly between 0 and 1"),
        (losses(), {"delta": 5.0}, "delta must lie strictly between 0 and 1"),
        (losses(), {"n": 0}, "n must be a positive whole number"),
        (losses(), {"n": 2000.5}, "n must be a positive whole number"),
        (losses(), {"alternatives": 0}, "alternatives must be a positive whole number"),
        (losses(), {"n": N, "subsample": True, "delta_sample": 0.05}, "must be smaller than delta"),
        (losses(), {"n": N, "subsample": True, "delta_sample": 0.0}, "delta_sample must lie strictly"),
        (losses(), {"n": N, "subsample": True, "counts": [1, 2]}, "2 counts for 2000 losses"),
        ([4.0, 5.0], {"n": N, "subsample": True, "counts": [1, 0]}, "counts: row 2 is 0, expected a whole number"),
        ([4.0, 5.0], {"n": N, "subsample": True, "counts": [1.5, 1]}, "counts: row 1 is 1.5"),
        ([4.0, 5.0], {"n": N, "subsample": True, "counts": [1, 10**7]}, "a draw of 10,000,001 examples, expected at"),
        (losses(), {"n": 10**400}, r"n must be .* up to 2\^53, found a number of about 400 digits"),
        (losses(), {"alternatives": 10**5000}, "alternatives must be .*, found a number of about 5000 digits"),
        (losses(), {"n": "2000"}, "n must be a positive whole number up to .*, found '2000'"),
        (losses(), {"code_bits": "300"}, "code_bits must be a number, found '300'"),
        (losses(), {"code_bits": 10**400}, "code_bits must be a number, found a number of about 400 digits"),
        (losses(), {"delta": "0.05"}, "delta must be a number, found '0.05'"),
        (losses(), {"upper": True}, "upper must be a number, found True"),
        (losses(), {"upper": 1e101}, r"the loss range \[0.2, 1e\+101\] cannot be computed with"),
        ([0.0, 0.0], {"n": 2, "lower": 0.0, "upper": 5e-324}, "cannot be computed with; give losses in another unit"),
        (np.ma.array([4.0, 99.0], mask=[0, 1]), {"n": 2}, "losses: 1 values are masked"),
        ([[4.0], [4.0, 5.0]], {"n": 2}, "losses must be numbers"),
    ],
)
def test_bad_input_is_one_clear_line(values, changes, expected):
    with pytest.raises(ValueError, match=expected) as caught:
        certify(values, **FULL | changes)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("values", "changes", "expected"),
    [
        (drawn_losses(), {"n": 4_000_000}, "n is 2,000 times the number of losses"),
        (drawn_losses(), {"n": 1_000}, "the draw of 2000 is larger than n = 1000"),
        (losses(), {}, "no loss occurs twice, though a draw of 2000 from 50000 with replacement repeats about 39"),
        (drawn_losses(), {"upper": drawn_losses().max()}, "upper is a loss that was seen"),
        (drawn_losses(), {"lower": drawn_losses().min()}, "lower is a loss that was seen"),
        (drawn_losses(), {"lower": 2.0, "upper": 6.0, "code_bits": 1e7}, "it says nothing"),
        (drawn_losses(), {"code_bits": 0}, "code_bits is 0"),
        (drawn_losses().astype(np.float16), {}, "losses are stored as float16, which moved them by up to 0.002"),
    ],
)
def test_unusual_input_is_asked_about(values, changes, expected):
    warnings = certify(values, **DRAWN | changes).warnings
    assert len(warnings) == 1 and expected in warnings[0]


def test_one_example_has_a_bound_though_no_variance():
    """Every inequality but empirical Bernstein's holds for n = 1."""
    shared = {"code_bits": 1.0, "n": 1, "lower": 0.0, "upper": 1.0}
    result = certify([0.25], **shared)
    names = [each.__name__ for each in inequalities.FULL_SAMPLE if each is not inequalities.empirical_bernstein]
    assert list(result.bounds) == names and result.quoted == "betting"
    for name in names:
        assert result.bounds[name] == getattr(inequalities, name)([0.25], delta=0.05, **shared)
    drawn = certify([0.25], counts=[7], subsample=True, **shared)
    assert drawn.m == 7 and drawn.quoted == "betting_subsampled"
    assert certify([0.25, 0.5, 0.75, 0.3, 0.4, 0.6, 0.7], subsample=True, **shared).warnings


def test_ranges_of_every_size():
    """Losses in any unit give the bound in that unit."""
    values = losses(200)
    for unit in (1e-90, 1e-3, 1.0, 1e25, 1e90):
        scaled = certify(values * unit, code_bits=C, n=200, lower=LOWER * unit, upper=UPPER * unit)
        assert scaled.value / unit == pytest.approx(certify(values, code_bits=C, n=200, **RANGE).value, rel=1e-9)


def test_masks_that_hide_nothing_are_no_matter():
    assert certify(np.ma.array(losses()), **FULL) == certify(losses(), **FULL)


def test_losses_of_single_tokens_are_asked_about():
    tokens = np.random.default_rng(1).gamma(1.0, 3.0, M).clip(0.3, 15.5)
    assert "as those of single tokens do" in certify(tokens, **FULL).warnings[0]


def test_error_rates_reach_both_ends_without_a_question():
    coins = np.random.default_rng(1).integers(2, size=M)
    assert certify(coins, code_bits=C, n=M, lower=0, upper=1).warnings == ()


def test_what_is_taken_on_trust_names_the_draw_only_where_there_is_one():
    assert "with replacement" in " ".join(certify(drawn_losses(), **DRAWN).on_trust)
    assert "not put into an order that suits the inequality" in " ".join(certify(drawn_losses(), **DRAWN).on_trust)
    assert "with replacement" not in " ".join(certify(losses(), **FULL).on_trust)
