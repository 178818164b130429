"""How alike the documents are, and how the bounds of runs depend on that.

What follows from the documents alone is in data/{dataset}/near_duplicates.json and is measured once;
results/near_duplicates.json has it again, with the bounds of this experiment's runs.

This is a sensitivity analysis, not a certificate. Clusters depend on the sample, so the theorem that bounds the mean
over independent documents does not cover them; the question is how much a bound depends on the number n of documents.

This module does not import torch.
"""

import dataclasses
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from sublora import config
from sublora.bounds.anchored_record import Charges, anchored_bound
from sublora.bounds.premises import headline_bound
from sublora.bounds.smoothing import with_tolerance
from sublora.data.base_and_target import open_target
from sublora.data.dataset import TokenDataset, dataset_folder
from sublora.data.near_duplicates import SHINGLE_BYTES, ClusterRule, cluster, shared_shares
from sublora.runs.bound import anchored_evidence
from sublora.runs.losses_file import RunLosses, read_losses
from sublora.runs.message import Message, charged_bits, read_message
from sublora.runs.starts import announce
from sublora.system.errors import UserError
from sublora.system.files import write_json
from sublora.system.names import CERTIFICATE_NAME, LOSSES_NAME
from sublora.system.provenance import Provenance

NEAR_DUPLICATES_FILE = "near_duplicates.json"
"""Its name in the data set's folder and in results/."""
NEAR_DUPLICATES_FORMAT = 2
"""Version of the layout; a reader refuses every other version."""
MOSTLY_SHARED = 0.5
"""A document shares most of its text if it shares more than this part of its shingles."""


def write_document_facts(settings: config.Settings, *, root: Path, rule: ClusterRule | None = None) -> Path:
    """Measure the prepared documents unless their file says what is asked for already; return that file.

    UserError if the data cannot be read or datasketch is missing.
    """
    announce(settings, Provenance.of_this_process())
    dataset, rule = open_target(settings, root).verified(), rule or ClusterRule()
    path = dataset_folder(root, settings.data) / NEAR_DUPLICATES_FILE
    asked = {"format": NEAR_DUPLICATES_FORMAT, "data_hash": dataset.data_hash, "rule": _described(rule)}
    if not _holds(path, asked):
        started = time.monotonic()
        facts = measure_documents(dataset, rule)
        write_json(path, asked | facts | {"seconds": time.monotonic() - started})
    return path


def _described(rule: ClusterRule) -> dict[str, Any]:
    """Return what counts as a near duplicate, as the file says it."""
    return {"shingle_bytes": SHINGLE_BYTES, "mostly_shared": MOSTLY_SHARED} | dataclasses.asdict(rule)


def _holds(path: Path, asked: dict[str, Any]) -> bool:
    """Whether a file is there, can be read and agrees with these entries; a damaged one is measured again."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(found, dict) and asked.items() <= found.items()


def write_near_duplicates(settings: config.Settings, *, root: Path, rule: ClusterRule | None = None) -> Path:
    """Add the bounds of all scored runs to what is known of the documents; return results/near_duplicates.json.

    UserError as for `write_document_facts`, or if a run belongs to other data.
    """
    facts = json.loads(write_document_facts(settings, root=root, rule=rule).read_text(encoding="utf-8"))
    runs = {}
    for spec in settings.grid.runs():
        folder = root / "results" / "runs" / spec.name
        if (folder / LOSSES_NAME).exists():
            runs[spec.name] = sensitivity(folder, facts["data_hash"], (facts["n_clusters"], facts["n_mostly_new"]))
    path = root / "results" / NEAR_DUPLICATES_FILE
    path.parent.mkdir(exist_ok=True)
    write_json(path, facts | {"runs": runs})
    return path


def measure_documents(dataset: TokenDataset, rule: ClusterRule) -> dict[str, Any]:
    """Return the facts of the documents alone, as the file holds them.

    n_clusters: the number of clusters of train documents. If not all were clustered, it is the same share of all n,
    which is too many, since more documents hold more near duplicates of each. n_mostly_new: n times the share of test
    documents that do not share most of their text with train; the expected number of such documents among n.
    """
    # Shares of test documents, clusters of train documents; both scaled to n.
    shares_D, clusters, n = shared_shares(dataset), cluster(dataset, rule), dataset.n_documents
    mostly_shared = float(np.mean(shares_D > MOSTLY_SHARED))
    return {
        "n_documents": n,
        "test_documents": len(shares_D),
        "test_mostly_shared": mostly_shared,
        "test_mean_shared": float(shares_D.mean()),
        "clustered_documents": clusters.documents,
        "clusters": clusters.count,
        "largest_cluster": clusters.largest,
        "n_clusters": max(1, round(n * clusters.count / clusters.documents)),
        "n_mostly_new": max(1, round(n * (1.0 - mostly_shared))),
    }


def sensitivity(folder: Path, data_hash: str, counts: tuple[int, int]) -> dict[str, float]:
    """Return a run's headline bound, and what it would be with n_clusters and with n_mostly_new documents.

    UserError if the run belongs to other data or its units are not documents.
    """
    message = read_message(folder / CERTIFICATE_NAME)
    if message.header.data_hash != data_hash:
        raise UserError(
            f"{folder / CERTIFICATE_NAME}: of data {message.header.data_hash[:12]}..., the prepared data are "
            f"{data_hash[:12]}...; train and score again, or bring back that data"
        )
    premises = message.loss.premises
    if premises.unit != "document":
        raise UserError(
            f"{folder / CERTIFICATE_NAME}: its bound counts units of kind {premises.unit}, near duplicates are counted "
            "among documents; set data.unit to document"
        )
    losses = read_losses(folder / LOSSES_NAME).of(message)
    # The bound as it is, then with the two smaller numbers of documents.
    names = ("bound_value", "bound_value_by_clusters", "bound_value_by_mostly_new")
    sizes = (premises.n_units, *counts)
    return {name: bound_with(message, losses, n) for name, n in zip(names, sizes, strict=True)}


def bound_with(message: Message, losses: RunLosses, n_documents: int) -> float:
    """Return the run's headline bound, bits per token, as if its losses came from this many documents.

    Where all documents are scored, evenly spaced ones stand for that many of them: their order is random.
    """
    premises = dataclasses.replace(message.loss.premises, n_units=n_documents)
    code_bits, items = charged_bits(message.payload.items, message.settings)

    def of_as_many(values_D: np.ndarray, drawn: bool) -> np.ndarray:
        """Return the losses of a draw as they are, and of all documents evenly spaced ones."""
        if drawn:
            return values_D
        return values_D[np.linspace(0, len(values_D) - 1, n_documents).round().astype(np.int64)]

    # An anchored bound takes the losses of base and excess apart.
    anchored = anchored_evidence(message, losses)
    if anchored is not None:
        sample = anchored.documents
        fewer = dataclasses.replace(
            sample,
            n=n_documents,
            base_losses_D=of_as_many(sample.base_losses_D, sample.base_share.delta_sample is not None),
            excess_D=of_as_many(sample.excess_D, sample.excess_share.delta_sample is not None),
        )
        charges = Charges.of(items, premises.sweep_size)
        return anchored_bound(fewer, anchored.mixture, charges, message.loss.population).bits
    losses_D = of_as_many(losses.losses_bits, premises.delta_sample is not None)
    loss_range = message.loss.range_of(message.smoothing)
    return with_tolerance(headline_bound(losses_D, loss_range, code_bits, premises), loss_range)


def print_near_duplicates(path: Path) -> None:
    """Print the file in words, and one row per run."""
    facts, console = json.loads(path.read_text(encoding="utf-8")), Console()
    clustered = facts["clustered_documents"]
    of_all = "all" if clustered == facts["n_documents"] else "the first"
    console.print(
        f"{facts['test_mostly_shared']:.1%} of {facts['test_documents']:,} test documents share over half of their "
        f"{SHINGLE_BYTES}-byte shingles with train documents (on average {facts['test_mean_shared']:.1%} of them)\n"
        f"{facts['clusters']:,} clusters of {of_all} {clustered:,} train documents, the largest of "
        f"{facts['largest_cluster']:,}"
    )
    if facts.get("runs"):
        table = Table("run", "bound", f"n = {facts['n_clusters']:,} clusters", f"n = {facts['n_mostly_new']:,}")
        for name, bounds in facts["runs"].items():
            table.add_row(name, *(f"{bound:.3f}" for bound in bounds.values()))
        console.print(table)
        console.print("Bounds if near duplicates were not counted: a sensitivity analysis, not a certificate.")
