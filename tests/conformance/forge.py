"""Write the cases of the conformance set: honest claims of two tiny experiments, and forgeries of them.

    make conformance                                        writes tests/conformance/cases anew
    PYTHONPATH=tests python -m conformance.forge FOLDER     another folder

Each function below makes one case: it gets a copy of an honest experiment, and what it changes is the forgery. The
expectations beside it are written down from the rules of docs/verification.md, not from what a verifier said.
"""

import dataclasses
import hashlib
import json
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from attacks import Prover, flip_payload_bit, lucky

from conformance.experiments import FAMILIES, OTHER_SPEC, SPEC, make_experiment, without_environment
from sublora.coding.bits import index_bits
from sublora.coding.payload import write_payload
from sublora.data.dataset import TokenDataset
from sublora.runs.losses_file import read_losses
from sublora.runs.message import payload_context, read_message
from sublora.system.files import sha256_of_file

CASES = Path(__file__).resolve().parent / "cases"
DATA = "functions"
VERIFIED, REFUSED, CANNOT_BE_CHECKED = ("verified", 0), ("refused", 1), ("cannot be checked", 2)
QUOTED = ("bound_value", "bound_all_runs", "bound_strict")


@dataclasses.dataclass(frozen=True)
class Case:
    """A forgery, or an honest claim, and what a verifier has to say of it."""

    make: Callable[[Prover], object]
    name: str
    family: str
    about: str
    verdict: str
    exit_status: int
    differs_in: tuple[str, ...]
    """Comparisons that must be among those that failed."""
    with_config: bool
    """Whether the reader gives the settings that they expect, those of the honest experiment."""


FORGERIES: list[Case] = []


def case(
    family: str, outcome: tuple[str, int], *differs_in: str, with_config: bool = False
) -> Callable[[Callable[[Prover], object]], Callable[[Prover], object]]:
    """Register a case by its function: its name, and its docstring as the statement of what it is."""

    def register(make: Callable[[Prover], object]) -> Callable[[Prover], object]:
        name = f"{family}-{make.__name__.removesuffix(f'_{family}').replace('_', '-')}"
        about = " ".join((make.__doc__ or "").split())
        FORGERIES.append(Case(make, name, family, about, *outcome, differs_in, with_config))
        return make

    return register


# Honest claims


@case("direct", VERIFIED, with_config=True)
def honest(prover: Prover) -> None:
    """An honest claim with the direct bound, on a base from a file."""


@case("random", VERIFIED, with_config=True)
def honest_random(prover: Prover) -> None:
    """An honest claim on a base that is drawn from the run's seed, too poor for a bound below guessing."""


@case("anchored", VERIFIED, with_config=True)
def honest_anchored(prover: Prover) -> None:
    """An honest claim that is anchored on a base from a file, with a bound over sources."""


@case("direct", VERIFIED)
def all_documents_scored(prover: Prover) -> None:
    """An honest claim with m = n: nothing is drawn."""
    prover.set(scoring={"documents": "all"})
    prover.score()
    prover.bound()


@case("direct", VERIFIED)
def losses_lowered_within_the_tolerance(prover: Prover) -> None:
    """Losses lowered by 1e-5 bits: allowed, since machines round differently, and without use, since the bounds that
    the verifier quotes are their own."""
    prover.edit_losses(lambda arrays: arrays["losses_bits"].__isub__(1e-5))
    prover.bound()


# The losses


@case("direct", REFUSED, "largest difference in losses_bits")
def losses_lowered(prover: Prover) -> None:
    """Losses of the scored documents lowered by 1e-3 bits, and the bounds computed from them."""
    prover.edit_losses(lambda arrays: arrays["losses_bits"].__isub__(1e-3))
    prover.bound()


@case("direct", REFUSED, "scored documents")
def draw_changed(prover: Prover) -> None:
    """Easier documents scored than those that the certificate draws."""
    losses = read_losses(prover.path / "losses.npz").arrays
    prover.score(np.repeat(losses["indices"][lucky(losses["losses_bits"], 10)], 30))
    prover.bound()


@case("direct", REFUSED, "largest difference in test_losses_bits")
def held_out_losses_replaced(prover: Prover) -> None:
    """Test losses of half a bit per token."""
    prover.edit_losses(lambda arrays: arrays["test_losses_bits"].fill(0.5))
    prover.bound()


@case("direct", REFUSED, "largest difference in topk_errors")
def top_k_errors_lowered(prover: Prover) -> None:
    """Top-k errors lowered by 20 %."""
    prover.edit_losses(lambda arrays: arrays["topk_errors"].__imul__(np.float32(0.8)))
    prover.bound()


@case("anchored", REFUSED, "largest difference in base_losses_bits")
def base_losses_lowered(prover: Prover) -> None:
    """Losses of the anchor lowered by 0.1 bits."""
    prover.edit_losses(lambda arrays: arrays["base_losses_bits"].__isub__(0.1))
    prover.bound()


@case("anchored", REFUSED, "documents scored for the base")
def draw_of_the_base_changed(prover: Prover) -> None:
    """Other documents scored for the base than those that its hash and the data's draw."""
    prover.edit_losses(lambda arrays: arrays.update(base_indices=np.sort(arrays["base_indices"])))
    prover.bound()


@case("anchored", REFUSED, "largest difference in excess_bits")
def excess_clipped(prover: Prover) -> None:
    """The excess over the base clipped from above."""
    prover.edit_losses(lambda arrays: arrays.update(excess_bits=np.minimum(arrays["excess_bits"], -0.05)))
    prover.bound()


# The data


@case("direct", REFUSED, "documents end where the end-of-text tokens are", "training documents, from the tokens")
def documents_cut_in_two(prover: Prover) -> None:
    """Document ends where no end-of-text token is, so that n grows; the data's hashes fit."""
    tokens = prover.tokens("train")
    prover.rewrite_data(ends=np.append(np.arange(22, len(tokens) - 22, 22), len(tokens) - 1))
    prover.score()
    prover.bound()


@case("direct", REFUSED, "a document that occurs twice")
def documents_stored_twice(prover: Prover) -> None:
    """Every training document stored twice, so that n doubles; the data's hashes fit."""
    prover.rewrite_data(train=np.tile(prover.tokens("train"), 2))
    prover.score()
    prover.bound()


@case("direct", REFUSED, "training documents, from the tokens", "training units n")
def n_raised(prover: Prover) -> None:
    """n a thousand times larger in the header, the data as they were."""
    prover.reseal(
        lambda header: header.update(n_documents=1000 * header["n_documents"], n_units=1000 * header["n_units"])
    )
    prover.bound()


@case("direct", REFUSED, "vocabulary size V")
def vocabulary_lowered(prover: Prover) -> None:
    """A smaller vocabulary in the header, which narrows the range of the loss."""
    prover.reseal(lambda header: header.update(vocab_size=250))
    prover.bound()


@case("direct", REFUSED, "data hash")
def other_data(prover: Prover) -> None:
    """The claim is honest, and the reader's data differ from the prover's in one byte of one document."""
    hashes = prover.data_hash
    tokens = prover.tokens("train")
    tokens[1] ^= 1
    prover.rewrite_data(train=tokens)
    prover.reseal(lambda header: header.update(data_hash=hashes))


@case("anchored", REFUSED, "data hash")
def sources_swapped(prover: Prover) -> None:
    """Another assignment of documents to source files than the reader's, by which the bound over sources is drawn."""
    path, hashes = prover.data / "source_ids.npy", prover.data_hash
    np.save(path, np.load(path)[::-1].copy())
    meta = json.loads((prover.data / "meta.json").read_text(encoding="utf-8"))
    meta["files"][path.name] = {"bytes": path.stat().st_size, "sha256": sha256_of_file(path)}
    (prover.data / "meta.json").write_text(json.dumps(meta), encoding="utf-8")
    facts = TokenDataset.open_folder(prover.data, prover.settings.data).source_facts()
    prover.reseal(lambda header: header.update(sources=facts, data_hash=hashes))


# The run, and what the certificate names by its hash


@case("direct", REFUSED, "the run is one of its own grid")
def outside_its_grid(prover: Prover) -> None:
    """A grid of one other run, so that the arm costs no bits."""
    prover.set(grid={"budgets": [8], "allocations": ["uniform"], "seeds": [2]})
    prover.bound()


@case("direct", REFUSED, "certificate sha256 in losses.npz")
def losses_of_another_run(prover: Prover) -> None:
    """losses.npz of another run of the grid."""
    shutil.copy(prover.path.with_name(OTHER_SPEC.name) / "losses.npz", prover.path)


@case("random", REFUSED, "base weights")
def seed_changed(prover: Prover) -> None:
    """Another seed in the header: another base than the hash names."""
    prover.reseal(lambda header: header["run"].update(seed=2))
    prover.bound()


@case("direct", REFUSED, "projection")
def projection_changed(prover: Prover) -> None:
    """Another projection seed after the draw was known, scored on the same documents."""
    drawn = prover.scored
    prover.set(subspace={"projection_seed": 138})
    prover.score(drawn)
    prover.bound()


@case("anchored", REFUSED, "base weights")
def base_nudged(prover: Prover) -> None:
    """A base with one weight changed by a millionth, in place of the one that the certificate names."""
    from safetensors.numpy import load_file, save_file

    path = prover.root / "results/base/base.safetensors"
    tensors = load_file(path)
    name = sorted(tensors)[0]
    tensors[name].flat[0] += np.float32(1e-6)
    save_file(tensors, path)


# The settings


@case("anchored", REFUSED, "settings: bound.delta_base", with_config=True)
def delta_split_afterwards(prover: Prover) -> None:
    """Parts of delta other than those that the reader expects, whose settings are given."""
    prover.reseal(lambda header: header["settings"]["bound"].update(delta_base=0.0125))
    prover.bound()


@case("direct", REFUSED, "settings: bound.delta", "settings: message.extra_bits", with_config=True)
def premises_changed(prover: Prover) -> None:
    """delta 0.9 and no charge for tuning by hand, where the reader expects other settings."""
    prover.set(bound={"delta": 0.9}, message={"extra_bits": 0.0})
    prover.bound()


# bounds.json


@case("direct", REFUSED, "bound_value")
def bound_lowered(prover: Prover) -> None:
    """A lower bound in bounds.json than the losses give."""
    prover.edit_claim(lambda claim: claim.update(bound_value=claim["bound_value"] - 0.01))


@case("direct", REFUSED, "peer_reviewed")
def key_added(prover: Prover) -> None:
    """A key in bounds.json that the record does not have."""
    prover.edit_claim(lambda claim: claim.update(peer_reviewed=True))


@case("direct", REFUSED, "bounds.kl_inverse_subsampled")
def inequality_left_out(prover: Prover) -> None:
    """One of the inequalities left out of bounds.json."""
    prover.edit_claim(lambda claim: claim["bounds"].pop("kl_inverse_subsampled"))


@case("direct", CANNOT_BE_CHECKED)
def key_twice(prover: Prover) -> None:
    """A key twice in bounds.json: readers differ in which one they take."""
    without_environment(prover.path / "bounds.json")
    text = (prover.path / "bounds.json").read_text(encoding="utf-8")
    (prover.path / "bounds.json").write_text('{"bound_value": 0.1, ' + text.lstrip()[1:], encoding="utf-8")


# certificate.bin


@case("direct", CANNOT_BE_CHECKED)
def truncated_certificate(prover: Prover) -> None:
    """The last 40 bytes of the certificate are missing."""
    path = prover.path / "certificate.bin"
    path.write_bytes(path.read_bytes()[:-40])


@case("direct", CANNOT_BE_CHECKED)
def byte_flipped(prover: Prover) -> None:
    """One bit of the header flipped, under the old checksum."""
    path = prover.path / "certificate.bin"
    data = bytearray(path.read_bytes())
    data[200] ^= 1
    path.write_bytes(data)


@case("direct", CANNOT_BE_CHECKED)
def padding_flipped(prover: Prover) -> None:
    """A bit behind the end of the payload, under a new checksum: a second spelling of one message."""
    assert prover.claim()["compressed_size_bits"] % 8, "there is padding"
    flip_payload_bit(prover.path / "certificate.bin", 1)


@case("anchored", CANNOT_BE_CHECKED)
def k_outside_the_grid(prover: Prover) -> None:
    """A smoothing that the certificate's settings do not list: an index beyond the end of the grid."""
    message = read_message(prover.path / "certificate.bin")
    context = payload_context(message.settings, message.spec)
    longer = dataclasses.replace(context, smoothing_count=8)
    assert context.smoothing_count < 8 and index_bits(context.smoothing_count) == index_bits(8)
    contents = dataclasses.replace(message.contents, smoothing_index=7)
    prover.reseal(lambda header: None, write_payload(contents, longer))


@case("direct", CANNOT_BE_CHECKED)
def other_format(prover: Prover) -> None:
    """A certificate that says it is of another format, under a new checksum."""
    path = prover.path / "certificate.bin"
    data = bytearray(path.read_bytes()[:-32])
    data[9] += 1
    path.write_bytes(bytes(data) + hashlib.sha256(data).digest())


@case("direct", CANNOT_BE_CHECKED)
def other_numerics(prover: Prover) -> None:
    """A certificate that was encoded and scored by another version of the numerics."""
    prover.reseal(lambda header: header["numerics_versions"].update(score=99))


# Writing the cases


def write_case(made: Case, prover: Prover, settings: Path, folder: Path) -> None:
    """Write a case's folder: the claim, the reader's data and base, and case.json with what is expected."""
    folder.mkdir(parents=True)
    for name in ("certificate.bin", "losses.npz", "bounds.json"):
        shutil.copy(prover.path / name, folder)
    if made.make is not key_twice:
        without_environment(folder / "bounds.json")
    shutil.copytree(prover.data, folder / "data", ignore=shutil.ignore_patterns(".*", "near_duplicates.json"))
    arguments = {"--certificate": "certificate.bin", "--bounds": "bounds.json", "--losses": "losses.npz"}
    arguments |= {"--data": "data"}
    if made.family != "random":
        shutil.copy(prover.root / "results/base/base.safetensors", folder)
        arguments |= {"--base": "base.safetensors"}
    if made.with_config:
        shutil.copy(settings, folder / "settings.yaml")
        arguments |= {"--config": "settings.yaml"}
    facts: dict[str, Any] = {
        "about": made.about,
        "arguments": [word for pair in arguments.items() for word in pair],
        "exit_status": made.exit_status,
        "verdict": made.verdict,
        "differs_in": list(made.differs_in),
    }
    if made.verdict == "verified":
        facts["bounds_from_own_losses"] = bounds_of_the_honest_losses(prover)
    (folder / "case.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")


def bounds_of_the_honest_losses(prover: Prover) -> dict[str, float | None]:
    """The bounds that a verifier of a verified claim quotes, whatever small differences the claim has."""
    prover.score()
    record = prover.bound()
    return {key: record[key] for key in QUOTED}


def write_cases(folder: Path, families: tuple[str, ...] = tuple(FAMILIES)) -> None:
    """Write all cases of some experiments into a new folder."""
    for family in families:
        with tempfile.TemporaryDirectory() as temporary:
            root = Path(temporary) / "honest"
            sys.path.insert(0, str(root))  # the packages whose functions are the documents
            try:
                make_experiment(root, family)
            finally:
                sys.path.remove(str(root))
            for made in FORGERIES:
                if made.family == family:
                    prover = Prover.of(root, Path(temporary) / made.name, SPEC.name, DATA)
                    made.make(prover)
                    write_case(made, prover, root / "config/config.yaml", folder / made.name)


def write_list(folder: Path) -> None:
    """Write README.md in the folder of the cases: what each of them is."""
    rows = [f"| {made.name} | {made.about} | {made.exit_status}, {made.verdict} |" for made in FORGERIES]
    lines = [
        "# The cases",
        "",
        "Written by `make conformance`.",
        "",
        "| case | what it is | expected |",
        "|---|---|---|",
    ]
    (folder / "README.md").write_text("\n".join([*lines, *sorted(rows)]) + "\n", encoding="utf-8")


def main() -> None:
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else CASES
    shutil.rmtree(folder, ignore_errors=True)
    write_cases(folder)
    write_list(folder)
    files = [path for path in folder.rglob("*") if path.is_file()]
    print(
        f"{len(FORGERIES)} cases, {len(files)} files, {sum(path.stat().st_size for path in files):,} bytes in {folder}"
    )


if __name__ == "__main__":
    main()
