"""A run of the grid from its settings and seeds: the base, the adapters' parameters, the subspace."""

import functools
from pathlib import Path

import torch

from sublora import config
from sublora.data.dataset import TokenDataset
from sublora.models.protocol import Network
from sublora.runs.base import load_base
from sublora.runs.networks import CERTIFIED_DTYPE, AnyBase, make_network
from sublora.subspace.allocations import parse_allocation
from sublora.subspace.subspace import Subspace, SubspaceShape
from sublora.system.errors import UserError
from sublora.system.streams import generator
from sublora.training.run import Run


def build_run(
    settings: config.Settings,
    spec: config.RunSpec,
    dataset: TokenDataset,
    root: Path,
    device: torch.device,
    *,
    dtype: str = CERTIFIED_DTYPE,
) -> Run:
    """Build a run at its start (w = 0, gates 1/2); the same function for every arm of a seed.

    Args:
        settings: those of the run, `settings.for_run(spec)`; so in every function of this module.
        root: the folder that holds data/ and results/base/.
        dtype: what the network computes in, a training's `compute.dtype`.

    Raises:
        UserError: the budget does not fit the network, or the base cannot be read.
    """
    base = load_base(settings, spec.seed, dataset.vocab_size, root)
    return assemble_run(settings, spec, dataset, base, device, dtype=dtype)


def assemble_run(
    settings: config.Settings,
    spec: config.RunSpec,
    dataset: TokenDataset,
    base: AnyBase,
    device: torch.device,
    *,
    dtype: str = CERTIFIED_DTYPE,
) -> Run:
    """A run at its start on a base that is at hand. UserError if the budget does not fit the network."""
    network, subspace = adaptable(settings, spec, base, dataset.vocab_size, device, dtype=dtype)
    return Run(settings, spec, dataset, network, subspace, device, base.seen_sha256(dataset.longest_targets))


def adaptable(
    settings: config.Settings,
    spec: config.RunSpec,
    base: AnyBase,
    vocab_size: int,
    device: torch.device,
    *,
    dtype: str = CERTIFIED_DTYPE,
) -> tuple[Network, Subspace]:
    """The network on a base, and the subspace in which a run of it is trained, at its start; needs no data.

    UserError if the budget does not fit the network.
    """
    network, start_D = make_network(settings, base, vocab_size=vocab_size, seed=spec.seed, device=device, dtype=dtype)
    shape = SubspaceShape(
        space=network.space,
        allocation=parse_allocation(spec.allocation),
        budget=spec.dimension(network.space.size),
        projection=settings.subspace.projection,
        sharing=settings.gating.sharing,
    )
    stream = functools.partial(generator, spec.seed, "projection", settings.subspace.projection_seed)
    try:
        return network, Subspace(shape, start_D, stream).to(device)
    except ValueError as error:
        raise UserError(str(error)) from None
