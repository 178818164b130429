"""Turn certificate.bin and losses.npz into bounds.json and bounds_metrics.pt.

Needs no network, no data and no GPU, and does not import torch.
"""

import time
from pathlib import Path

from sublora import config
from sublora.runs.losses_file import check_losses, read_losses
from sublora.runs.message import Message, read_message
from sublora.runs.record import run_environment, run_record
from sublora.runs.starts import announce, record_start
from sublora.system.errors import UserError
from sublora.system.files import write_json
from sublora.system.locks import Presence, sole_writer
from sublora.system.names import BOUNDS_NAME, BOUNDS_PT_NAME, CERTIFICATE_NAME, LOSSES_NAME
from sublora.system.provenance import Provenance
from sublora.system.torch_file import save_numbers
from sublora.system.versions import CHECKPOINT_FORMAT

PT_KEYS = ("kl_divergence", "empirical_bpd", "bound_value", "compressed_size_bits", "bound_hoeffding", "code_bits")
"""Numbers of the record that bounds_metrics.pt holds as well."""


def bound_run(path: Path, *, config_path: Path | None = None) -> Path:
    """Write bounds.json and bounds_metrics.pt of the run in `path`; return the first.

    UserError if the certificate or the losses are missing, damaged, or of another config.
    """
    started = time.monotonic()

    # Read what scoring left, and refuse what does not belong together.
    message = read_message(path / CERTIFICATE_NAME)
    if config_path is not None:
        _check_settings_in_force(message, config_path)
    losses = read_losses(path / LOSSES_NAME)
    scored, own = losses["provenance"]["certificate_sha256"], message.certificate_sha256
    if scored != own:
        raise UserError(
            f"{path / LOSSES_NAME}: losses of the certificate {scored[:12]}..., but {CERTIFICATE_NAME} is "
            f"{own[:12]}...; score the run again (sublora score {path})"
        )
    check_losses(losses, message, path / LOSSES_NAME)

    provenance = Provenance.of_this_process()
    announce(message.settings, provenance)
    record_start(path, "bound", message.settings, provenance)
    environment = run_environment(losses["provenance"], provenance, time.monotonic() - started)

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
