"""The tiny experiments behind the conformance set: a direct bound, one anchored on the base, one on a random base.

Nothing is trained: w comes from a random stream, and the base is a table of byte frequencies in the form of a network.
So certificates have the same bytes on every machine, while losses differ by float32 rounding.
"""

import copy
import dataclasses
import json
from pathlib import Path

import numpy as np
import torch
import yaml

from sublora import config
from sublora.coding.certificate import write_certificate
from sublora.coding.payload import MessageContents, write_payload
from sublora.coding.quantizer import EntropyWeights, nearest_step_index
from sublora.data.base_and_target import open_target
from sublora.data.prepare import prepare_all
from sublora.models.weights import Base, random_weights, weights_sha256
from sublora.runs.base_files import own_base_weights
from sublora.runs.base_losses import compute_base_losses
from sublora.runs.bound import bound_run
from sublora.runs.build import assemble_run
from sublora.runs.encode import certificate_header
from sublora.runs.losses_file import LossesProvenance, write_losses
from sublora.runs.message import payload_context, read_message
from sublora.runs.networks import AnyBase, random_base, read_base, write_base
from sublora.runs.score import decoded_predictor, score_message
from sublora.system.names import CERTIFICATE_NAME, LOSSES_NAME
from sublora.system.provenance import Provenance
from sublora.system.streams import generator

SETTINGS = Path(__file__).resolve().parent / "settings.yaml"
SPEC = config.RunSpec(budget=5, allocation="learned", seed=1)
OTHER_SPEC = config.RunSpec(budget=5, allocation="uniform", seed=2)
TRAINED = {
    "kind": "trained",
    "name": "apart",
    "corpus": {"kind": "functions", "packages": ["vectors_of_the_base"]},
    "min_characters": 1,
    "val_documents": 5,
    "seed": 7,
    "steps": 10,
    "tokens_per_step": 96,
    "micro_batch_sequences": 4,
    "learning_rate": 0.01,
    "final_learning_rate": 0.001,
    "warmup_fraction": 0.1,
    "betas": [0.9, 0.95],
    "epsilon": 1.0e-8,
    "weight_decay": 0.1,
    "gradient_clip": 1.0,
    "eval_interval_steps": 5,
    "eval_sequences": 4,
    "log_interval_steps": 1,
    "save_interval_steps": 5,
    "threads": 1,
}
FAMILIES = {
    "random": {},
    "direct": {"base": TRAINED},
    "anchored": {
        "base": TRAINED,
        "scoring": {
            "anchor": "base",
            "anchor_k0": 12,
            "base_documents": 300,
            "sources": 100,
            "base_sources": "all",
        },
        "bound": {"delta_base": 0.01, "delta_base_sample": 0.009, "delta_excess_sample": 0.036},
    },
}
"""What each experiment changes in settings.yaml."""
STEP = 0.05
"""Quantization step of w."""


def settings_values(family: str) -> dict:
    """Settings of an experiment as plain values."""
    values = yaml.safe_load(SETTINGS.read_text(encoding="utf-8"))
    for section, keys in copy.deepcopy(FAMILIES[family]).items():
        values[section] = keys if section == "base" else values[section] | keys
    return values


def write_package(root: Path, name: str, modules: int) -> None:
    """A package of tiny functions, one to four in a module: documents that have sources."""
    stream = generator("conformance", name)
    folder = root / name
    folder.mkdir(parents=True)
    for i in range(modules):
        numbers = stream.integers(10, 10_000, size=1 + i % 4).tolist()
        text = "".join(f"def f{j}(x):\n    return x + {number}\n\n\n" for j, number in enumerate(numbers))
        (folder / f"m{i}.py").write_text(text, encoding="utf-8")


def make_experiment(root: Path, family: str) -> config.Settings:
    """Settings, data, base and two finished runs at `root`, whose packages must be on Python's path."""
    write_package(root, "vectors", 30)
    write_package(root, "vectors_of_the_base", 12)
    values = settings_values(family)
    (root / "config").mkdir()
    (root / "config/config.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
    settings = config.load_settings(root / "config/config.yaml")
    prepare_all(settings, root)
    dataset = open_target(settings, root)
    if settings.base.kind != "random":
        path = own_base_weights(root)
        path.parent.mkdir(parents=True)
        write_base(path, frequencies_as_a_base(settings.model, dataset.vocab_size))
    for spec in (SPEC, OTHER_SPEC):
        write_run(root, settings.for_run(spec), spec)
    return settings


def frequencies_as_a_base(model: config.Model, vocab_size: int) -> Base:
    """A GPT-2 that predicts bytes by about how often they are in a function, whatever the context, with a little noise.

    The last norm gives a vector that is nearly constant, and the first column of the embedding has the logits. Powers
    of two stand for frequencies, so that no logarithm is rounded differently elsewhere.
    """
    weights = random_weights(model, vocab_size, 11)
    weights["ln_f.weight"][:], weights["ln_f.bias"][:] = 0.05, 0.0
    weights["ln_f.bias"][0] = 1.0
    counts = np.bincount(list(b"def f0(x):\n    return x + 1234567890\n"), minlength=vocab_size)
    counts[-1] = 1  # end of text
    weights["wte.weight"][:, 0] = [0.7 * int(count).bit_length() for count in counts]
    weights["wte.weight"][:, 0] -= 4.0 * (counts == 0)
    return Base(weights, weights_sha256(weights))


def base_of(root: Path, settings: config.Settings, spec: config.RunSpec, vocab_size: int) -> AnyBase:
    if settings.base.kind == "random":
        return random_base(settings, vocab_size, spec.seed)
    return read_base(own_base_weights(root), settings, vocab_size)


def write_run(root: Path, settings: config.Settings, spec: config.RunSpec) -> Path:
    """Write the three files of a run whose w was drawn, as encoding, scoring and bounding write them."""
    dataset, folder = open_target(settings, root), root / "results/runs" / spec.name
    base = base_of(root, settings, spec, dataset.vocab_size)
    run = assemble_run(settings, spec, dataset, base, torch.device("cpu"))
    # The message.
    context = payload_context(settings, spec)
    symbols_d = generator("conformance", spec.name).integers(-2, 3, size=context.budget)
    gates = tuple(size // 3 for size in context.gate_sizes)
    contents = MessageContents(EntropyWeights(symbols_d, nearest_step_index(STEP)), gates, smoothing_index=2)
    header = certificate_header(run, Provenance.of_this_process()).model_dump(mode="json", exclude_unset=True)
    header["environment"] = dict.fromkeys(header["environment"], "0")
    folder.mkdir(parents=True)
    write_certificate(folder / CERTIFICATE_NAME, header, write_payload(contents, context))
    # Its losses and bounds.
    message = read_message(folder / CERTIFICATE_NAME)
    anchoring = run.loss.anchoring
    of_base = None if anchoring is None else compute_base_losses(run, anchoring)
    losses = score_message(run, message, decoded_predictor(run, message), of_base)
    losses = dataclasses.replace(losses, val_losses_unquantized_bits=losses.val_losses_bits)
    facts = {"seconds": 0.0, "peak_memory_mib": 0.0, "gpu": None, "slurm_job_id": None}
    trained = facts | {"python": "0", "torch": "0"}
    scored = facts | {"seconds": {"encode": 0.0, "score": 0.0}, "train": trained}
    facts = LossesProvenance.model_validate(scored | {"certificate_sha256": message.certificate_sha256})
    write_losses(folder / LOSSES_NAME, losses, facts)
    bound_run(folder)
    return folder


def without_environment(path: Path) -> None:
    """Replace in a bounds.json what it says of machines, so that it has the same bytes wherever it was made."""
    record = json.loads(path.read_text(encoding="utf-8"))
    record["versions"] = dict.fromkeys(record["versions"], "0")
    for key in ("seconds", "peak_memory_mib"):
        record[key] = dict.fromkeys(record[key], 0.0)
    record |= {"gpu": None, "commit": None, "slurm_job_ids": dict.fromkeys(record["slurm_job_ids"])}
    path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
