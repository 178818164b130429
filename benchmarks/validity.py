"""The pipeline's bound against the truth, on a source whose true risk can be computed.

A Markov chain writes the documents. The pipeline trains, encodes, scores and bounds as always; then the decoded
model's true risk is estimated on fresh documents of the same source, with an interval, and the chain's entropy rate
says what no model can beat. Prints a table; `python benchmarks/validity.py --help` for its options.
"""

import argparse
import dataclasses
import json
import math
import tempfile
from pathlib import Path

import numpy as np
import torch
from scipy import stats

from sublora import config
from sublora.data.base_and_target import open_target
from sublora.data.corpora.markov import MarkovSource
from sublora.data.prepare import prepare_dataset
from sublora.data.tokenizers import load_tokenizer
from sublora.losses.documents import score_documents
from sublora.runs.bound import bound_run
from sublora.runs.build import build_run
from sublora.runs.message import read_message
from sublora.runs.score import score_run
from sublora.runs.train import train_run

DEMO = Path(__file__).resolve().parents[1] / "demo" / "config" / "config.yaml"
CONFIDENCE = 0.99
FRESH_SEED = 1


@dataclasses.dataclass(frozen=True)
class Outcome:
    """Bits per token, all but the name; `risk_low` ... `risk_high` holds the true risk with 99 % confidence."""

    run: str
    empirical_loss_bits: float
    risk_low_bits: float
    risk_bits: float
    risk_high_bits: float
    bound_bits: float
    hoeffding_bits: float
    vacuous_bits: float
    entropy_rate_bits: float

    @property
    def slack_bits(self) -> float:
        return self.bound_bits - self.risk_bits


def markov_settings(changes: dict[str, dict]) -> config.Settings:
    """The demo's settings on a Markov source and a random base, with changes by section."""
    values = config.load_settings(DEMO).model_dump(mode="json") | {"base": {"kind": "random"}}
    del values["subspace"]["scale"]  # which only a trained base has
    source = {"kind": "markov", "symbols": 16, "concentration": 0.3, "documents": 18000}
    values["data"] |= {
        "name": "markov",
        "min_characters": 1,
        "min_tokens": 1,
        "corpus": source | {"min_length": 200, "max_length": 400, "seed": 7},
    }
    values["scoring"]["sources"] = None
    for section, keys in changes.items():
        values[section] |= keys
    return config.parse_settings(values, source="validity")


def measure(root: Path, settings: config.Settings, run: config.RunSpec, *, fresh_documents: int) -> Outcome:
    """Train, score and bound `run` in `root` (data prepared there), then estimate the decoded model's true risk."""
    out = root / "results" / "runs" / run.name
    train_run(settings, run, root=root, out=out)
    score_run(out, root=root)
    bound_run(out)
    record = json.loads((out / "bounds.json").read_text(encoding="utf-8"))
    losses = fresh_losses(root, settings, run, out, fresh_documents)
    low, high = stats.t.interval(CONFIDENCE, len(losses) - 1, losses.mean(), stats.sem(losses))
    source = MarkovSource(settings.data.corpus)
    return Outcome(
        run=run.name,
        empirical_loss_bits=record["empirical_bpd"],
        risk_low_bits=float(low),
        risk_bits=float(losses.mean()),
        risk_high_bits=float(high),
        bound_bits=record["bound_value"],
        hoeffding_bits=record["bound_hoeffding"],
        vacuous_bits=record["vacuous_bits"],
        entropy_rate_bits=source.entropy_rate_bits,
    )


def fresh_losses(
    root: Path, settings: config.Settings, spec: config.RunSpec, out: Path, fresh_documents: int
) -> np.ndarray:
    """Losses, bits per token, of the decoded model on documents that it has never seen."""
    message = read_message(out / "certificate.bin")
    run = build_run(settings, spec, open_target(settings, root), root, torch.device("cpu"))
    model = run.decoded(message.contents.weights.values(), message.contents.gates)
    texts = MarkovSource(settings.data.corpus).fresh_documents(fresh_documents, FRESH_SEED)
    tokens = load_tokenizer(settings.data.tokenizer).encode_batch(texts)
    scores = score_documents(model, tokens, run.scoring_rule, run.device)
    return scores.losses_DA([message.smoothing], run.dataset.vocab_size)[:, 0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--budgets", type=int, nargs="+", default=[250, 1000])
    parser.add_argument("--allocations", nargs="+", default=["uniform", "fixed-0.8", "learned"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[42, 123])
    parser.add_argument("--fresh-documents", type=int, default=4000)
    arguments = parser.parse_args()
    grid = {key: getattr(arguments, key) for key in ("budgets", "allocations", "seeds")}
    settings = markov_settings({"grid": grid})
    print("| run | entropy rate | loss on the drawn documents | true risk (99 % interval) | bound | paper's | slack |")
    print("|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        prepare_dataset(settings.data, root)
        for run in settings.grid.runs():
            o = measure(root, settings, run, fresh_documents=arguments.fresh_documents)
            half = (o.risk_high_bits - o.risk_low_bits) / 2
            print(
                f"| {o.run} | {o.entropy_rate_bits:.3f} | {o.empirical_loss_bits:.3f} | {o.risk_bits:.3f} ± {half:.3f} "
                f"| {o.bound_bits:.3f} | {o.hoeffding_bits:.3f} | {o.slack_bits:.3f} |",
                flush=True,
            )
    print(f"\nvacuous: {math.log2(257):.3f} bits per token")


if __name__ == "__main__":
    main()
