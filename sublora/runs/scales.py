"""results/scales.json: what the scales of a subspace follow from, once for all runs: gradients of the base.

The loss is that of the base's own corpus, at small random theta, so the scales know nothing of the n documents. They
depend on what is trained (`subspace.adapt`, section lora) and on no exponent, budget, allocation or seed.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from sublora import config
from sublora.data.base_and_target import base_data
from sublora.data.dataset import TokenDataset
from sublora.losses.windows import ChunkSampler
from sublora.runs.base import load_base
from sublora.runs.base_files import named_base_sha256
from sublora.runs.networks import AnyBase, make_network
from sublora.runs.starts import announce
from sublora.subspace.scales import Points, gradient_points, parse_scale, rounded_points
from sublora.system.device import claim_device
from sublora.system.errors import UserError
from sublora.system.files import read_json, write_json
from sublora.system.names import SCALES_PATH
from sublora.system.provenance import Provenance
from sublora.system.streams import generator
from sublora.system.versions import SCALES_FORMAT

STARTS, BATCHES_PER_START = 8, 8
"""Random theta, and batches of the base's corpus at each of them."""
NOISE = 0.01
"""Standard deviation by which every entry of theta is moved: where one factor of a product is zero, the other has no
gradient."""
MOST_POINTS = 20_000
"""Numbers of all parameters together; a certificate holds them in its header."""
MAKE_AGAIN = "compute the scales again (sublora scales --config FILE)"


def make_scales(settings: config.Settings, *, root: Path) -> Path:
    """Measure what the scales of the subspace follow from, write results/scales.json, and return its path.

    Args:
        settings: with subspace.scale.
        root: the folder that holds data/ and results/base/.

    Raises:
        UserError: the settings ask for no scales, base or data cannot be read, or there are more scales than a
            certificate can hold.
    """
    if settings.subspace.scale is None:
        raise UserError("subspace.scale is null: there are no scales to compute")
    dataset = TokenDataset.open(root, base_data(settings))
    base = load_base(settings, settings.grid.seeds[0], dataset.vocab_size, root)
    with claim_device(settings.compute) as device:
        announce(settings, Provenance.of_this_process(), device)
        points = rounded_points(measured_points(settings, base, dataset, device))
    count = sum(map(len, points.values()))
    if count > MOST_POINTS:
        raise UserError(
            f"subspace.scale {settings.subspace.scale}: {count:,} scales, a certificate holds at most {MOST_POINTS:,}; "
            "use gradient(a), which has one for each matrix"
        )
    path = root / SCALES_PATH
    write_json(path, {"format": SCALES_FORMAT, "of": _source(settings, base.sha256), "points": points})
    return path


def load_scale_points(settings: config.Settings, root: Path) -> Points | None:
    """Return what scales.json says of these settings; None where they ask for no scales.

    UserError if the file is missing, damaged, or of another base or other trained parameters.
    """
    if settings.subspace.scale is None:
        return None
    path = root / SCALES_PATH
    found = read_json(path, missing="; compute the scales first (sublora scales --config FILE)", fix=MAKE_AGAIN)
    wanted = _source(settings, str(named_base_sha256(settings, root)))
    if not isinstance(found, dict) or found.get("format") != SCALES_FORMAT:
        raise UserError(f"{path}: expected an object of format {SCALES_FORMAT}; {MAKE_AGAIN}")
    for key, value in wanted.items():
        there = found.get("of", {}).get(key) if isinstance(found.get("of"), dict) else None
        if there != value:
            raise UserError(f"{path}: computed with {key} {there!r}, expected {value!r}; {MAKE_AGAIN}")
    points = found.get("points")
    if not (isinstance(points, dict) and points and all(map(_is_points, points.values()))):
        raise UserError(f"{path}: points is no table of lists of whole numbers; {MAKE_AGAIN}")
    return {name: tuple(values) for name, values in points.items()}


def measured_points(
    settings: config.Settings, base: AnyBase, dataset: TokenDataset, device: torch.device
) -> dict[str, list[float]]:
    """Return 8 log2 of the gradients of all trained parameters, not rounded: `subspace.scales.gradient_points`.

    dataset: of the base's own corpus. UserError if it is too short, or a gradient is not finite.
    """
    trained = settings.base
    assert isinstance(trained, config.TrainedBase) and settings.subspace.scale is not None
    tokens, context = dataset.verified().tokens("train"), settings.model.context_length
    sampler = ChunkSampler(tokens, context, trained.micro_batch_sequences, "scales")
    total: NDArray[np.float64] | None = None
    for start in range(STARTS):
        # LoRA matrices of several seeds, so that the scales are those of no run's own.
        network, start_D = make_network(settings, base, vocab_size=dataset.vocab_size, seed=start, device=device)
        noise_D = generator("scales", "theta", start).standard_normal(len(start_D), dtype=np.float32)
        theta_D = torch.from_numpy(start_D + np.float32(NOISE) * noise_D).to(device).requires_grad_()
        for batch in range(BATCHES_PER_START):
            inputs_NT, targets_NT = sampler.batch(start * BATCHES_PER_START + batch)
            model = network.at(theta_D)
            hidden = model.hidden(torch.from_numpy(inputs_NT).to(device)).flatten(0, 1)
            loss = model.cross_entropy(hidden, torch.from_numpy(targets_NT).to(device).flatten())
            (gradient_D,) = torch.autograd.grad(loss, theta_D)
            squares_D = gradient_D.double().square().cpu().numpy()
            total = squares_D if total is None else total + squares_D
    assert total is not None
    try:
        return gradient_points(total / (STARTS * BATCHES_PER_START), network.space, _kind(settings))
    except ValueError as error:
        raise UserError(f"subspace.scale {settings.subspace.scale}: {error}; check the base") from None


def _kind(settings: config.Settings) -> str:
    return parse_scale(str(settings.subspace.scale)).kind


def _source(settings: config.Settings, base_sha256: str) -> dict[str, Any]:
    """Return what the points depend on beside the base's corpus, which the base itself was trained on."""
    source = {"kind": _kind(settings), "adapt": settings.subspace.adapt, "base_sha256": base_sha256}
    if settings.subspace.adapt == "lora":
        source |= {key: settings.lora.model_dump(mode="json")[key] for key in ("rank", "alpha", "targets", "init")}
    return source


def _is_points(values: object) -> bool:
    return isinstance(values, list) and bool(values) and all(type(value) is int for value in values)
