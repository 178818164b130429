"""What of a certificate's header reaches the decoded predictor or the draw of documents.

Does not import torch.
"""

from typing import Any

from sublora import config
from sublora.coding import plain
from sublora.models.spaces import lora_groups
from sublora.subspace.allocations import Gate, parse_allocation


def run_gates(settings: config.Settings, spec: config.RunSpec) -> tuple[Gate, ...]:
    """The gates whose integers the message holds, empty where nothing is learned but w."""
    allocation = parse_allocation(spec.allocation)
    if spec.budget == config.ALL or settings.subspace.adapt != "lora":
        return ()
    return allocation.gates(lora_groups(settings.model, settings.lora), spec.budget, settings.gating.sharing)


def decoder_header(settings: config.Settings, spec: config.RunSpec, facts: dict[str, Any]) -> dict[str, Any]:
    """The canonical decoder header: plain JSON values on which the decoded predictor or the draw depends.

    Nothing else may stand here: with a free field a prover could draw other documents for the same predictor. So what
    only names arrays (projection seed, scale of the random base) gives way to their hashes, a key that has no effect
    (levels of the entropy code, sharing without gates, lora where weights are adapted) is null, and what has several
    spellings (order of the LoRA targets, a ratio's digits) has one. Units are named where they are not the documents.
    `facts`: the certificate's whole header.
    """
    scoring = settings.scoring
    quantizer, unit = settings.message.quantizer, settings.data.unit
    return {
        "run": {
            "budget": spec.dimension(facts.get("parameters")),
            "mode": spec.mode,
            "ratio": spec.ratio,
            "seed": spec.seed,
        },
        "base": {"kind": settings.base.kind, "sha256": facts["base_sha256"]},
        "model": _model_facts(settings.model),
        "lora": _lora(settings.lora, facts["lora_init_sha256"]) if settings.subspace.adapt == "lora" else None,
        "subspace": {"projection": settings.subspace.projection, "sha256": facts["projection_sha256"]},
        "gating": {"sharing": settings.gating.sharing if run_gates(settings, spec) else None},
        "message": {"quantizer": quantizer, "levels": settings.message.levels if quantizer == plain.NAME else None},
        "scoring": {
            "documents": scoring.documents,
            "sliding_window": scoring.sliding_window,
            "smoothing": list(scoring.smoothing),
        },
        "data": {
            "sha256": facts["data_hash"],
            "n_documents": facts["n_documents"],
            "vocab_size": facts["vocab_size"],
            "min_tokens": settings.data.min_tokens,
            **({} if unit == "document" else {"unit": unit, "n_units": facts["n_units"]}),
        },
        "numerics": {"score": facts["numerics_versions"]["score"]},
    }


def _model_facts(model: config.AnyModel) -> dict[str, Any]:
    """Of a model of transformers the hash of the base names the rest."""
    if isinstance(model, config.Model):
        return {key: getattr(model, key) for key in ("n_layer", "n_head", "n_embd", "context_length")}
    return {"kind": model.kind, "n_layer": model.n_layer, "context_length": model.context_length}


def _lora(lora: config.Lora, init_sha256: str) -> dict[str, Any]:
    return {
        "rank": lora.rank,
        "alpha": lora.alpha,
        "targets": sorted(set(lora.targets)),
        "init": lora.init,
        "sha256": init_sha256,
    }
