"""Check the scales of a claim's subspace: they come from the prover, and must know nothing of the n documents."""

import torch

from sublora.data.base_and_target import base_data
from sublora.data.dataset import TokenDataset, dataset_folder
from sublora.data.dataset_files import META_FILE
from sublora.runs.message import Message
from sublora.runs.networks import AnyBase
from sublora.runs.scales import measured_points
from sublora.runs.verify.checks import Check
from sublora.runs.verify.files import Claim
from sublora.subspace.scales import agree


def scale_checks(message: Message, claim: Claim, base: AnyBase, device: torch.device) -> tuple[list[Check], list[str]]:
    """Measure the gradients of the base again where its corpus is here; return the check, or else what is trusted."""
    points, settings = message.header.scale_points, message.settings
    if points is None:
        return [], []
    if claim.data is None or claim.root is not None:
        folder = dataset_folder(claim.data_root(settings.data), base_data(settings))
        if (folder / META_FILE).exists():
            dataset = TokenDataset.open_folder(folder, base_data(settings))
            measured = measured_points(settings, base, dataset, device)
            return [Check("scales are those of the base's gradients", True, agree(points, measured))], []
    return [], [
        "that the scales of the subspace were computed on the base's corpus, whose data are not here, and not tuned on "
        "the n documents"
    ]
