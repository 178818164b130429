"""How far the responsibility of a document, taken from one of its windows, lies from that of the whole document.

Training with the document mixture weighs a window by r, the posterior probability of the network against guessing.
Where the document does not fit into the window, r follows from the window's mean loss times the document's length.

    python -m benchmarks.responsibilities demo/results/runs/d1000_uniform_seed42
"""

import sys
from pathlib import Path

import numpy as np
import torch

from sublora.bounds.smoothing import DocumentMixture
from sublora.losses.documents import score_documents
from sublora.losses.windows import sliding_windows
from sublora.runs.build import RunFolder
from sublora.runs.message import read_message
from sublora.system.device import claim_device
from sublora.system.names import CERTIFICATE_NAME
from sublora.training.run import Run

MIXTURES = (1, 4, 8, 16)


def difference(run: Run, w_d: np.ndarray, split: tuple[int, ...], mixture: DocumentMixture) -> dict[str, float]:
    """Over all windows of the val documents that are longer than the context: r by window minus r by document."""
    documents = [run.dataset.document("val", i) for i in range(run.settings.data.val_documents)]
    longer = [document for document in documents if len(document) + 1 > run.windows.context_length]
    scores = score_documents(run.decoded(w_d, split), longer, run.scoring_rule, run.device)
    windows, offsets = sliding_windows(scores.counts_D, run.windows), scores.offsets
    sums_S = np.concatenate([[0.0], np.cumsum(scores.log_p_S, dtype=np.float64)])
    stop_N = offsets[windows.document] + windows.start + windows.length
    mean_N = (sums_S[stop_N] - sums_S[stop_N - windows.scored]) / windows.scored
    targets_N = scores.counts_D[windows.document]
    by_window_N = mixture.responsibility(mean_N * targets_N, targets_N, run.dataset.vocab_size)
    by_document_D = mixture.responsibility(scores.document_log_p_D(), scores.counts_D, run.dataset.vocab_size)
    difference_N = by_window_N - by_document_D[windows.document]
    return {
        "windows": len(difference_N),
        "mean r": float(by_document_D.mean()),
        "smallest r": float(by_document_D.min()),
        "mean difference": float(difference_N.mean()),
        "largest": float(np.abs(difference_N).max()),
    }


def main() -> None:
    path = Path(sys.argv[1])
    folder, message = RunFolder.open(path), read_message(path / CERTIFICATE_NAME)
    with claim_device(folder.settings.compute) as device, torch.no_grad():
        run = folder.load(device)
        adapted = message.contents.weights.values()
        for name, w_d in (("adapted", adapted), ("frozen base", np.zeros_like(adapted))):
            for k in MIXTURES:
                found = difference(run, w_d, message.contents.gates, DocumentMixture(k))
                print(f"{name}, document({k}): " + ", ".join(f"{key} {value:.6g}" for key, value in found.items()))


if __name__ == "__main__":
    main()
