"""Check a claimed bound from its certificate: decode, rebuild, re-score, recompute, compare.

Trusted are this package and the text of the verifier's data. Whatever can be computed is computed, and the bounds that
the verdict names follow from the verifier's own losses.
"""

import dataclasses
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sublora import config
from sublora.bounds.anchor import FailureShare
from sublora.bounds.anchored_record import AnchoredSample, Charges, anchored_bound
from sublora.bounds.premises import headline_bound
from sublora.bounds.smoothing import with_tolerance
from sublora.runs.base_losses import compute_base_losses
from sublora.runs.bound import PT_KEYS
from sublora.runs.build import assemble_run
from sublora.runs.encode import val_losses, val_losses_of
from sublora.runs.losses_file import check_losses, read_losses
from sublora.runs.message import Message, charged_bits, read_message
from sublora.runs.networks import AnyBase, random_base, read_base
from sublora.runs.record import run_environment, run_record
from sublora.runs.score import Predictor, decoded_predictor, record_units, score_message
from sublora.runs.starts import announce
from sublora.runs.verify.checks import Check, loss_checks, record_checks
from sublora.runs.verify.data import data_checks
from sublora.runs.verify.files import Claim, Options, read_claim
from sublora.runs.verify.premises import (
    premises_of,
    settings_checks,
    texts_of_the_base,
    trusted_premises,
    unchecked_facts,
)
from sublora.runs.verify.verdict import NOT_CHECKED, Verdict
from sublora.subspace.hashes import lora_init_sha256, projection_sha256, space_sha256
from sublora.system.device import claim_device
from sublora.system.errors import UserError, printable
from sublora.system.files import sha256_of_file, write_json
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
    "bound_held_out",
    "test_loss_bits",
    "code_bits",
)
"""What the verdict names of the record that the verifier computes."""
DRAW_SHARE = 0.9
"""Share of a part of delta for the verifier's draw, where the settings score all documents and have none."""


@dataclasses.dataclass(frozen=True, eq=False)
class Material:
    """The files that were handed over, as read."""

    claim: Claim
    options: Options
    message: Message
    claimed: dict[str, Any]
    """bounds.json."""
    stored: dict[str, Any]
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
    """Verify, print the verdict, write it to `json_path`; returns the exit status, 0 (verified) or 1 (refused).

    UserError, after its line went into the JSON file, if the claim cannot be checked.
    """
    try:
        verdict = verify_claim(claim, options)
    except UserError as error:
        if json_path is not None:
            facts = {"verdict": "cannot be checked", "exit_status": NOT_CHECKED, "reason": printable(error)}
            write_json(json_path, facts)
        raise
    verdict.print()
    if json_path is not None:
        write_json(json_path, verdict.as_json())
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
        checks=tuple(checks),
        premises=premises_of(message),
        trusted=(*trusted_premises(message, material.options), *trusted),
        unchecked=unchecked_facts(message, material.claimed),
    )
    if not verdict.verified:
        return verdict
    base = _read_base(message, claim, dataset.vocab_size)
    verdict = verdict.with_checks(Check("base weights", header.base_sha256, base.sha256))
    if not verdict.verified:
        return verdict
    compute = _overridden(settings.compute, material.options)
    with claim_device(compute) as device:
        announce(settings, Provenance.of_this_process(), device)
        run = assemble_run(settings.model_copy(update={"compute": compute}), message.spec, dataset, base, device)
        verdict = verdict.with_checks(
            Check("base as far as the documents see it", header.seen_base_sha256, run.seen_base_sha256),
            Check("trained parameters", header.space_sha256, space_sha256(run.network.space)),
            Check("LoRA initialization", header.lora_init_sha256, lora_init_sha256(run.subspace)),
            Check("projection", header.projection_sha256, projection_sha256(run.subspace)),
            *_parameters_checks(message, run),
        )
        return _rescored(verdict, run, material) if verdict.verified else verdict


def _check_numerics_of_the_bounds(material: Material) -> None:
    """UserError for a bounds.json that this version of the numerics does not give and another one may have given.

    bounds.json does not hold the version, and may have been computed again since the certificate was encoded: one that
    agrees is checked like any other. Files of another certificate, and losses that give no bounds, are left to the
    checks that follow.
    """
    claim, message = material.claim, material.message
    found, own = message.header.numerics_versions.get("bound"), NUMERICS_VERSIONS["bound"]
    if found == own or material.claimed.get("certificate_sha256") != sha256_of_file(claim.certificate):
        return
    # Compute bounds.json again from the losses that were handed over, and compare.
    try:
        check_losses(material.stored, message, claim.losses)
        record = _record_of(material, material.stored)
    except (UserError, ValueError, TypeError):
        return
    checks = record_checks(material.claimed, (record, record), frozenset())
    differing = [check.name for check in checks if not check.agrees]
    if differing:
        raise UserError(
            f"{claim.bounds}: differs in {differing[0]} from what {LOSSES_NAME} gives, and the certificate was made by "
            f"version {found} of the numerics of the bound, this package has {own}; verify with the release that made "
            f"it, or compute the bound again (sublora bound {claim.bounds.parent})"
        )


def _record_of(material: Material, losses: dict[str, Any]) -> dict[str, Any]:
    """Return what bounds.json would hold for these losses.

    Of facts about machines only the keys are compared, so those of this computation will do.
    """
    environment = run_environment(material.stored["provenance"], Provenance.of_this_process(), 0.0)
    certificate_sha256 = sha256_of_file(material.claim.certificate)
    return run_record(material.message, losses, environment, certificate_sha256).as_json()


def _named_base_checks(message: Message, options: Options) -> list[Check]:
    """The base that the verifier expects, by its hash."""
    if options.base_sha256 is None:
        return []
    return [Check("base that was asked for", message.header.base_sha256, options.base_sha256)]


def _identity_checks(material: Material) -> list[Check]:
    """Whose claim it is: the folder, the grid, the certificate that bounds.json was computed from."""
    claim, message, claimed = material.claim, material.message, material.claimed
    checks = [
        Check("the run is one of its own grid", True, message.spec in message.settings.grid.runs()),
        Check("certificate sha256", claimed.get("certificate_sha256"), sha256_of_file(claim.certificate)),
        Check(
            "certificate sha256 in losses.npz",
            material.stored["provenance"]["certificate_sha256"],
            sha256_of_file(claim.certificate),
        ),
        Check("data hash in bounds.json", claimed.get("data_hash"), message.header.data_hash),
    ]
    if claim.named_run is not None:
        checks.append(Check("run that the folder is named after", claim.named_run, message.spec.name))
    return checks


def _parameters_checks(message: Message, run: Run) -> list[Check]:
    """The length of a w that stands for all parameters, which the header says."""
    if message.spec.budget != config.ALL:
        return []
    return [Check("number of trained parameters", message.header.parameters, run.network.space.size)]


def _read_base(message: Message, claim: Claim, vocab_size: int) -> AnyBase:
    """The base drawn from the run's seed, or read from its file; UserError if that is missing or another network's."""
    settings = message.settings
    if settings.base.kind == "random":
        return random_base(settings, vocab_size, message.spec.seed)
    return read_base(claim.base_weights(settings.data), settings, vocab_size)


def _overridden(compute: config.Compute, options: Options) -> config.Compute:
    """Where this verification computes; never with more threads than there are cores."""
    changes: dict[str, Any] = {"threads": min(compute.threads, os.cpu_count() or 1)}
    if options.device is not None and options.device != compute.device:
        changes |= {"device": options.device, "compile": False}
    elif compute.device == "cuda" and not torch.cuda.is_available():
        raise UserError("the certificate was scored on a GPU and this machine has none; score again with --device cpu")
    return compute.model_copy(update=changes)


def _rescored(verdict: Verdict, run: Run, material: Material) -> Verdict:
    """The verdict after scoring: losses, every number of bounds.json, and the verifier's own bounds."""
    message = material.message
    predictor, anchoring = decoded_predictor(run, message), run.loss.anchoring
    base = None if anchoring is None else compute_base_losses(run, anchoring)
    own: dict[str, Any] = score_message(run, message, predictor, base)
    before = _val_losses_before_quantization(run, material)
    if before is None:
        text = "the val loss before quantization, since the checkpoint is not here; no bound depends on it"
        verdict = dataclasses.replace(verdict, trusted=(*verdict.trusted, text))
    else:
        own["val_losses_unquantized_bits"] = before
    verdict = verdict.with_checks(*loss_checks(material.stored, own))
    verdict = _with_record(verdict, material, own)
    if material.options.redraw is not None:
        verdict = verdict.with_bounds({"bound_redraw": _bound_of_own_draw(run, predictor, material)})
    return dataclasses.replace(verdict, scored_on=run.settings.compute.device)


def _val_losses_before_quantization(run: Run, material: Material) -> np.ndarray | None:
    """Return the val losses of the checkpoint's w under the message's smoothing, None without a checkpoint."""
    path = material.claim.checkpoint
    if path is None:
        return None
    checkpoint.restore(run, checkpoint.load(path), path)
    split = tuple(int(k) for k in run.subspace.hard_split())
    w = run.subspace.subspace_params.detach().cpu().numpy()
    return val_losses_of(run, val_losses(run, w, split), material.message.contents.smoothing_index)


def _with_record(verdict: Verdict, material: Material, own: dict[str, Any]) -> Verdict:
    """bounds.json against the record of the stored losses and against that of the verifier's own."""
    # Without a checkpoint any val losses will serve, since no number that depends on them is compared.
    before = "val_losses_unquantized_bits"
    on_trust = frozenset() if before in own else frozenset({"val_loss_unquantized_bits"})
    fresh = _record_of(material, {before: own["val_losses_bits"]} | own)
    verdict = verdict.with_bounds({key: fresh[key] for key in OWN_NUMBERS})
    if fresh["by_source"]:
        verdict = verdict.with_bounds({"bound_by_source": fresh["by_source"]["bound"]})
    if not verdict.verified:
        return verdict
    try:
        from_file = _record_of(material, material.stored)
    except (ValueError, TypeError) as error:
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
    return [Check(f"{BOUNDS_PT_NAME} says what {BOUNDS_NAME} says", True, numbers == wanted)]


def _bound_of_own_draw(run: Run, predictor: Predictor, material: Material) -> float:
    """The headline bound from losses of units that the verifier drew, bits per token.

    The draw depends on the certificate and on a text that was chosen after it was handed over, so no luck of the prover
    is in it; the rest is as for `bound_value`. With an anchor the same draw serves both parts of the sum.
    """
    options, message = material.options, material.message
    assert options.redraw is not None and options.nonce is not None
    premises = dataclasses.replace(
        message.loss.premises, m_units=options.redraw, delta_sample=message.settings.bound.delta_sample
    )
    stream = generator("a verifier's documents", options.nonce, sha256_of_file(material.claim.certificate))
    drawn = record_units(run, predictor, "train", stream.integers(0, premises.n_units, size=options.redraw))
    code_bits, items = charged_bits(message.payload.items, message.settings)
    anchoring, mixture = message.loss.anchoring, message.mixture
    if anchoring is None or mixture is None:
        loss_range = message.loss.range_of(message.smoothing)
        return with_tolerance(headline_bound(drawn.losses_U, loss_range, code_bits, premises), loss_range)
    sample = AnchoredSample(
        drawn.losses_U - drawn.excess_U,
        drawn.excess_U,
        premises.n_units,
        _share_with_draw(anchoring.delta_base, anchoring.delta_base_sample),
        _share_with_draw(anchoring.delta_excess, anchoring.delta_excess_sample),
    )
    charges = Charges.of(items, premises.sweep_size)
    return anchored_bound(sample, mixture, charges, message.loss.population).bits


def _share_with_draw(delta: float, delta_sample: float | None) -> FailureShare:
    """Return a part of delta with what its draw may take: the settings' own part, where they drew nothing 9 tenths."""
    return FailureShare(delta, DRAW_SHARE * delta if delta_sample is None else delta_sample)
