"""A run of the grid from its settings and seeds: the base, the adapters' parameters, the subspace."""

import functools
from pathlib import Path

import torch

from sublora import config
from sublora.data.dataset import TokenDataset
from sublora.errors import UserError
from sublora.models.gpt import DTYPES, GPT
from sublora.models.lora import initial_theta
from sublora.models.lora_gpt import LoraGPT
from sublora.models.lora_space import lora_space
from sublora.models.weights import Base
from sublora.runs.base import load_base
from sublora.streams import generator
from sublora.subspace.allocations import parse_allocation
from sublora.subspace.subspace import Subspace, SubspaceShape
from sublora.training.run import Run

CERTIFIED_DTYPE = "float32"
"""Of everything that is reported, whatever `compute.dtype` says.

The predictor of a certificate is the network with the float32 weights that the hash of its base names, computed in
float32: neither rounded weights nor a device's reduced products are part of its definition.
"""


def build_run(
    settings: config.Settings,
    spec: config.RunSpec,
    dataset: TokenDataset,
    root: Path,
    device: torch.device,
    *,
    dtype: str = CERTIFIED_DTYPE,
) -> Run:
    """Everything of a run at its start (w = 0, gates 1/2); the same function for every arm of a seed.

    `root`: the folder that holds data/ and results/base/; dtype: what the network computes in, a training's
    `compute.dtype`. UserError if the budget does not fit the network, or the base cannot be read.
    """
    base = load_base(settings, spec.seed, dataset.vocab_size, root)
    return assemble_run(settings, spec, dataset, base, device, dtype=dtype)


def assemble_run(
    settings: config.Settings,
    spec: config.RunSpec,
    dataset: TokenDataset,
    base: Base,
    device: torch.device,
    *,
    dtype: str = CERTIFIED_DTYPE,
) -> Run:
    """A run at its start on a base that is at hand. UserError if the budget does not fit the network."""
    vocab_size = dataset.vocab_size
    space = lora_space(settings.model, settings.lora, vocab_size)
    shape = SubspaceShape(
        space=space,
        allocation=parse_allocation(spec.allocation),
        budget=spec.budget,
        projection=settings.subspace.projection,
        sharing=settings.gating.sharing,
    )
    origin_D = initial_theta(space, spec.seed, settings.lora.init)
    stream = functools.partial(generator, spec.seed, "projection", settings.subspace.projection_seed)
    try:
        subspace = Subspace(shape, origin_D, stream).to(device)
    except ValueError as error:
        raise UserError(str(error)) from None
    gpt = GPT(settings.model, vocab_size, dtype=DTYPES[dtype], use_compiler=settings.compute.compile)
    gpt.load(base.weights)
    network = LoraGPT(
        gpt=gpt.to(device),
        space=space,
        base_sha256=base.sha256,
        scale=settings.lora.alpha / settings.lora.rank,
        dropout=settings.lora.dropout,
        # With random B the initial product has to be taken away.
        origin_D=subspace.origin_D if settings.lora.init == "both_random" else None,
    )
    return Run(settings, spec, dataset, network, subspace, device)
