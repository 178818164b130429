"""results/base_losses.npz: what the frozen base loses, scored once per data set and base and shared by all runs.

The bound on the base's loss holds for a draw that nothing of a run can reach: it is seeded by the hashes of base and
data, k0 and its size. Shape legend: U units, M sources, D documents.
"""

import time
from pathlib import Path

import numpy as np

from sublora.bounds.premises import Anchoring
from sublora.bounds.smoothing import DocumentMixture
from sublora.data.dataset import TokenDataset
from sublora.losses.causality import CausalityTest
from sublora.losses.documents import blocks_of_documents, score_documents
from sublora.runs.losses_file import FIX, BaseLosses, BaseLossesFacts, open_base_losses, save_base_losses
from sublora.system.errors import UserError
from sublora.system.streams import generator
from sublora.system.versions import NUMERICS_VERSIONS
from sublora.training.run import Run


def base_facts_of(run: Run, anchoring: Anchoring) -> BaseLossesFacts:
    """Return what the losses of the run's base depend on."""
    scoring, dataset = run.settings.scoring, run.dataset
    by_source = scoring.sources is not None
    return BaseLossesFacts(
        seen_base_sha256=run.seen_base_sha256,
        data_hash=dataset.data_hash,
        k0=anchoring.k0,
        documents=anchoring.base_documents,
        sources=anchoring.base_sources,
        by_source=by_source,
        val_documents=scoring.val_documents,
        test_documents=scoring.test_documents,
        sliding_window=scoring.sliding_window,
        numerics=NUMERICS_VERSIONS["score"],
    )


def drawn_base_units(facts: BaseLossesFacts, n: int) -> np.ndarray:
    """Return the training units that the base's loss is bounded on, int64: all n, or a draw with replacement."""
    if facts.documents is None:
        return np.arange(n)
    stream = generator("documents of the base", facts.seen_base_sha256, facts.data_hash, facts.k0, facts.documents)
    return stream.integers(0, n, size=facts.documents)


def drawn_base_sources(facts: BaseLossesFacts, dataset: TokenDataset) -> np.ndarray:
    """Return one training document of each source, or of each source of a draw with replacement, int64 (M,)."""
    order_D, sources = dataset.sources()
    size = "all" if facts.sources is None else facts.sources
    stream = generator("sources of the base", facts.seen_base_sha256, facts.data_hash, facts.k0, size)
    drawn_M = np.arange(len(sources)) if facts.sources is None else stream.integers(0, len(sources), size=facts.sources)
    documents: np.ndarray = order_D[sources.documents_of(drawn_M, stream)]
    return documents


def compute_base_losses(run: Run, anchoring: Anchoring, causality: CausalityTest | None = None) -> BaseLosses:
    """Score the base of a run, at w = 0, on its own draws and on the val and test documents.

    causality: tests the base wherever it is scored.
    """
    facts, dataset, anchor = base_facts_of(run, anchoring), run.dataset, DocumentMixture(anchoring.k0)
    model, vocab_size = run.base(), run.dataset.vocab_size

    def log_p(split: str, rows_D: np.ndarray) -> np.ndarray:
        """Return ln P_base of documents, nats."""
        parts = []
        for block in blocks_of_documents(dataset.document_lengths(split)[rows_D]):
            documents = [dataset.document(split, int(i)) for i in rows_D[block]]
            scores = score_documents(model, documents, run.scoring_rule, run.device, causality)
            parts.append(scores.document_log_p_D())
        return np.concatenate(parts)

    # The draw of units, and of sources where there is a bound over them; each document is scored once.
    indices_U = drawn_base_units(facts, dataset.n_units)
    documents_D, units = dataset.units("train").take(indices_U)
    source_documents_M = drawn_base_sources(facts, dataset) if facts.by_source else None
    sources_D = np.empty(0, dtype=np.int64) if source_documents_M is None else source_documents_M
    train_documents_D = np.unique(np.concatenate([documents_D, sources_D]))
    train_log_p_D = log_p("train", train_documents_D)
    train_losses_D = anchor.losses_bits(
        # The closing end-of-text is a target as well.
        train_log_p_D,
        dataset.document_lengths("train")[train_documents_D] + 1,
        vocab_size,
    )
    losses_U = units.means(train_losses_D[np.searchsorted(train_documents_D, documents_D)])
    source_losses_M = None
    if source_documents_M is not None:
        source_losses_M = train_losses_D[np.searchsorted(train_documents_D, source_documents_M)]
    # Held-out documents, for choices on val and for what is reported from test.
    val_log_p_D, test_log_p_D = (
        log_p(split, np.asarray(dataset.leading_units(split, wanted)[0]))
        for split, wanted in (("val", facts.val_documents), ("test", facts.test_documents))
    )
    return BaseLosses(
        indices_U=indices_U,
        losses_U=losses_U,
        source_documents_M=source_documents_M,
        source_losses_M=source_losses_M,
        train_documents_D=train_documents_D,
        train_log_p_D=train_log_p_D,
        val_log_p_D=val_log_p_D,
        test_log_p_D=test_log_p_D,
    )


def write_base_losses(path: Path, run: Run, anchoring: Anchoring) -> BaseLosses:
    """Compute the losses and write the file, which appears whole; return the losses.

    UserError if a prediction of the base depends on later tokens (`CausalityTest`).
    """
    started = time.perf_counter()
    facts = base_facts_of(run, anchoring)
    causality = CausalityTest(generator("causality of the base", facts.seen_base_sha256, facts.data_hash))
    losses = compute_base_losses(run, anchoring, causality)
    if causality.refusal is not None:
        raise UserError(f"base {run.network.base_sha256[:12]}...: {causality.refusal}")
    save_base_losses(path, facts, losses, time.perf_counter() - started)
    return losses


def read_base_losses(path: Path, run: Run) -> BaseLosses:
    """Return the losses of the run's base.

    UserError if the file is missing, damaged, or of another base, data set, anchor or draw.
    """
    anchoring = run.loss.anchoring
    assert anchoring is not None
    facts, losses = open_base_losses(path)
    wanted = base_facts_of(run, anchoring)
    for key, value in wanted.model_dump().items():
        if (found := getattr(facts, key)) != value:
            raise UserError(f"{path}: losses of a base with {key} {found}, this run has {value}; {FIX}")
    return losses
