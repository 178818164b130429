"""From a decoded certificate and the arrays of losses.npz to the record of a run's bounds. Does not import torch.

`sublora bound` writes the record, and `sublora verify` computes it again from its own losses.
"""

from typing import Any

from sublora import config
from sublora.bounds.anchored_record import AnchoredLosses, AnchoredSample
from sublora.bounds.record import (
    BaseFacts,
    BoundRecord,
    Environment,
    IndependenceFacts,
    JobIds,
    PeakMemory,
    RunFacts,
    StageSeconds,
)
from sublora.bounds.run_bounds import ChargedMessage, HeldOutLosses, ScoredDocuments, ScoredSources, run_bounds
from sublora.losses import TOP_K
from sublora.models.spaces import model_parameters
from sublora.runs.message import Message, charged_bits
from sublora.runs.settings_charge import settings_charge
from sublora.system.provenance import Provenance, git_commit

VERSIONS = ("sublora", "python", "torch", "numpy", "scipy", "constriction")
"""What bounds.json holds the versions of."""


def run_record(message: Message, losses: dict[str, Any], environment: Environment) -> BoundRecord:
    """Return what bounds.json claims of a run, from the decoded certificate and the arrays of losses.npz.

    ValueError where the losses do not fit the certificate, as in `sublora.bounds.run_bounds.run_bounds`.
    """
    _, items = charged_bits(message.payload.items, message.settings)
    gates = message.gates
    bounds = run_bounds(
        run_facts(message),
        message=ChargedMessage(
            smoothing=message.smoothing,
            items=items,
            gates={gate.group: k for gate, k in zip(gates, message.contents.gates, strict=True)},
            gate_sizes={gate.group: gate.size for gate in gates},
        ),
        scored=ScoredDocuments(losses["losses_bits"], losses["topk_errors"], TOP_K, len(losses["target_counts"])),
        held_out=HeldOutLosses(
            val_D=losses["val_losses_bits"],
            val_unquantized_D=losses["val_losses_unquantized_bits"],
            test_D=losses["test_losses_bits"],
        ),
        loss=message.loss,
        settings=settings_charge(message.settings),
        by_source=_scored_sources(message, losses),
        anchored=anchored_evidence(message, losses),
    )
    return BoundRecord(
        **dict(bounds),
        **dict(environment),
        base=base_facts(message),
        data_hash=message.header.data_hash,
        certificate_sha256=message.certificate_sha256,
    )


def run_facts(message: Message) -> RunFacts:
    """Return which run the record is of; of what tells networks apart only what the grid compares."""
    spec, model = message.spec, message.settings.model
    parameters = None
    if spec.size is not None and isinstance(model, config.Model):
        parameters = model_parameters(model, message.header.vocab_size)
    return RunFacts(
        name=spec.name,
        budget=spec.dimension(message.header.parameters),
        allocation=spec.allocation,
        mode=spec.mode,
        ratio=spec.ratio,
        seed=spec.seed,
        trained=spec.trained,
        size=spec.size,
        model_parameters=parameters,
    )


def anchored_evidence(message: Message, losses: dict[str, Any]) -> AnchoredLosses | None:
    """Return what the anchored bound follows from; None where the predictor falls back on guessing alone."""
    anchoring, mixture = message.loss.anchoring, message.mixture
    if anchoring is None or mixture is None:
        return None
    documents = AnchoredSample(
        losses["base_losses_bits"],
        losses["excess_bits"],
        message.loss.premises.n_units,
        anchoring.base_share(anchoring.base_documents),
        anchoring.excess_share(message.loss.premises.m_units),
    )
    wanted, facts, sources = message.settings.scoring.sources, message.header.sources, None
    if wanted is not None and facts is not None:
        sources = AnchoredSample(
            losses["base_source_losses_bits"],
            losses["source_excess_bits"],
            facts.n,
            anchoring.base_share(anchoring.base_sources),
            anchoring.excess_share(wanted),
        )
    return AnchoredLosses(mixture, documents, losses["test_excess_bits"], sources)


def _scored_sources(message: Message, losses: dict[str, Any]) -> ScoredSources | None:
    """Return the draw of sources, where the settings ask for one. ValueError if it is not what they ask for."""
    wanted, facts, drawn = message.settings.scoring.sources, message.header.sources, losses.get("source_losses_bits")
    if wanted is None:
        return None
    if facts is None or drawn is None or drawn.shape != (wanted,):
        raise ValueError(f"scoring.sources is {wanted}, but there are no losses of that many sources")
    return ScoredSources(drawn, facts.n, message.settings.bound.delta_sample)


def base_facts(message: Message) -> BaseFacts:
    """Return which base the bound is conditional on, and for a pretrained one why it was fixed beforehand."""
    base, independence = message.settings.base, None
    if isinstance(base, config.PretrainedBase):
        independence = IndependenceFacts(**base.independence.model_dump())
    return BaseFacts(kind=base.kind, sha256=message.header.base_sha256, independence=independence)


def run_environment(scored: dict[str, Any], provenance: Provenance, bound_seconds: float) -> Environment:
    """Return facts of training, scoring and this computation, from the provenance that scoring wrote."""
    trained, took = scored["train"], scored["seconds"]
    return Environment(
        seconds=StageSeconds(train=trained["seconds"], encode=took["encode"], score=took["score"], bound=bound_seconds),
        peak_memory_mib=PeakMemory(train=trained["peak_memory_mib"], score=scored["peak_memory_mib"]),
        versions=provenance.versions_of(*VERSIONS),
        gpu=trained["gpu"],
        commit=git_commit(),
        slurm_job_ids=JobIds(train=trained["slurm_job_id"], score=scored["slurm_job_id"]),
    )
