"""Corpora in which texts occur more than once: which claims hold once duplicates are removed, and how often they fail.

A fixed network has one loss on texts of a kind that many share and another on all others. It costs no message. Corpora
are split by the code that `sublora prepare` runs.
"""

import numpy as np
import pytest
from scipy.stats import binom

from sublora.bounds.inequalities import betting
from sublora.data import order
from sublora.data.order import Spill, documents_in_order, make_record, split_documents
from sublora.system.streams import generator

OWN, SHARED = 0.3, 1.0
"""Losses of the network on a text that one source has, and on one of those that many have."""
DELTA = 0.1
REPLICATIONS = 30
ALLOWED = binom.ppf(0.999, REPLICATIONS, DELTA)


def splits_of(path, texts, seed, *, wanted, grouped):
    """{split: loss of each unit}, for (source, text, loss) of each document of a corpus."""
    losses = np.array([OWN, SHARED])
    with Spill(path / "records") as spill:
        for source, text, loss in texts:
            token = np.array([np.flatnonzero(losses == loss)[0]], dtype=np.uint16)
            spill.add(make_record(text.encode(), token, seed, source if grouped else None))
        ordered = documents_in_order(spill, seed, have_sources=grouped, grouped=grouped)
        found = {split: [] for split in ("train", *wanted)}
        for split, _, tokens, starts_unit in split_documents(ordered, wanted, grouped=grouped):
            if starts_unit or not grouped:
                found[split].append([])
            found[split][-1].append(losses[np.frombuffer(tokens, dtype=np.uint16)[0]])
    return {split: np.array([np.mean(unit) for unit in units]) for split, units in found.items()}


def bound(losses_U):
    return betting(losses_U, lower=0.0, upper=1.2, code_bits=0.0, n=len(losses_U), delta=DELTA)


# Units: sources of a text of their own and four of a pool, from which every source draws.

SOURCES, POOL, DRAWN = 120, 120, 4


def sources(random):
    """(source, text, loss) of each document of a corpus of sources."""
    own = [(f"source {i}", f"text of {i}", OWN) for i in range(SOURCES)]
    drawn = ((i, text) for i in range(SOURCES) for text in random.choice(POOL, size=DRAWN, replace=False))
    return own + [(f"source {i}", f"shared text {text}", SHARED) for i, text in drawn]


@pytest.fixture(scope="module")
def splits(tmp_path_factory):
    """(by two keys, by one key): the splits of each replication."""
    path = tmp_path_factory.mktemp("units")
    wanted = {"val": 80, "test": 80}

    def replications():
        corpora = (sources(generator("sources", seed)) for seed in range(REPLICATIONS))
        return [splits_of(path, texts, seed, wanted=wanted, grouped=True) for seed, texts in enumerate(corpora)]

    by_two_keys = replications()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(order, "unit_key", lambda source, seed: source)
        return by_two_keys, replications()


def failures(replications, split, truth):
    return sum(bound(found[split]) < truth for found in replications)


def mean_over_all_units(replications):
    """What a unit loses in expectation: a corpus has the same units however they are split."""
    return np.mean([np.concatenate(list(found.values())).mean() for found in replications])


def test_units_that_share_texts_are_exchangeable_between_splits(splits):
    """Which source keeps a text says nothing about where it goes, so the bound fails as rarely as it may."""
    by_two_keys, _ = splits
    truth = mean_over_all_units(by_two_keys)
    for split in ("train", "val", "test"):
        assert np.mean([found[split].mean() for found in by_two_keys]) == pytest.approx(truth, abs=0.02)
    assert failures(by_two_keys, "train", truth) <= ALLOWED
    assert failures(by_two_keys, "test", truth) <= ALLOWED


def test_one_key_for_shared_texts_and_for_the_split_is_caught(splits):
    """The sources of small keys keep what is shared and go to val and test: train is no sample of the units."""
    _, by_one_key = splits
    truth = mean_over_all_units(by_one_key)
    means = {split: np.mean([found[split].mean() for found in by_one_key]) for split in ("train", "test")}
    assert means["train"] < truth - 0.1 and means["test"] > truth + 0.05
    assert failures(by_one_key, "train", truth) == REPLICATIONS


def test_the_claim_is_not_about_sources_with_the_texts_that_others_keep(splits):
    """Four in five texts of a whole source are shared; a unit has what is left of them."""
    by_two_keys, _ = splits
    whole_source = (OWN + DRAWN * SHARED) / (1 + DRAWN)
    assert failures(by_two_keys, "train", whole_source) == REPLICATIONS


# Documents: most are written once, a third are one of a few texts that come back.

DRAWS, REPEATED = 400, 20


def test_the_claim_about_documents_is_about_distinct_texts(tmp_path):
    """It holds for the mean over texts, however often each occurs, and says nothing about the mean over occurrences."""
    found, wanted = [], {"val": 30, "test": 30}
    for seed in range(REPLICATIONS):
        random = generator("occurrences", seed)
        repeated = random.random(DRAWS) < 1 / 3
        texts = [
            (None, f"form {random.integers(REPEATED)}", SHARED) if again else (None, f"text {i}", OWN)
            for i, again in enumerate(repeated)
        ]
        found.append(splits_of(tmp_path, texts, seed, wanted=wanted, grouped=False))
    distinct, occurrences = mean_over_all_units(found), (2 * OWN + SHARED) / 3
    assert failures(found, "train", distinct) <= ALLOWED
    assert failures(found, "train", occurrences) == REPLICATIONS
