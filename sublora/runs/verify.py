"""Check a claimed bound from its certificate: decode, rebuild, re-score, recompute, compare."""

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from sublora import config
from sublora.bounds.record import ENVIRONMENT_KEYS
from sublora.data.base import open_target
from sublora.data.dataset import TokenDataset
from sublora.device import claim_device
from sublora.errors import UserError
from sublora.files import sha256_of_file
from sublora.names import BOUNDS_NAME, CERTIFICATE_NAME, LOSSES_NAME
from sublora.runs.bound import read_losses, run_record
from sublora.runs.build import build_run
from sublora.runs.folder import find_root
from sublora.runs.message import Message, read_message
from sublora.runs.score import score_message

LOSS_TOLERANCE_BITS = 2e-3
"""Largest difference of a document's loss on other hardware, bits per token (float32; 0.05 for bfloat16)."""
BFLOAT16_TOLERANCE_BITS = 5e-2
TOPK_TOLERANCE = 2e-2
"""Largest difference of a document's top-k error: near ties may fall the other way."""
RESCORED_KEYS = (
    "empirical_bpd",
    "bound_value",
    "bound_hoeffding",
    "bound_all_runs",
    "bound_held_out",
    "bound_held_out_all_runs",
    "val_loss_bits",
    "test_loss_bits",
    "bounds",
    "topk_errors",
    "topk_bounds",
)
"""Keys of bounds.json that hang on the losses of the scored documents."""


@dataclasses.dataclass(frozen=True)
class Check:
    """One row of the table: what was claimed, what came out, and how far apart they may be."""

    name: str
    claimed: Any
    recomputed: Any
    tolerance: float | None = None
    """None: they must be equal."""

    @property
    def agrees(self) -> bool:
        if self.tolerance is None:
            return bool(self.claimed == self.recomputed)
        return isinstance(self.claimed, int | float) and abs(self.claimed - self.recomputed) <= self.tolerance


def verify_and_print(path: Path, *, root: Path | None = None) -> bool:
    """Print the table of claimed against recomputed values; True if all of them agree."""
    checks = verify_run(path, root=root)
    table = Table("checked", "claimed", "recomputed", "tolerance", "")
    for check in checks:
        tolerance = "exact" if check.tolerance is None else f"{check.tolerance:g}"
        verdict = "ok" if check.agrees else "DIFFERS"
        table.add_row(check.name, _shown(check.claimed), _shown(check.recomputed), tolerance, verdict)
    Console(width=None if sys.stdout.isatty() else 140).print(table)
    wrong = [check.name for check in checks if not check.agrees]
    print(f"{path}: {'verified' if not wrong else 'NOT verified, differs in: ' + ', '.join(wrong)}")
    return not wrong


def _shown(value: Any) -> str:
    return f"{value:.6f}" if isinstance(value, float) else str(value)


def verify_run(path: Path, *, root: Path | None = None) -> list[Check]:
    """Recompute everything bounds.json claims of the run in `path`, using nothing but the certificate and the data.

    The checkpoint is not read. UserError if a file is missing or damaged, or if data or base weights are others.
    """
    message = read_message(path / CERTIFICATE_NAME)
    header, settings = message.header, message.settings
    claimed, stored = _read_claim(path / BOUNDS_NAME), read_losses(path / LOSSES_NAME)
    root = root or find_root(path, settings.data.name)
    dataset = open_target(settings, root)
    dataset.verify_hashes()
    if dataset.data_hash != header["data_hash"]:
        raise UserError(
            f"{path / CERTIFICATE_NAME}: made for data with hash {header['data_hash'][:12]}..., "
            f"data/{settings.data.name} has {dataset.data_hash[:12]}...; bring that data back"
        )
    rescored = stored | _rescore(message, dataset, root)
    checks = [
        Check("settings digest", header["settings_digest"], config.digest(settings.model_dump(mode="json"))),
        Check("certificate sha256", claimed.get("certificate_sha256"), sha256_of_file(path / CERTIFICATE_NAME)),
        Check("training documents n", header["n_documents"], dataset.n_documents),
        Check("scored documents", _digest(stored["indices"]), _digest(rescored["indices"])),
    ]
    checks += _loss_checks(stored, rescored, settings)
    environment = {key: claimed.get(key) for key in ENVIRONMENT_KEYS}
    from_file = run_record(message, stored, environment)
    recomputed = run_record(message, rescored, environment)
    claims, again = _flat(claimed), _flat(recomputed)
    for key, value in _flat(from_file).items():
        checks.append(Check(key, claims.get(key), value))
        if key.split(".")[0] in RESCORED_KEYS:
            limit = TOPK_TOLERANCE if key.startswith("topk") else _tolerance(settings)
            checks.append(Check(f"{key}, re-scored", claims.get(key), again[key], limit))
    return checks


def _rescore(message: Message, dataset: TokenDataset, root: Path) -> dict[str, np.ndarray]:
    """The arrays of losses.npz once more, from the decoded message alone."""
    header = message.header
    with claim_device(message.settings.compute) as device:
        run = build_run(message.settings, message.spec, dataset, root, device)
        if run.network.base_sha256 != header["base_sha256"]:
            raise UserError(
                f"the base's weights hash to {run.network.base_sha256[:12]}..., the certificate names "
                f"{header['base_sha256'][:12]}...; bring that base back, or use the versions that the certificate "
                f"names: {header['environment']}"
            )
        return score_message(run, message)


def _loss_checks(stored: dict[str, Any], rescored: dict[str, Any], settings: config.Settings) -> list[Check]:
    checks = []
    for split, name in (("a scored", "losses_bits"), ("a val", "val_losses_bits"), ("a test", "test_losses_bits")):
        if stored[name].shape != rescored[name].shape:
            checks.append(Check(f"number of {name}", len(stored[name]), len(rescored[name])))
            continue
        difference = float(np.abs(stored[name] - rescored[name]).max())
        checks.append(Check(f"largest difference of {split} document's loss", 0.0, difference, _tolerance(settings)))
    return checks


def _tolerance(settings: config.Settings) -> float:
    return BFLOAT16_TOLERANCE_BITS if settings.compute.dtype == "bfloat16" else LOSS_TOLERANCE_BITS


def _read_claim(path: Path) -> dict[str, Any]:
    try:
        claim = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; compute the bound first (sublora bound {path.parent})") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(
            f"{path}: not valid JSON ({error}); compute the bound again (sublora bound {path.parent})"
        ) from None
    if not isinstance(claim, dict):
        raise UserError(f"{path}: expected a JSON object; compute the bound again (sublora bound {path.parent})")
    return claim


def _flat(record: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested keys joined by dots, so that every number is compared on its own."""
    flat: dict[str, Any] = {}
    for key, value in record.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def _digest(indices: np.ndarray) -> str:
    return config.digest([int(i) for i in indices])[:16]
