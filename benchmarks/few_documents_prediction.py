"""What `sublora adapt` expects of the study of few documents, for every n and d, before anything is trained.

python -m benchmarks.few_documents_prediction DEMO    # the folder of the finished demo
"""

import sys
from pathlib import Path

import numpy as np
import yaml

from benchmarks.few_documents import CELLS, OF_ALL_DOCUMENTS, cell_values
from sublora import config
from sublora.bounds.smoothing import DocumentMixture
from sublora.data.base_and_target import open_target
from sublora.runs.losses_file import open_base_losses
from sublora.system.names import BASE_LOSSES_PATH
from sublora.tools.adapt.plan import BUDGETS, choose_budget
from sublora.tools.expected_bound import KnownData


def print_predictions(demo: Path) -> None:
    """Print what `sublora adapt` expects for each n and d, from n and the frozen base's losses on val alone."""
    values = yaml.safe_load((demo / "config/config.yaml").read_text(encoding="utf-8"))
    dataset = open_target(config.load_settings(demo / "config/config.yaml"), demo)
    log_p_D = open_base_losses(demo / BASE_LOSSES_PATH)[1].val_log_p_D
    targets_D = dataset.document_lengths("val")[: len(log_p_D)] + 1
    for cell in (*CELLS, OF_ALL_DOCUMENTS):
        settings = config.parse_settings(cell_values(values, cell, n_train=cell.n, arm="message"), source="the study")
        assert settings.scoring.anchor_k0 is not None
        losses_D = DocumentMixture(settings.scoring.anchor_k0).losses_bits(log_p_D, targets_D, dataset.vocab_size)
        of_all = dataset.n_units if cell.unit == "document" else len(dataset.sources()[1])
        targets = float(np.mean(dataset.document_lengths("train"))) + 1.0
        known = KnownData(cell.n or of_all, dataset.vocab_size, targets, losses_D)
        found = {budget: choose_budget(settings, known, [budget], losses_D).prediction for budget in BUDGETS}
        gains = ", ".join(f"{d}: {found[d].gain:.4f} ({found[d].code_bits:.0f} bits)" for d in found)
        print(f"{cell.name}, n = {known.n_units}: {gains}", flush=True)


if __name__ == "__main__":
    print_predictions(Path(sys.argv[1]))
