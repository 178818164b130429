"""Where the weights of a base lie that is not random, and what base.json says of them. Does not import torch.

Three parties look for a base, each in its own order:

    a stage of the workflow   results/base/ below its root, nowhere else
    a verifier                the file that it names, its own results/base/, last what came with the certificate
    a reader of a message     the file that it names, its own root, beside the certificate, any folder above

The verifier's order is a security choice: what a prover hands over never takes the place of the verifier's own file.
Every reader compares the hash of the weights afterwards, wherever they were found.
"""

from pathlib import Path
from typing import Any

from sublora import config
from sublora.system.errors import UserError
from sublora.system.files import absolute, read_json
from sublora.system.names import BASE_FOLDER, BASE_JSON_NAME, BASE_WEIGHTS_NAME
from sublora.system.versions import BASE_FORMAT

MAKE_AGAIN = "make the base again (sublora base)"
NAME_IT = "name the certificate's own base with --base FILE, or make it again (sublora base)"
"""What cures a base that is missing or damaged, for those who were sent a certificate."""


def own_base_weights(root: Path) -> Path:
    """Return where a workflow's base is, or would be: results/base/base.safetensors below the folder that holds data/.

    The file need not exist.
    """
    return root / BASE_FOLDER / BASE_WEIGHTS_NAME


def base_weights_for_verifier(certificate: Path, own_root: Path | None) -> Path:
    """Return the base of a verifier who names no file: their own, else the one beside the certificate.

    `own_root`: the folder whose results/base/ is the verifier's; None if they have none. The file need not exist.

    Raises:
        UserError: there is neither a root nor a base beside the certificate.
    """
    beside = certificate.parent / BASE_WEIGHTS_NAME
    if own_root is not None:
        own = own_base_weights(own_root)
        if own.exists() or not beside.exists():
            return own
    if not beside.exists():
        raise UserError(f"{beside}: no such file; name the base's weights with --base")
    return beside


def base_weights_for_reader(certificate: Path) -> Path:
    """Return the base of a reader who names neither file nor root: beside the certificate, else in a folder above.

    Folders above are those of the certificate as it is named, those of what a link leads to, and those of the working
    directory.

    Raises:
        UserError: none of these folders has one.
    """
    beside = [absolute(certificate).parent, certificate.resolve().parent]
    above = [folder / BASE_FOLDER for start in (*beside, Path.cwd()) for folder in (start, *start.parents)]
    for folder in (*beside, *above):
        if (folder / BASE_WEIGHTS_NAME).exists():
            return folder / BASE_WEIGHTS_NAME
    raise UserError(
        f"{certificate}: no {BASE_WEIGHTS_NAME} beside it and no {BASE_FOLDER}/{BASE_WEIGHTS_NAME} in any "
        "folder above; name the base's weights with --base"
    )


def read_base_facts(folder: Path) -> dict[str, Any]:
    """Read base.json; UserError if it is missing, damaged or of another version."""
    path = folder / BASE_JSON_NAME
    facts = read_json(path, missing="; make the base first (sublora base --config FILE)", fix=MAKE_AGAIN)
    found = facts.get("format") if isinstance(facts, dict) else type(facts).__name__
    if found != BASE_FORMAT:
        raise UserError(f"{path}: base format {found}, expected {BASE_FORMAT}; {MAKE_AGAIN}")
    for key in ("sha256", "digest"):
        if not isinstance(facts.get(key), str):
            raise UserError(f"{path}: {key} is {facts.get(key)!r}, expected a hash in hexadecimal; {MAKE_AGAIN}")
    return dict(facts)


def named_base_sha256(settings: config.Settings, root: Path) -> str | None:
    """Return the hash that base.json names; None for a random base, which follows from a run's seed."""
    return None if settings.base.kind == "random" else str(read_base_facts(root / BASE_FOLDER)["sha256"])
