"""Turn certificate.bin and losses.npz into bounds.json and bounds_metrics.pt.

Needs no network, no data and no GPU, and does not import torch. `sublora bound` writes the record of a run's bounds;
`sublora verify` computes it again from its own losses.

`bound_strict` charges the settings of a run instead of supposing them. A message that names one of R reference
configurations, which come with the release, and lists what differs from it can be decoded by anyone who has the
release. The list is a prefix-free code:

    which reference             ceil(log2 R) bits
    number of differing keys    plus one, in Elias' gamma code
    each of them                its index among the K keys that are charged, ceil(log2 K) bits, and the JSON text of its
                                value: the bytes after a leading 1, read as one integer, in Elias' delta code
"""

import time
from pathlib import Path

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
from sublora.bounds.run_bounds import (
    ChargedMessage,
    HeldOutLosses,
    ScoredDocuments,
    ScoredSources,
    SettingsCharge,
    run_bounds,
)
from sublora.coding.bits import elias_delta_bits, elias_gamma_bits, index_bits
from sublora.config.marks import charged_keys, claim_settings, differing_keys, reference, reference_names, unfit
from sublora.losses import TOP_K
from sublora.models.spaces import model_parameters
from sublora.runs.losses_file import LossesProvenance, RunLosses, read_losses
from sublora.runs.message import Message, charged_bits, read_message
from sublora.runs.starts import announce, record_start
from sublora.system.archives import save_numbers
from sublora.system.digests import canonical_json
from sublora.system.errors import UserError
from sublora.system.files import write_json
from sublora.system.locks import Presence, sole_writer
from sublora.system.names import BOUNDS_NAME, BOUNDS_PT_NAME, CERTIFICATE_NAME, LOSSES_NAME
from sublora.system.provenance import Provenance, git_commit
from sublora.system.versions import CHECKPOINT_FORMAT

PT_KEYS = ("kl_divergence", "empirical_bpd", "bound_value", "compressed_size_bits", "bound_hoeffding", "code_bits")
"""Numbers of the record that bounds_metrics.pt holds as well."""
VERSIONS = ("sublora", "python", "torch", "numpy", "scipy", "constriction")
"""What bounds.json holds the versions of."""


def bound_run(path: Path, *, config_path: Path | None = None) -> Path:
    """Write bounds.json and bounds_metrics.pt of the run in `path`; return the first.

    UserError if the certificate or the losses are missing, damaged, or of another config.
    """
    started = time.monotonic()

    # Read what scoring left, and refuse what does not belong together.
    message = read_message(path / CERTIFICATE_NAME)
    if config_path is not None:
        _check_settings_in_force(message, config_path)
    scored_file = read_losses(path / LOSSES_NAME)
    scored, own = scored_file.provenance.certificate_sha256, message.certificate_sha256
    if scored != own:
        raise UserError(
            f"{path / LOSSES_NAME}: losses of the certificate {scored[:12]}..., but {CERTIFICATE_NAME} is "
            f"{own[:12]}...; score the run again (sublora score {path})"
        )
    losses = scored_file.of(message)

    provenance = Provenance.of_this_process()
    announce(message.settings, provenance)
    record_start(path, "bound", message.settings, provenance)
    environment = run_environment(scored_file.provenance, provenance, time.monotonic() - started)

    # Compute everything before anything is written.
    try:
        record = run_record(message, losses, environment).as_json()
    except ValueError as error:
        raise UserError(f"{path / LOSSES_NAME}: {error}; score the run again (sublora score {path})") from None
    with sole_writer(path, Presence(path, "bounding")):
        save_numbers(path / BOUNDS_PT_NAME, {"format": CHECKPOINT_FORMAT, **{key: record[key] for key in PT_KEYS}})
        write_json(path / BOUNDS_NAME, record)
    return path / BOUNDS_NAME


def _check_settings_in_force(message: Message, config_path: Path) -> None:
    """UserError if the run was scored with other settings than those of the file."""
    given = config.load_settings(config_path).for_run(message.spec)
    wanted, found = (config.stage_settings(settings, "bound") for settings in (given, message.settings))
    for section, values in wanted.items():
        if values != found[section]:
            raise UserError(
                f"{message.path}: written with other settings: {section} is {found[section]}, "
                f"{config_path} has {values}; score the run again (sublora score {message.path.parent})"
            )


def run_record(message: Message, losses: RunLosses, environment: Environment) -> BoundRecord:
    """Return what bounds.json claims of a run, from the decoded certificate and its losses.

    ValueError where the losses do not fit the certificate, as in `sublora.bounds.run_bounds.run_bounds`.
    """
    assert losses.val_losses_unquantized_bits is not None
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
        scored=ScoredDocuments(losses.losses_bits, losses.topk_errors, TOP_K, len(losses.target_counts)),
        held_out=HeldOutLosses(
            val_D=losses.val_losses_bits,
            val_unquantized_D=losses.val_losses_unquantized_bits,
            test_D=losses.test_losses_bits,
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


def anchored_evidence(message: Message, losses: RunLosses) -> AnchoredLosses | None:
    """Return what the anchored bound follows from; None where the predictor falls back on guessing alone."""
    anchoring, mixture = message.loss.anchoring, message.mixture
    if anchoring is None or mixture is None:
        return None
    # Every anchored run has these arrays (`LossesFile.of`).
    assert losses.base_losses_bits is not None and losses.excess_bits is not None
    assert losses.test_excess_bits is not None
    documents = AnchoredSample(
        losses.base_losses_bits,
        losses.excess_bits,
        message.loss.premises.n_units,
        anchoring.base_share(anchoring.base_documents),
        anchoring.excess_share(message.loss.premises.m_units),
    )
    wanted, facts, sources = message.settings.scoring.sources, message.header.sources, None
    if wanted is not None and facts is not None:
        assert losses.base_source_losses_bits is not None and losses.source_excess_bits is not None
        sources = AnchoredSample(
            losses.base_source_losses_bits,
            losses.source_excess_bits,
            facts.n,
            anchoring.base_share(anchoring.base_sources),
            anchoring.excess_share(wanted),
        )
    return AnchoredLosses(mixture, documents, losses.test_excess_bits, sources)


def _scored_sources(message: Message, losses: RunLosses) -> ScoredSources | None:
    """Return the draw of sources, where the settings ask for one. ValueError for a header without sources."""
    wanted, facts, drawn = message.settings.scoring.sources, message.header.sources, losses.source_losses_bits
    if wanted is None:
        return None
    if facts is None or drawn is None:
        raise ValueError(f"scoring.sources is {wanted}, but there are no losses of that many sources")
    return ScoredSources(drawn, facts.n, message.settings.bound.delta_sample)


def base_facts(message: Message) -> BaseFacts:
    """Return which base the bound is conditional on, and for a pretrained one why it was fixed beforehand."""
    base, independence = message.settings.base, None
    if isinstance(base, config.PretrainedBase):
        independence = IndependenceFacts(**base.independence.model_dump())
    return BaseFacts(kind=base.kind, sha256=message.header.base_sha256, independence=independence)


def run_environment(scored: LossesProvenance, provenance: Provenance, bound_seconds: float) -> Environment:
    """Return facts of training, scoring and this computation, from the provenance that scoring wrote."""
    trained, took = scored.train, scored.seconds
    return Environment(
        seconds=StageSeconds(train=trained.seconds, encode=took.encode, score=took.score, bound=bound_seconds),
        peak_memory_mib=PeakMemory(train=trained.peak_memory_mib, score=scored.peak_memory_mib),
        versions=provenance.versions_of(*VERSIONS),
        gpu=trained.gpu,
        commit=git_commit(),
        slurm_job_ids=JobIds(train=trained.slurm_job_id, score=scored.slurm_job_id),
    )


def settings_bits(settings: config.Settings, name: str) -> int:
    """Bits of the code that names `settings` by the reference of that name."""
    values, differing = claim_settings(settings), differing_keys(settings, reference(name))
    bits = index_bits(len(reference_names())) + elias_gamma_bits(len(differing) + 1)
    for key in differing:
        text = canonical_json(values[key])
        bits += index_bits(len(charged_keys())) + elias_delta_bits(int.from_bytes(b"\1" + text, "big"))
    return bits


def settings_charge(settings: config.Settings) -> SettingsCharge:
    """The cheapest reference that fits, and the bits it costs to name these settings by it; the reason if none fits."""
    reasons = {name: unfit(settings, name) for name in reference_names()}
    costs = {name: settings_bits(settings, name) for name, reason in reasons.items() if reason is None}
    if not costs:
        return SettingsCharge(None, None, "; ".join(map(str, reasons.values())))
    cheapest = min(costs, key=lambda name: (costs[name], name))
    return SettingsCharge(cheapest, costs[cheapest], None)
