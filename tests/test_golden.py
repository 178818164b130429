"""Golden values: the numbers of every stage, pinned together with the stage's version.

Whoever changes numbers and means to raises the version in sublora/system/versions.py, which reruns the stage wherever
it has run, and then writes the values again: `python tests/test_golden.py`. It refuses to write new numbers under an
old version. Digests and counts must be equal, since no machine may change them. Other numbers may differ by
TOLERANCE, relative: float32 sums in another order (SSE in place of AVX-512) make 4e-6 here, one percent more learning
rate 8e-2.
"""

import copy
import hashlib
import json
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from analysis_data import write_results

from sublora import config
from sublora.analysis.runs_table import collect_runs, write_runs_csv
from sublora.bounds import inequalities
from sublora.bounds.premises import BoundedLoss, Premises
from sublora.bounds.record import RunFacts
from sublora.bounds.run_bounds import ChargedMessage, HeldOutLosses, ScoredDocuments, run_bounds
from sublora.bounds.smoothing import DocumentMixture, TokenSmoothing, parse_smoothing
from sublora.coding.payload import MessageContents, write_payload
from sublora.coding.quantizer import quantize_entropy, quantize_plain
from sublora.data.base_and_target import open_target
from sublora.data.dataset import TokenDataset
from sublora.data.prepare import prepare_all, prepare_dataset
from sublora.models.lora import initial_theta
from sublora.models.spaces import lora_space
from sublora.models.weights import random_weights, weights_sha256
from sublora.runs.base import load_base, make_base
from sublora.runs.bound import read_losses
from sublora.runs.build import RunFolder
from sublora.runs.message import payload_context, read_message
from sublora.runs.score import Predictor, record_documents, score_run
from sublora.runs.train import train_run
from sublora.runs.yardsticks import make_yardsticks
from sublora.subspace.projections import PROJECTIONS
from sublora.system.streams import generator
from sublora.system.versions import CERTIFICATE_FORMAT, NUMERICS_VERSIONS
from sublora.training import checkpoint
from sublora.yardsticks.record import read_yardsticks

FOLDER = Path(__file__).resolve().parent / "golden"
SETTINGS_FILE, VALUES_FILE = FOLDER / "settings.yaml", FOLDER / "values.json"
TOLERANCE = 1e-4
VOCABULARY, BUDGET, SEED = 257, 60, 1
VERSIONS = {
    **{f"NUMERICS_VERSIONS[{name!r}]": v for name, v in NUMERICS_VERSIONS.items()},
    "CERTIFICATE_FORMAT": CERTIFICATE_FORMAT,
}

Values = dict[str, str | int | float | list[float] | None]


def settings_with(**sections: dict[str, Any]) -> config.Settings:
    values = copy.deepcopy(yaml.safe_load(SETTINGS_FILE.read_text(encoding="utf-8")))
    for section, keys in sections.items():
        values[section] = values[section] | keys
    return config.parse_settings(values, source=str(SETTINGS_FILE))


def settings_with_a_trained_base() -> config.Settings:
    """On the documents of another chain of the same kind, half as many."""
    values = yaml.safe_load(SETTINGS_FILE.read_text(encoding="utf-8"))
    corpus = values["data"]["corpus"] | {"seed": 4, "documents": 150}
    own = {"name": "chain4", "corpus": corpus, "val_documents": 20, "seed": 5}
    shared = {key: values["training"][key] for key in config.Optimization.model_fields}
    values["base"] = own | shared | {"kind": "trained", "min_characters": 1, "learning_rate": 0.01, "threads": 1}
    return config.parse_settings(values, source=str(SETTINGS_FILE))


def sha256(*parts: bytes | np.ndarray) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part if isinstance(part, bytes) else np.ascontiguousarray(part).tobytes())
    return digest.hexdigest()


def data_of(root: Path) -> None:
    if not (root / "data").exists():
        prepare_dataset(settings_with().data, root)


def trained(root: Path, allocation: str, quantizer: str) -> Path:
    """Folder of a finished training of the golden settings."""
    data_of(root)
    spec = config.RunSpec(budget=BUDGET, allocation=allocation, seed=SEED)
    out = root / quantizer / spec.name
    if not out.exists():
        train_run(settings_with(message={"quantizer": quantizer}), spec, root=root, out=out)
    return out


# The numbers of each stage


def message_values(root: Path) -> Values:
    """Payload bytes of symbols that follow from integers alone."""
    index = np.arange(2000, dtype=np.int64)
    noise = (index * 2654435761 % 4294967296) // 65536 % 17 + (index * 40503 % 65536) // 256 % 17 - 16
    w = noise / 8.0
    values: Values = {}
    for quantizer, weights in (("plain", quantize_plain(w, 11)), ("entropy", quantize_entropy(w, 0.5))):
        settings = settings_with(message={"quantizer": quantizer})
        context = payload_context(settings, config.RunSpec(budget=2000, allocation="learned", seed=SEED))
        payload = write_payload(MessageContents(weights, (7, 1999, 0), 4), context)
        values |= {f"{quantizer} bits": payload.bits, f"{quantizer} sha256": sha256(payload.data)}
    return values


def data_values(root: Path) -> Values:
    """Digests of the tokens of a small Markov corpus."""
    data_of(root)
    dataset = TokenDataset.open(root, settings_with().data)
    files = {f"{name} sha256": facts.sha256 for name, facts in sorted(dataset.meta.files.items())}
    return {"training documents": dataset.n_documents, **files}


def train_values(root: Path) -> Values:
    """What the seeds alone decide (base, initialization, projections), and where short trainings arrive."""
    settings = settings_with()
    space = lora_space(settings.model, settings.lora, VOCABULARY)
    values: Values = {"base sha256": weights_sha256(random_weights(settings.model, VOCABULARY, 42))}
    for init in ("zero_b", "both_random"):
        values[f"LoRA init {init} sha256"] = sha256(initial_theta(space, SEED, init))
    for name, rows, columns in (("tall", 500, 60), ("wide", 60, 500)):
        arrays = PROJECTIONS["kronecker_qr"](rows, columns, total=space.size).arrays(generator(SEED, "golden", name))
        values[f"{name} projection sha256"] = sha256(*(arrays[key] for key in sorted(arrays)))
    for allocation, quantizer in (("learned", "plain"), ("uniform", "entropy")):
        best = checkpoint.load(trained(root, allocation, quantizer) / "best_ckpt.pt")
        for key in ("val_loss_bits", "estimated_bound_bits", "code_bits", "quantization_step"):
            if key in best:
                values[f"{allocation}, {quantizer}: {key}"] = best[key]
        for name, value in best["raw_model"].items():
            values[f"{allocation}, {quantizer}: rms of {name}"] = float(value.square().mean().sqrt())
    return values


def base_values(root: Path) -> Values:
    """Where the training of a base arrives, and on what data."""
    settings = settings_with_a_trained_base()
    own = root / "trained base"
    prepare_all(settings, own)
    facts = json.loads(make_base(settings, root=own).read_text(encoding="utf-8"))
    weights = load_base(settings, SEED, VOCABULARY, own).weights
    values: Values = {key: facts[key] for key in ("data_hash", "documents", "parameters", "val_loss_bits")}
    values["hash of the target's data"] = open_target(settings, own).data_hash
    for name in ("wte.weight", "wpe.weight", "h.1.attn.c_attn.weight", "h.0.mlp.c_fc.bias", "ln_f.weight"):
        values[f"rms of {name}"] = float(np.sqrt(np.square(weights[name].astype(np.float64)).mean()))
    return values


def yardsticks_values(root: Path) -> Values:
    """Every row, except how long it took."""
    data_of(root)
    path = make_yardsticks(settings_with(), root=root)
    yardsticks = read_yardsticks(path, open_target(settings_with(), root).data_hash)
    values: Values = {}
    for name, row in yardsticks.rows.items():
        numbers = ("bound_bits", "empirical_loss_bits", "val_loss_bits", "test_loss_bits", "code_bits")
        values |= {f"{name}: {key}": getattr(row, key) for key in ("smoothing", *numbers)}
    return values


def score_values(root: Path) -> Values:
    """Encoding and scoring of a fixed w, so that a change of training alone does not show here."""
    values: Values = {}
    for quantizer in ("plain", "entropy"):
        out = root / "scored" / quantizer
        shutil.copytree(trained(root, "learned", quantizer), out)
        given = checkpoint.load(out / "best_ckpt.pt")
        w = 0.5 * generator("golden w").laplace(size=BUDGET)
        given["raw_model"]["subspace_params"] = torch.from_numpy(w.astype(np.float32))
        for index, name in enumerate(sorted(n for n in given["raw_model"] if n.startswith("gating_params"))):
            given["raw_model"][name] = torch.tensor(index - 1.0)
        checkpoint.save(out / "best_ckpt.pt", given | ({"quantization_step": 0.5} if quantizer == "entropy" else {}))
        score_run(out, root=root)
        message, losses = read_message(out / "certificate.bin"), read_losses(out / "losses.npz").arrays
        values |= {
            f"{quantizer}: payload sha256": sha256(message.payload.data),
            f"{quantizer}: drawn documents sha256": sha256(losses["indices"].astype("<i8")),
            f"{quantizer}: smoothing index": message.contents.smoothing_index,
        }
        numbers = ("losses_bits", "val_losses_bits", "val_losses_unquantized_bits", "test_losses_bits", "log_p_nats")
        for name in numbers:
            values[f"{quantizer}: {name}"] = float(losses[name].mean())
        # A document longer than the context and its windows, under every kind of smoothing.
        for candidate in ("token(0.05)", "document(4)"):
            run = RunFolder.open(out, root=root).load(torch.device("cpu"))
            model = run.decoded(message.contents.weights.values(), message.contents.gates)
            predictor = Predictor(model, parse_smoothing(candidate))
            record = record_documents(run, predictor, "val", np.arange(3))
            values[f"{quantizer}: {candidate}"] = record.losses_D.tolist()
        values[f"{quantizer}: topk_errors"] = losses["topk_errors"].mean(0).tolist()
    return values


def bound_values(root: Path) -> Values:
    """Every inequality on losses that follow from integers alone."""
    losses = 2.0 + 6.0 * (np.arange(400) * 37 % 101) / 101
    common = {"lower": 0.5, "upper": 10.0, "code_bits": 321.0, "delta": 0.05}
    values: Values = {}
    for inequality in inequalities.FULL_SAMPLE:
        values[inequality.__name__] = inequality(losses, n=400, **common)
    for inequality in inequalities.SUBSAMPLED:
        values[inequality.__name__] = inequality(losses, n=20000, delta_sample=0.045, **common)
    keys = ("lower_bits", "upper_bits", "bound_value", "bound_all_runs", "bound_held_out", "bound_held_out_all_runs")
    for smoothing in (TokenSmoothing(0.1), DocumentMixture(8)):
        for delta_sample in (None, 0.045):
            message = ChargedMessage(smoothing, {"symbols": 300.0, "arm": 5.0, "extra": 2.0}, {}, {})
            drawn = {} if delta_sample is None else {"m_units": 400, "delta_sample": delta_sample}
            premises = Premises(20000 if drawn else 400, 0.05, sweep_size=30, **drawn)
            record = run_bounds(
                RunFacts(name="", budget=1, allocation="uniform", mode="uniform", ratio=None, seed=1),
                message=message,
                scored=ScoredDocuments(losses, np.stack([losses / 10.0], axis=1), (1,)),
                held_out=HeldOutLosses(losses, losses, losses[:100]),
                loss=BoundedLoss((smoothing,), VOCABULARY, 33, premises),
            ).as_json()
            case = f"{smoothing.name}, {record['bound_inequality']}"
            values |= {f"{case}: {key}": record[key] for key in keys} | {f"{case}: top 1": record["topk_bounds"]["1"]}
    log_p = np.linspace(-2000.0, -1.0, 7)
    values["mixture"] = DocumentMixture(8).losses_bits(log_p, np.arange(33, 40), VOCABULARY).tolist()
    return values


def figures_values(root: Path) -> Values:
    """The runs table, which all figures and tables read, of made-up records."""
    runs = collect_runs(write_results(root / "made_up"))
    write_runs_csv(runs, root / "runs.csv")
    text = (root / "runs.csv").read_text(encoding="utf-8")
    numbers = ("bound_value", "empirical_bpd", "code_bits", "val_loss_bits")
    return {"columns": text.splitlines()[0]} | {name: runs[name].astype(float).tolist() for name in numbers}


STAGES: dict[str, Callable[[Path], Values]] = {
    "CERTIFICATE_FORMAT": message_values,
    "NUMERICS_VERSIONS['data']": data_values,
    "NUMERICS_VERSIONS['base']": base_values,
    "NUMERICS_VERSIONS['train']": train_values,
    "NUMERICS_VERSIONS['score']": score_values,
    "NUMERICS_VERSIONS['yardsticks']": yardsticks_values,
    "NUMERICS_VERSIONS['bound']": bound_values,
    "NUMERICS_VERSIONS['figures']": figures_values,
}
"""By the version that guards them."""


def differences(found: Values, wanted: Values) -> list[str]:
    """One line for each number that is not as wanted."""
    lines = []
    for name in sorted(found.keys() | wanted.keys()):
        a, b = found.get(name), wanted.get(name)
        exact = not isinstance(b, float | list)
        if a != b and (exact or a != pytest.approx(b, rel=TOLERANCE)):
            lines.append(f"{name} is {a}, was {b}")
    return lines


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Iterator[Path]:
    return tmp_path_factory.mktemp("golden")


def test_every_stage_with_a_version_is_pinned():
    assert STAGES.keys() == VERSIONS.keys(), "a stage with a numerics version needs its function in STAGES"


@pytest.mark.parametrize("version", STAGES)
def test_numbers_change_only_with_their_version(root: Path, version: str) -> None:
    golden = json.loads(VALUES_FILE.read_text(encoding="utf-8"))[version]
    assert golden["version"] == VERSIONS[version], (
        f"{version} is {VERSIONS[version]}, the golden values are those of {golden['version']}; "
        "write them again: python tests/test_golden.py"
    )
    changed = differences(STAGES[version](root), golden["values"])
    assert not changed, (
        f"numbers have changed: if that is meant, raise {version} to {golden['version'] + 1} in "
        "sublora/system/versions.py, so that nothing old is mixed with them, "
        "then run python tests/test_golden.py; if not, find the cause.\n" + "\n".join(changed)
    )


def main() -> None:
    old = json.loads(VALUES_FILE.read_text(encoding="utf-8")) if VALUES_FILE.exists() else {}
    new = {}
    with tempfile.TemporaryDirectory() as folder:
        for version, values_of in STAGES.items():
            new[version] = {"version": VERSIONS[version], "values": values_of(Path(folder))}
            before = old.get(version, {"version": None, "values": {}})
            changed = differences(new[version]["values"], before["values"])
            if changed and before["version"] == VERSIONS[version]:
                sys.exit(
                    f"raise {version} in sublora/system/versions.py first, its numbers have changed:\n"
                    + "\n".join(changed)
                )
            if not changed:
                new[version]["values"] = before["values"]  # of whatever machine wrote them first
    VALUES_FILE.write_text(json.dumps(new, indent=1) + "\n", encoding="utf-8")
    print(f"{VALUES_FILE}: written")


if __name__ == "__main__":
    main()
