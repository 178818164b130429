"""What a fuzzer makes of certificates, headers, arrays and claims is read or refused; nothing but UserError escapes."""

import io
import json
import shutil
import warnings
from pathlib import Path

import hostile
import numpy as np
import pandas as pd
import pytest
from attacks import RUN, honest_runs
from fuzz import odd_bits, odd_bytes, odd_json, odd_text
from test_models_wrap import moved, network, wrapped

import sublora
from sublora.coding.bits import bytes_to_bits
from sublora.coding.certificate import read_certificate
from sublora.runs.bound import base_facts, run_facts, settings_charge
from sublora.runs.losses_file import read_losses
from sublora.runs.message import Message, charged_bits, decoder_header, read_message
from sublora.runs.verify.checks import record_checks
from sublora.runs.verify.files import Claim, Options, read_claim
from sublora.runs.verify.verdict import premises_of, trusted_premises, unchecked_facts
from sublora.runs.verify.verify import verify_claim
from sublora.system.errors import UserError
from sublora.tools.certify import certify_file

pytestmark = pytest.mark.filterwarnings("error::RuntimeWarning")


@pytest.fixture(scope="module")
def honest(honest_root, tmp_path_factory) -> Path:
    return honest_runs(honest_root, tmp_path_factory.mktemp("fuzz") / "root")


@pytest.fixture
def run(honest, tmp_path) -> Path:
    """A copy of a run's folder."""
    return Path(shutil.copytree(honest / "results/runs" / RUN, tmp_path / RUN))


def used(message: Message, claim: dict) -> None:
    """Everything that verify derives from a message before anything is compared."""
    assert message.loss.range_of(message.smoothing).upper > 0
    decoder_header(message)
    charged_bits(message.payload.items, message.settings)
    settings_charge(message.settings)
    run_facts(message), base_facts(message)
    premises_of(message, Options()), unchecked_facts(message, claim), trusted_premises(message, Options())


def refused_or(read, *arguments: object) -> object:
    """What reading gives, None if it was refused in one line."""
    try:
        return read(*arguments)
    except UserError as error:
        assert "\n" not in str(error) and len(str(error)) < 20_000
        return None


def test_certificates(run):
    certificate, claim = read_certificate(run / "certificate.bin"), read_claim(run / "bounds.json")
    payload = bytes_to_bits(certificate.payload_bytes)[: certificate.payload_bits]
    path, whole, read = run / "certificate.bin", (run / "certificate.bin").read_bytes(), 0
    for seed in range(1200):
        match seed % 4:
            case 0:
                data = odd_bytes(whole, seed, "certificate")
            case 1:
                data = hostile.certificate(certificate.header, odd_bits(payload, seed))
            case 2:
                data = hostile.certificate(odd_text(certificate.header, seed, "header"), payload)
            case _:
                data = hostile.certificate(odd_json(certificate.header, seed, "header"), payload)
        path.write_bytes(data)
        message = refused_or(read_message, path)
        if message is not None:
            used(message, claim)
            read += 1
    assert 20 < read < 600, "some are read, and most are not"


def test_claims(honest, run):
    """The files beside the certificate: odd claims and losses are compared or refused."""
    claim, archive = json.loads((run / "bounds.json").read_text()), (run / "losses.npz").read_bytes()
    message, stored = read_message(run / "certificate.bin"), read_losses(run / "losses.npz").arrays
    for seed in range(600):
        (run / "bounds.json").write_bytes(odd_text(claim, seed, "claim"))
        found = refused_or(read_claim, run / "bounds.json")
        if found is not None:
            unchecked_facts(message, found)
            for check in record_checks(found, (claim, claim), frozenset()):
                assert check.agrees in (True, False)
        (run / "losses.npz").write_bytes(odd_bytes(archive, seed, "losses"))
        losses = refused_or(read_losses, run / "losses.npz")
        if losses is not None:
            refused_or(losses.of, message)
    assert stored.keys() == read_losses(honest / "results/runs" / RUN / "losses.npz").arrays.keys()


def test_members_of_an_archive(run):
    """Checksums hide most damage to an archive from its reader: here they are right."""
    archive = (run / "losses.npz").read_bytes()
    with np.load(run / "losses.npz") as arrays:
        stored = {name: arrays[name] for name in arrays.files}
    message = read_message(run / "certificate.bin")
    for seed in range(400):
        name = sorted(stored)[seed % len(stored)]
        buffer = io.BytesIO()
        np.save(buffer, stored[name])
        data = buffer.getvalue()
        header, values = data[:128], data[128:]
        odd = odd_bytes(header, seed, "member") + values if seed % 2 else odd_bytes(data, seed, "member")
        (run / "losses.npz").write_bytes(hostile.with_member(archive, f"{name}.npy", odd))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # numpy guesses at headers of Python 2
            losses = refused_or(read_losses, run / "losses.npz")
        if losses is not None:
            refused_or(losses.of, message)


def test_whole_verifications(honest, run):
    """Headers that parse get to the data, the network and the scores."""
    certificate, claim = read_certificate(run / "certificate.bin"), json.loads((run / "bounds.json").read_text())
    payload = bytes_to_bits(certificate.payload_bytes)[: certificate.payload_bits]
    for seed in range(150):
        header = odd_json(certificate.header, seed, "whole")
        (run / "certificate.bin").write_bytes(hostile.certificate(header, payload))
        (run / "bounds.json").write_text(json.dumps(odd_json(claim, seed, "whole claim") if seed % 2 else claim))
        verdict = refused_or(verify_claim, Claim.of(run, root=honest))
        if verdict is not None:
            assert not verdict.verified
            verdict.print(), verdict.sentence()


def test_files_of_losses(tmp_path, capsys):
    values = np.round(np.random.default_rng(1).uniform(0.1, 0.9, 60), 3)
    table = pd.DataFrame({"loss": values})
    table.to_csv(tmp_path / "a.csv", index=False)
    table.to_parquet(tmp_path / "a.parquet")
    np.save(tmp_path / "a.npy", values)
    np.savez_compressed(tmp_path / "a.npz", loss=values)
    read = 0
    for seed in range(800):
        suffix = ("csv", "npy", "npz", "parquet")[seed % 4]
        path = tmp_path / f"odd.{suffix}"
        path.write_bytes(odd_bytes((tmp_path / f"a.{suffix}").read_bytes(), seed, suffix))
        drawn = bool(seed % 8 < 4)
        arguments = {"code_bits": 10, "n": 500 if drawn else 60, "lower": 0.0, "upper": 1.0, "subsample": drawn}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            read += refused_or(_certified, path, arguments) is not None
    assert 20 < read < 700
    capsys.readouterr()


def _certified(path: Path, arguments: dict) -> object:
    return certify_file(path, column=None, counts=None, json_path=None, **arguments)


def test_messages_of_wrapped_modules(tmp_path):
    model = moved(wrapped("learned")).eval()
    model.anneal(1.0)
    whole = sublora.encode(model).data
    (tmp_path / "message.bin").write_bytes(whole)
    certificate = read_certificate(tmp_path / "message.bin")
    payload = bytes_to_bits(certificate.payload_bytes)[: certificate.payload_bits]
    for seed in range(150):
        match seed % 3:
            case 0:
                data = odd_bytes(whole, seed, "message")
            case 1:
                data = hostile.certificate(certificate.header, odd_bits(payload, seed))
            case _:
                data = hostile.certificate(odd_json(certificate.header, seed, "message"), payload)
        refused_or(sublora.decode, data, network())
