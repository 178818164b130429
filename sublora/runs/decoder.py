"""The part of a certificate's header that reaches the decoded predictor or the draw of documents.

Does not import torch.
"""

from typing import Any

from sublora import config
from sublora.coding import plain
from sublora.config.claim import decoder_settings
from sublora.models.spaces import lora_groups
from sublora.subspace.allocations import Gate, parse_allocation


def run_gates(settings: config.Settings, spec: config.RunSpec) -> tuple[Gate, ...]:
    """Return the gates whose integers the message holds; none where only w is learned."""
    allocation = parse_allocation(spec.allocation)
    if spec.budget == config.ALL or settings.subspace.adapt != "lora":
        return ()
    return allocation.gates(lora_groups(settings.model, settings.lora), spec.budget, settings.gating.sharing)


def decoder_header(settings: config.Settings, spec: config.RunSpec, facts: dict[str, Any]) -> dict[str, Any]:
    """Return the canonical decoder header: plain JSON values on which the decoded predictor or the draw depends.

    Nothing else may stand here: with a free field a prover could draw other documents for the same predictor. So what
    only names arrays (projection seed, scale of the random base) gives way to their hashes, a key that has no effect
    (levels of the entropy code, sharing without gates, lora where weights are adapted) is null, and a value with
    several spellings (order of the LoRA targets, a ratio's digits) has one. Units that are not documents are named.
    `facts`: the certificate's whole header.
    """
    values = decoder_settings(settings)
    # Names of arrays give way to hashes.
    values["base"]["sha256"] = facts["base_sha256"]
    values["subspace"]["sha256"] = facts["projection_sha256"]
    # A key without an effect is null, and one of several spellings stands for all.
    if settings.message.quantizer != plain.NAME:
        values["message"]["levels"] = None
    if not run_gates(settings, spec):
        values["gating"]["sharing"] = None
    lora = values.pop("lora") | {"sha256": facts["lora_init_sha256"]}
    lora["targets"] = sorted(set(lora["targets"]))
    values["scoring"]["smoothing"] = list(settings.scoring.smoothing)
    if settings.anchors_on_the_base:
        values["scoring"]["anchor"] = "base"
    else:
        del values["scoring"]["anchor"], values["scoring"]["anchor_k0"]
    # What n counts is named where it is not documents.
    if values["data"]["unit"] == "document":
        del values["data"]["unit"]
    else:
        values["data"]["n_units"] = facts["n_units"]
    for key, name in (("sha256", "data_hash"), ("n_documents", "n_documents"), ("vocab_size", "vocab_size")):
        values["data"][key] = facts[name]
    return {
        **values,
        "run": {
            "budget": spec.dimension(facts.get("parameters")),
            "mode": spec.mode,
            "ratio": spec.ratio,
            "seed": spec.seed,
        },
        "lora": lora if settings.subspace.adapt == "lora" else None,
        "numerics": {"score": facts["numerics_versions"]["score"]},
    }
