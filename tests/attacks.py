"""What a dishonest prover can do to the files of a finished run: every tool seals what it writes."""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from conftest import write_settings

from sublora import config
from sublora.coding.certificate import read_certificate, write_certificate
from sublora.coding.payload import MessageContents, Payload, write_payload
from sublora.data.dataset import TokenDataset
from sublora.runs.base_files import own_base_weights
from sublora.runs.base_losses import compute_base_losses
from sublora.runs.bound import bound_run
from sublora.runs.build import assemble_run
from sublora.runs.losses_file import read_losses
from sublora.runs.message import payload_context, read_message
from sublora.runs.networks import AnyBase, random_base, read_base
from sublora.runs.score import decoded_predictor, score_message, score_run
from sublora.runs.train import train_run
from sublora.runs.verify.files import Options
from sublora.runs.verify.verdict import Verdict
from sublora.runs.verify.verify import verify_run
from sublora.system.files import sha256_of_file
from sublora.system.streams import generator

Header = dict[str, Any]

RUN, OTHER_RUN = "d40_learned_seed1", "d40_uniform_seed1"


def honest_runs(honest_root: Path, root: Path, *, keep_checkpoints: bool = False) -> Path:
    """A copy of the experiment at `root`, without the checkpoints of its runs unless these are asked for."""
    ignored = shutil.ignore_patterns() if keep_checkpoints else shutil.ignore_patterns("best_ckpt.pt")
    return Path(shutil.copytree(honest_root, root, ignore=ignored))


def make_honest_runs(tiny_root: Path, root: Path) -> None:
    """An experiment at `root` with two finished runs."""
    shutil.copytree(tiny_root, root)
    config_path = write_settings(root, {"message": {"quantizer": "entropy", "extra_bits": 3.0}})
    settings = config.load_settings(config_path)
    for spec in settings.grid.runs():
        if spec.name in (RUN, OTHER_RUN):
            out = root / "results/runs" / spec.name
            train_run(settings, spec, root=root, out=out)
            score_run(out, config_path=config_path)
            bound_run(out)


class Prover:
    """A copy of an experiment, to tamper with. The claim in it starts as an honest one."""

    def __init__(self, root: Path, run: str, data: str = "markov") -> None:
        self.root = root
        self.path = root / "results/runs" / run
        self.data = root / "data" / data

    @classmethod
    def of(cls, honest: Path, copy: Path, run: str, data: str = "markov") -> "Prover":
        """A copy of the experiment below `honest`."""
        shutil.copytree(honest, copy)
        return cls(copy, run, data)

    def claim(self) -> dict[str, Any]:
        return json.loads((self.path / "bounds.json").read_text(encoding="utf-8"))

    def edit_claim(self, edit: Callable[[dict[str, Any]], object]) -> None:
        claim = self.claim()
        edit(claim)
        (self.path / "bounds.json").write_text(json.dumps(claim), encoding="utf-8")

    def reseal(self, edit: Callable[[Header], object], payload: Payload | None = None) -> None:
        """Write the certificate with an edited header, or another payload, under a checksum that is right."""
        path = self.path / "certificate.bin"
        old = read_certificate(path)
        edit(old.header)
        write_certificate(path, old.header, payload or Payload(old.payload_bytes, old.payload_bits, {}))
        self.edit_losses(self._of_this_certificate)

    def _of_this_certificate(self, arrays: dict[str, np.ndarray]) -> None:
        """Claim that the losses are those of the certificate as it is now."""
        facts = json.loads(str(arrays["provenance"]))
        facts["certificate_sha256"] = sha256_of_file(self.path / "certificate.bin")
        arrays["provenance"] = np.array(json.dumps(facts))

    def set(self, **sections: dict[str, Any]) -> None:
        """Reseal with other settings."""

        def edit(header: Header) -> None:
            for section, keys in sections.items():
                header["settings"][section] |= keys

        self.reseal(edit)

    def rewrite_message(self, change: Callable[[MessageContents], MessageContents]) -> None:
        """Encode other contents, as an encoder would."""
        message = read_message(self.path / "certificate.bin")
        self.reseal(
            lambda header: None,
            write_payload(change(message.contents), payload_context(message.settings, message.spec)),
        )

    def edit_losses(self, edit: Callable[[dict[str, np.ndarray]], object]) -> None:
        with np.load(self.path / "losses.npz") as archive:
            arrays = dict(archive)
        edit(arrays)
        np.savez_compressed(self.path / "losses.npz", **arrays)

    def score(self, indices_D: np.ndarray | None = None) -> None:
        """losses.npz of the certificate as it is now, on its draw or on other documents."""
        message = read_message(self.path / "certificate.bin")
        dataset = TokenDataset.open_folder(self.data, self.settings.data)
        base: AnyBase
        if message.settings.base.kind == "random":
            base = random_base(message.settings, dataset.vocab_size, message.spec.seed)
        else:
            base = read_base(own_base_weights(self.root), message.settings, dataset.vocab_size)
        points, cpu = message.header.scale_points, torch.device("cpu")
        run = assemble_run(message.settings, message.spec, dataset, base, cpu, scale_points=points)
        import sublora.runs.score as scoring

        drawn, honest = scoring.scored_units, indices_D
        scoring.scored_units = lambda *arguments: drawn(*arguments) if honest is None else honest
        try:
            anchoring = run.loss.anchoring
            of_base = None if anchoring is None else compute_base_losses(run, anchoring)
            losses = score_message(run, message, decoded_predictor(run, message), of_base)
        finally:
            scoring.scored_units = drawn
        self.edit_losses(lambda old: old.update(losses.arrays()))

    @property
    def settings(self) -> config.Settings:
        return read_message(self.path / "certificate.bin").settings

    @property
    def data_hash(self) -> str:
        """The hash of the data as they are."""
        return TokenDataset.open_folder(self.data, self.settings.data).data_hash

    @property
    def scored(self) -> np.ndarray:
        """The documents of the claim as it is."""
        return read_losses(self.path / "losses.npz").arrays["indices"]

    def bound(self) -> dict[str, Any]:
        """Compute the claim from certificate and losses, as `sublora bound` does."""
        return json.loads(bound_run(self.path).read_text(encoding="utf-8"))

    def rewrite_data(self, *, ends: np.ndarray | None = None, **tokens: np.ndarray) -> None:
        """Other tokens of splits, or other document ends of train, in files whose hashes fit; the certificate as well.

        Without `ends` documents end where the tokens say.
        """
        meta = json.loads((self.data / "meta.json").read_text(encoding="utf-8"))
        for split, values in tokens.items():
            values.astype("<u2").tofile(self.data / f"{split}.bin")
            meta["splits"][split] = {"documents": int((values == meta["eot_id"]).sum()), "tokens": len(values)}
        if ends is None:
            ends = np.flatnonzero(np.fromfile(self.data / "train.bin", dtype="<u2") == meta["eot_id"])
        np.save(self.data / "eot_indices.npy", ends.astype(np.int64))
        np.save(self.data / "doc_lengths.npy", np.diff(ends, prepend=-1).astype(np.int64) - 1)
        meta["splits"]["train"]["documents"] = len(ends)
        if (self.data / "source_ids.npy").exists():
            np.save(self.data / "source_ids.npy", np.resize(np.load(self.data / "source_ids.npy"), len(ends)))
        for name in meta["files"]:
            path = self.data / name
            meta["files"][name] = {"bytes": path.stat().st_size, "sha256": sha256_of_file(path)}
        (self.data / "meta.json").write_text(json.dumps(meta), encoding="utf-8")
        data_hash = TokenDataset.open_folder(self.data, self.settings.data).data_hash
        self.reseal(lambda header: header.update(data_hash=data_hash, n_documents=len(ends), n_units=len(ends)))

    def verdict(self, **options: object) -> Verdict:
        """What a verifier says, who asks for these `Options`."""
        return verify_run(self.path, root=self.root, options=Options(**options))

    @property
    def expected(self) -> Path:
        """The settings of the honest runs."""
        return self.root / "config/config.yaml"

    def refused(self, *names: str) -> None:
        """Assert that the claim is refused for these reasons, among others."""
        wrong = self.verdict().wrong
        assert wrong and set(names) <= set(wrong), wrong

    def tokens(self, split: str) -> np.ndarray:
        return np.fromfile(self.data / f"{split}.bin", dtype="<u2")


def flip_payload_bit(path: Path, from_end: int) -> None:
    """One bit of the payload, under a checksum that is right."""
    data = bytearray(path.read_bytes()[:-32])
    data[-from_end] ^= 1
    path.write_bytes(bytes(data) + hashlib.sha256(data).digest())


def lucky(values: np.ndarray, count: int) -> np.ndarray:
    """Indices of the `count` smallest values, in some order."""
    return generator("lucky", count).permutation(np.argsort(values)[:count])
