"""Check a claimed bound from its certificate: decode, rebuild, re-score, recompute, compare.

Trusted are this package and the text of the verifier's data. Whatever can be computed is computed, and the bounds that
the verdict names follow from the verifier's own losses.
"""

import dataclasses
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sublora import config
from sublora.losses.causality import CausalityTest
from sublora.runs.base_files import NAME_IT
from sublora.runs.base_losses import compute_base_losses
from sublora.runs.bound import PT_KEYS, run_environment, run_record
from sublora.runs.build import assemble_run
from sublora.runs.losses_file import LossesFile, RunLosses, read_losses
from sublora.runs.message import Message, read_message
from sublora.runs.networks import AnyBase, random_base, read_base
from sublora.runs.score import decoded_predictor, score_message
from sublora.runs.starts import announce
from sublora.runs.verify.checks import UNQUANTIZED, Check, data_checks, loss_checks, record_checks, unquantized_losses
from sublora.runs.verify.files import Claim, Options, read_claim
from sublora.runs.verify.own_documents import OwnDocuments, bound_of_own_draw
from sublora.runs.verify.report import write_verdict
from sublora.runs.verify.scales import scale_checks
from sublora.runs.verify.verdict import (
    Verdict,
    premises_of,
    settings_checks,
    texts_of_the_base,
    trusted_premises,
    unchecked_facts,
)
from sublora.subspace.hashes import SubspaceHashes
from sublora.system.device import claim_device
from sublora.system.errors import UserError
from sublora.system.names import BOUNDS_NAME, BOUNDS_PT_NAME, LOSSES_NAME
from sublora.system.provenance import Provenance
from sublora.system.streams import generator
from sublora.system.versions import CHECKPOINT_FORMAT, NUMERICS_VERSIONS
from sublora.training import checkpoint
from sublora.training.run import Run

OWN_NUMBERS = (
    "empirical_bpd",
    "bound_value",
    "bound_all_runs",
    "bound_strict",
    "bound_direct",
    "bound_hoeffding",
    "code_bits",
)
"""What the verdict names of the record that the verifier computes."""
LARGEST_BATCH_TOKENS = 1 << 14
"""Tokens that go through the network at once, whatever the claim's own machine could take."""
HELD_OUT = ("test_loss_bits", "bound_held_out")
"""What it states separately: numbers from test documents, which hold only if the prover chose nothing on them."""
TESTED_SHARE = 0.03
"""Share of the scored windows that are tested for causality at least; more than in scoring, which is the prover's."""
LOOKS_AHEAD = "positions whose predictions depend on later tokens or the length"


@dataclasses.dataclass(frozen=True, eq=False)
class Material:
    """The files that were handed over, as read."""

    claim: Claim
    options: Options
    message: Message
    claimed: dict[str, Any]
    """bounds.json."""
    stored: LossesFile
    """losses.npz."""

    @classmethod
    def read(cls, claim: Claim, options: Options) -> "Material":
        """UserError for a missing or damaged file, or one made with another version of the numerics."""
        message = read_message(claim.certificate)
        found, own = message.header.numerics_versions.get("score"), NUMERICS_VERSIONS["score"]
        if found != own:
            raise UserError(
                f"{claim.certificate}: encoded and scored by version {found} of the numerics, this package has {own}; "
                "verify with the release that made it, or score the run again"
            )
        material = cls(claim, options, message, read_claim(claim.bounds), read_losses(claim.losses))
        _check_numerics_of_the_bounds(material)
        return material


def verify_and_print(claim: Claim, options: Options | None = None, *, json_path: Path | None = None) -> int:
    """Verify, write the verdict to `json_path`, print it; returns the exit status, 0 (verified) or 1 (refused).

    UserError if the claim cannot be checked; `report.recorded` writes that into the file as well.
    """
    verdict = verify_claim(claim, options)
    if json_path is not None:
        write_verdict(json_path, verdict.report())
    verdict.print()
    return verdict.exit_status


def verify_run(path: Path, *, root: Path | None = None, options: Options | None = None) -> Verdict:
    """`verify_claim` of the files in a run's folder."""
    return verify_claim(Claim.of(path, root=root), options)


def verify_claim(claim: Claim, options: Options | None = None) -> Verdict:
    """Recompute everything that can be, from the certificate, the verifier's data and the base.

    Where data, base or settings are not what the certificate says, nothing is scored and the verdict ends there.
    UserError if a file is missing or damaged, or the claim was made with another version of the numerics.
    """
    material = Material.read(claim, options or Options())
    message = material.message
    settings, header = message.settings, message.header
    dataset = claim.dataset(settings.data)
    dataset.verify_hashes()
    left_out, trusted = texts_of_the_base(message, claim, dataset)
    checks = [
        *_identity_checks(material),
        *settings_checks(settings, message.spec, material.options.config_path),
        *_named_base_checks(message, material.options),
        Check("data hash", header.data_hash, dataset.data_hash),
        Check("targets of the longest train document", header.longest_targets, dataset.longest_targets),
        *left_out,
        Check(
            "sources of the training documents",
            None if header.sources is None else header.sources.model_dump(),
            None if settings.scoring.sources is None else dataset.source_facts(),
        ),
        *data_checks(
            dataset,
            min_tokens=settings.data.min_tokens,
            vocab_size=header.vocab_size,
            n_documents=header.n_documents,
            n_units=header.n_units,
        ),
    ]
    verdict = Verdict(
        source=str(claim.folder or claim.certificate),
        run=message.spec.name,
        certificate_sha256=message.certificate_sha256,
        checks=tuple(checks),
        premises=premises_of(message, material.options),
        trusted=(*trusted_premises(message, material.options), *trusted),
        unchecked=unchecked_facts(message, material.claimed),
    )
    if not verdict.verified:
        return verdict
    own = None
    if material.options.test_data is not None:
        own = OwnDocuments.open(material.options.test_data, dataset, settings.data.min_tokens)
        verdict = dataclasses.replace(verdict, trusted=(*verdict.trusted, *own.trusted))
    base = _read_base(message, claim, dataset.vocab_size)
    verdict = verdict.with_checks(Check("base weights", header.base_sha256, base.sha256))
    if not verdict.verified:
        return verdict
    compute = _overridden(settings.compute, material.options)
    with claim_device(compute) as device:
        announce(settings, Provenance.of_this_process(), device)
        here = settings.model_copy(update={"compute": compute})
        run = assemble_run(here, message.spec, dataset, base, device, scale_points=header.scale_points)
        scales, trusted_scales = scale_checks(message, claim, base, device)
        verdict = dataclasses.replace(verdict, trusted=(*verdict.trusted, *trusted_scales))
        verdict = verdict.with_checks(
            Check("base as far as the documents see it", header.seen_base_sha256, run.seen_base_sha256),
            *(Check(*each) for each in SubspaceHashes.of(run.network.space, run.subspace).beside(header)),
            *scales,
            *_parameters_checks(message, run),
        )
        return _rescored(verdict, run, material, own) if verdict.verified else verdict


def _check_numerics_of_the_bounds(material: Material) -> None:
    """UserError for a bounds.json that this version of the numerics does not give and another one may have given.

    bounds.json does not hold the version, and may have been computed again since the certificate was encoded: one that
    agrees is checked like any other. Files of another certificate, and losses that give no bounds, are left to the
    checks that follow.
    """
    claim, message = material.claim, material.message
    found, own = message.header.numerics_versions.get("bound"), NUMERICS_VERSIONS["bound"]
    if found == own or material.claimed.get("certificate_sha256") != message.certificate_sha256:
        return
    # Compute bounds.json again from the losses that were handed over, and compare.
    try:
        record = _record_of(material, material.stored.of(message))
    except (UserError, ValueError):
        return
    checks = record_checks(material.claimed, (record, record), frozenset())
    differing = [check.name for check in checks if not check.agrees]
    if differing:
        raise UserError(
            f"{claim.bounds}: differs in {differing[0]} from what {LOSSES_NAME} gives, and the certificate was made by "
            f"version {found} of the numerics of the bound, this package has {own}; verify with the release that made "
            f"it, or compute the bound again (sublora bound {claim.bounds.parent})"
        )


def _record_of(material: Material, losses: RunLosses) -> dict[str, Any]:
    """Return what bounds.json would hold for these losses.

    Of facts about machines only the keys are compared, so those of this computation will do.
    """
    environment = run_environment(material.stored.provenance, Provenance.of_this_process(), 0.0)
    return run_record(material.message, losses, environment).as_json()


def _named_base_checks(message: Message, options: Options) -> list[Check]:
    """The base that the verifier expects, by its hash."""
    if options.base_sha256 is None:
        return []
    return [Check("base that was asked for", message.header.base_sha256, options.base_sha256)]


def _identity_checks(material: Material) -> list[Check]:
    """Whose claim it is: the folder, the grid, the certificate that bounds.json was computed from."""
    claim, message, claimed = material.claim, material.message, material.claimed
    checks = [
        Check("the run is one of its own grid", True, message.settings.grid.holds(message.spec)),
        Check("certificate sha256", claimed.get("certificate_sha256"), message.certificate_sha256),
        Check(
            "certificate sha256 in losses.npz",
            material.stored.provenance.certificate_sha256,
            message.certificate_sha256,
        ),
        Check("data hash in bounds.json", claimed.get("data_hash"), message.header.data_hash),
    ]
    named = [Check("run that the folder is named after", name, message.spec.name) for name in claim.named_runs]
    return [*checks, *named]


def _parameters_checks(message: Message, run: Run) -> list[Check]:
    """The length of a w that stands for all parameters, which the header says."""
    if message.spec.budget != config.ALL:
        return []
    return [Check("number of trained parameters", message.header.parameters, run.subspace.shape.space.size)]


def _read_base(message: Message, claim: Claim, vocab_size: int) -> AnyBase:
    """The base drawn from the run's seed, or read from its file; UserError if that is missing or another network's."""
    settings = message.settings
    if settings.base.kind == "random":
        return random_base(settings, vocab_size, message.spec.seed)
    return read_base(claim.base_weights(settings.data), settings, vocab_size, fix=NAME_IT)


def _overridden(compute: config.Compute, options: Options) -> config.Compute:
    """Where this verification computes; never with more threads than there are cores, nor in batches of any size."""
    changes: dict[str, Any] = {
        "threads": min(compute.threads, os.cpu_count() or 1),
        "scoring_batch_tokens": min(compute.scoring_batch_tokens, LARGEST_BATCH_TOKENS),
    }
    if options.device is not None and options.device != compute.device:
        changes |= {"device": options.device, "compile": False}
    elif compute.device == "cuda" and not torch.cuda.is_available():
        raise UserError("the certificate was scored on a GPU and this machine has none; score again with --device cpu")
    return compute.model_copy(update=changes)


def _rescored(verdict: Verdict, run: Run, material: Material, own_documents: OwnDocuments | None) -> Verdict:
    """The verdict after scoring: losses, every number of bounds.json, and the verifier's own bounds."""
    message, options = material.message, material.options
    # A draw is made only if losses of as many documents are there.
    sizes = _draw_checks(message, material.stored.arrays)
    if sizes:
        return verdict.with_checks(*sizes)
    # The prover must not know where the networks are tested.
    causality = CausalityTest(generator("causality of a claim", secrets.token_bytes(16)), share=TESTED_SHARE)
    predictor, anchoring = decoded_predictor(run, message, causality), run.loss.anchoring
    base = None if anchoring is None else compute_base_losses(run, anchoring, causality)
    own = score_message(run, message, predictor, base)
    # The network before quantization is not in the certificate: only a checkpoint of it can be scored.
    if material.claim.checkpoint is None:
        unchecked = verdict.unchecked | {f"{UNQUANTIZED} (no checkpoint here)": material.claimed.get(UNQUANTIZED)}
        verdict = dataclasses.replace(verdict, unchecked=unchecked)
    else:
        encodes, before_U = unquantized_losses(run, message, material.claim.checkpoint)
        verdict = verdict.with_checks(encodes)
        own = dataclasses.replace(own, val_losses_unquantized_bits=before_U)
    if not all(np.isfinite(values).all() for values in own.arrays().values()):
        return verdict.with_checks(Check("losses of the decoded network are numbers", True, False))
    verdict = verdict.with_checks(*loss_checks(material.stored.arrays, own.arrays()))
    verdict = _with_record(verdict, material, own)
    # Documents of the verifier's own choosing.
    if options.redraw is not None and options.nonce is not None:
        bound = bound_of_own_draw(run, predictor, message, options.redraw, options.nonce)
        verdict = verdict.with_bounds({"bound_redraw": bound})
    if own_documents is not None:
        verdict = verdict.with_bounds(own_documents.numbers(run, predictor, message))
    none = dataclasses.replace(causality, failed=0)
    verdict = verdict.with_checks(Check(LOOKS_AHEAD, none.summary, causality.summary))
    if causality.failed:
        # Losses of such a network bound nothing.
        verdict = dataclasses.replace(verdict, bounds={}, held_out={})
    return dataclasses.replace(verdict, scored_on=run.settings.compute.device)


def _draw_checks(message: Message, arrays: Mapping[str, np.ndarray]) -> list[Check]:
    """Return the draws that losses.npz does not hold as many documents of as the settings ask for."""
    scoring, anchoring = message.settings.scoring, message.loss.anchoring
    wanted = {"indices": message.loss.premises.m_units, "source_documents": scoring.sources}
    if anchoring is not None:
        wanted |= {"base_indices": anchoring.base_documents, "base_source_documents": anchoring.base_sources}
    checks = [
        Check(f"length of {name} in losses.npz", np.size(arrays.get(name, ())), length)
        for name, length in wanted.items()
        if length is not None
    ]
    return [check for check in checks if not check.agrees]


def _with_record(verdict: Verdict, material: Material, own: RunLosses) -> Verdict:
    """bounds.json against the record of the stored losses and against that of the verifier's own."""
    # Without a checkpoint any val losses will serve, since no number that depends on them is compared.
    on_trust: frozenset[str] = frozenset()
    if own.val_losses_unquantized_bits is None:
        on_trust = frozenset({UNQUANTIZED})
        own = dataclasses.replace(own, val_losses_unquantized_bits=own.val_losses_bits)
    fresh = _record_of(material, own)
    verdict = verdict.with_bounds({key: fresh[key] for key in OWN_NUMBERS})
    if fresh["by_source"]:
        verdict = verdict.with_bounds({"bound_by_source": fresh["by_source"]["bound"]})
    verdict = dataclasses.replace(verdict, held_out={key: fresh[key] for key in HELD_OUT})
    if not verdict.verified:
        return verdict
    try:
        from_file = _record_of(material, material.stored.of(material.message))
    except (UserError, ValueError) as error:
        return verdict.with_checks(Check("losses.npz gives a bound", "a number", str(error)))
    verdict = verdict.with_checks(*record_checks(material.claimed, (from_file, fresh), on_trust))
    return verdict.with_checks(*_published_numbers(material))


def _published_numbers(material: Material) -> list[Check]:
    """bounds_metrics.pt, where it lies in the run's folder, against bounds.json."""
    path = None if material.claim.folder is None else material.claim.folder / BOUNDS_PT_NAME
    if path is None or not path.exists():
        return []
    numbers = checkpoint.load(path)
    wanted = {"format": CHECKPOINT_FORMAT} | {key: material.claimed.get(key) for key in PT_KEYS}
    # A tensor in place of a number has no truth value when it is compared.
    plain = all(isinstance(value, int | float) for value in numbers.values())
    return [Check(f"{BOUNDS_PT_NAME} says what {BOUNDS_NAME} says", True, plain and numbers == wanted)]
