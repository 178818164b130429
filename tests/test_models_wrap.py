"""Any module wrapped: what it computes, what is trained, and that the module itself stays as it is."""

import copy
import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import sublora
from sublora.coding.quantizer import ideal_message_bits
from sublora.system.errors import UserError
from sublora.wrapping.frozen import base_sha256
from sublora.wrapping.module import Wrapped

WIDTH = 12
KINDS = {
    "uniform": {"rank": 3, "allocation": "uniform"},
    "fixed": {"rank": 3, "allocation": "fixed-0.4"},
    "learned": {"rank": 3, "allocation": "learned"},
    "both random": {"rank": 3, "allocation": "learned", "init": "both_random"},
    "weights": {"rank": None},
}


def network(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, WIDTH), nn.Tanh(), nn.Linear(WIDTH, WIDTH), nn.Tanh(), nn.Linear(WIDTH, 4))


def wrapped(kind: str = "uniform", module: nn.Module | None = None, **changes) -> Wrapped:
    arguments = {"targets": "*", "budget": 30, "seed": 5} | KINDS[kind] | changes
    return sublora.wrap(network() if module is None else module, arguments.pop("targets"), **arguments)


def inputs(rows: int = 9) -> torch.Tensor:
    return torch.randn(rows, 6, generator=torch.Generator().manual_seed(1))


def moved(model: Wrapped, scale: float = 0.7) -> Wrapped:
    """With some w that is not zero, and gates that are not one half."""
    stream = np.random.default_rng(3)
    with torch.no_grad():
        model.subspace.subspace_params.copy_(torch.from_numpy(scale * stream.standard_normal(model.arguments.budget)))
        for gate in model.subspace.gating_params.values():
            gate.fill_(float(stream.standard_normal()))
    return model


@pytest.mark.parametrize("kind", KINDS)
def test_at_the_start_it_computes_what_the_module_computes(kind) -> None:
    torch.testing.assert_close(wrapped(kind)(inputs()), network()(inputs()))


@pytest.mark.parametrize("kind", KINDS)
def test_merging_gives_a_plain_network_of_the_same_outputs(kind) -> None:
    model = moved(wrapped(kind))
    merged = model.merge()
    assert not any(m._forward_hooks for m in merged.modules())
    assert all(p.requires_grad for p in merged.parameters())
    assert [name for name, _ in merged.named_parameters()] == [name for name, _ in network().named_parameters()]
    torch.testing.assert_close(merged(inputs()), model(inputs()))
    assert not torch.allclose(merged(inputs()), network()(inputs()), atol=1e-2)


def test_an_adapter_is_w_x_plus_scaled_b_a_x() -> None:
    layer = nn.Linear(7, 5)
    model = moved(wrapped("uniform", layer, rank=2, budget=20, alpha=6.0))
    theta = model.theta()
    a, b = theta[:14].view(2, 7), theta[14:].view(5, 2)
    x = torch.randn(3, 7, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(model(x), layer(x) + 6.0 / 2 * x @ a.T @ b.T)


def test_chosen_parameters_move_along_fixed_directions() -> None:
    """theta is affine in w, the same for every value: P (w + v) = P w + P v."""
    model = wrapped("weights", targets="weight")
    names = [p.name for p in model.space.parameters]
    assert names == ["0.weight", "2.weight", "4.weight"]
    w, v = torch.randn(2, 30, generator=torch.Generator().manual_seed(4))
    at = model.subspace.theta
    torch.testing.assert_close(at(w + v), at(w) + at(v), atol=1e-6, rtol=1e-5)
    assert torch.count_nonzero(at(torch.zeros(30))) == 0


@pytest.mark.parametrize("kind", KINDS)
def test_only_w_gates_and_step_are_trained_and_saved(kind) -> None:
    module = network()
    before = base_sha256(module)
    model = wrapped(kind, module)
    names = {name for name, _ in model.named_parameters()}
    expected = {"log_step", "subspace.subspace_params"}
    expected |= {f"subspace.gating_params.{g}" for g in ("0", "2", "4") if model.arguments.allocation == "learned"}
    assert names == expected and all(p.requires_grad for p in model.parameters())
    assert set(model.state_dict()) == expected | {"_extra_state"}
    optimizer = torch.optim.Adam(model.parameters(), 0.1)
    targets = torch.arange(9) % 4
    losses = []
    for step in range(40):
        model.anneal(step / 40)
        loss = F.cross_entropy(model(inputs()), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.1
    assert base_sha256(module) == before and all(p.grad is None for p in module.parameters())


@pytest.mark.parametrize("kind", KINDS)
def test_a_reloaded_state_is_the_same_model(kind) -> None:
    model = moved(wrapped(kind))
    model.anneal(0.3)
    model.quantize()
    fresh = wrapped(kind)
    fresh.load_state_dict(model.state_dict())
    assert torch.equal(fresh(inputs()), model(inputs()))
    assert (fresh.rounding, fresh.mask_width, fresh.step) == (model.rounding, model.mask_width, model.step)


def test_the_module_is_itself_outside_the_forward_pass_even_after_an_error() -> None:
    module = network()
    first, second = moved(wrapped("uniform", module)), moved(wrapped("learned", module, seed=6), 0.2)
    plain, one, two = network()(inputs()), first(inputs()), second(inputs())
    with pytest.raises(RuntimeError):
        first(torch.zeros(2, 5))
    assert torch.equal(module(inputs()), plain)
    assert torch.equal(first(inputs()), one) and torch.equal(second(inputs()), two)
    copied = copy.deepcopy(first)
    with torch.no_grad():
        first.subspace.subspace_params.zero_()
    assert torch.equal(copied(inputs()), one) and not torch.equal(first(inputs()), one)


# Quantization


def test_rounded_values_are_multiples_of_the_step_and_gradients_pass() -> None:
    """dL/dw as if nothing were rounded; dL/dstep = sum of g (k - w / step) (learned step size quantization)."""
    model = moved(wrapped("weights"))
    model.quantize(relative_step=1.3)
    w, step = model.subspace.subspace_params, model.step
    used = model.used_w()
    symbols = model.symbols().symbols
    assert np.array_equal(used.detach().numpy(), (symbols * step).astype(np.float32))
    assert np.abs(symbols - w.detach().numpy() / step).max() <= 0.5 and np.abs(symbols).max() >= 2
    g = torch.randn(30, generator=torch.Generator().manual_seed(8))
    used.backward(g)
    assert torch.equal(w.grad, g)
    expected = float((g.double() * (torch.from_numpy(symbols) - w.detach().double() / step)).sum() * step)
    assert model.log_step.grad.item() == pytest.approx(expected, rel=1e-4)


def test_the_price_is_the_length_of_the_code_and_draws_w_to_zero() -> None:
    model = moved(wrapped("learned", budget=150), 1.0)
    assert sublora.message_bits(model).item() == 0.0
    model.quantize()
    price = sublora.message_bits(model)
    gate_bits = 3 * math.ceil(math.log2(151))
    ideal = ideal_message_bits(model.symbols()) + gate_bits
    assert price.item() == pytest.approx(ideal, rel=0.06)
    price.backward()
    w = model.subspace.subspace_params
    inner = w.grad * w.detach().sign()
    assert (inner > 0).all(), "a larger magnitude costs more"
    assert model.log_step.grad.item() < 0, "a larger step costs less"
    with torch.no_grad():
        w[0] = torch.inf
    with pytest.raises(ValueError, match="finite"):
        sublora.message_bits(model)


def test_a_step_is_refused_where_there_is_nothing_to_round() -> None:
    model = wrapped()
    with pytest.raises(ValueError, match="not quantized yet"):
        model.symbols()
    with pytest.raises(ValueError, match="w does not vary"):
        model.quantize()
    with pytest.raises(ValueError, match="a step lies between"):
        model.quantize(1e30)


def test_annealing_narrows_masks_then_splits_hard_then_rounds() -> None:
    model = moved(wrapped("learned"))
    widths, rounded = [], []
    for step in range(101):
        model.anneal(step / 100, soft_until=0.5, round_from=0.6, mask_width_start=0.25, mask_width_end=0.3)
        widths.append(model.mask_width)
        rounded.append(model.rounding)
    assert widths[0] == pytest.approx(0.25 * 30) and widths[49] == pytest.approx(0.3, rel=0.1)
    assert all(a > b for a, b in zip(widths[:50], widths[1:50], strict=False)) and set(widths[50:]) == {0.0}
    assert rounded == [False] * 60 + [True] * 41
    with pytest.raises(ValueError, match="0 to 1, found 1.5"):
        model.anneal(1.5)


# Modules of others


class Normed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.norm(self.first(x)))


def test_statistics_of_batch_normalization_are_part_of_the_frozen_module() -> None:
    model = wrapped("uniform", Normed(), budget=20).train()
    before = model.identity.base_sha256
    model(inputs())
    assert base_sha256(model.module) == before and not model.module.norm.training and model.module.first.training


def test_pytorch_s_encoder_layer_keeps_its_adapters_in_evaluation() -> None:
    """It has a fast path that reads weights instead of calling its linear maps."""
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    model = moved(wrapped("uniform", layer, targets=["linear1", "linear2"], budget=20, rank=2)).eval()
    x = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        torch.testing.assert_close(model(x), model.merge().eval()(x))
        assert not torch.allclose(model(x), layer(x), atol=1e-3)
    with pytest.raises(ValueError, match="out_proj"):
        wrapped("uniform", layer, targets="out_proj")


def test_gradient_checkpointing_is_refused() -> None:
    module = network()
    module.gradient_checkpointing = True
    model = wrapped("uniform", module)
    with pytest.raises(ValueError, match="gradient checkpointing"):
        model(inputs())
    with torch.no_grad():
        model(inputs())


def test_autocast_does_not_reach_the_projection() -> None:
    model = moved(wrapped("weights"))
    expected = model.theta()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(model.theta(), expected)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"targets": "q_proj"}, "target 'q_proj' fits no linear map of the network; it has 0, 2, 4"),
        ({"targets": "bias2", "rank": None}, "target 'bias2' fits no parameter of the network; it has 0.weight"),
        ({"targets": ()}, "targets"),
        ({"budget": 0}, "budget: input should be greater than 0, found 0"),
        ({"budget": 10**6}, "budget 1000000 exceeds"),
        ({"rank": 40}, "rank 40 exceeds that of every chosen map, at most 12"),
        ({"allocation": "half"}, "allocation 'half' is not one of"),
        ({"allocation": "learned", "rank": None}, "allocation learned divides w between A and B: it needs a rank"),
        ({"init": "ones"}, "init"),
        ({"projection": "dense"}, "projection 'dense' is not one of"),
        ({"seed": -1}, "seed"),
        ({"alpha": float("nan")}, "alpha"),
        ({"scales": {"0.0.lora_A": 1.0}}, "scales: '.*' has no scale"),
        ({"scales": {"0.0.lora_A": 0.0}}, "scales.0.0.lora_A: input should be greater than 0"),
    ],
)
def test_wrong_arguments_are_refused_and_leave_the_module_alone(changes, expected) -> None:
    module = network()
    with pytest.raises(ValueError, match=expected) as error:
        wrapped("uniform", module, **changes)
    assert "\n" not in str(error.value)
    assert all(p.requires_grad for p in module.parameters())


def scales_of(model: Wrapped) -> dict[str, float]:
    """Another scale for each trained matrix."""
    return {p.name: 2.0**index for index, p in enumerate(model.space.parameters)}


@pytest.mark.parametrize("kind", ["learned", "weights"])
def test_scales_are_normalized_and_multiply_what_w_moves(kind) -> None:
    plain = moved(wrapped(kind))
    scaled = moved(wrapped(kind, scales=scales_of(plain)))
    entries = torch.cat([torch.full((p.stop - p.start,), scales_of(plain)[p.name]) for p in plain.space.parameters])
    entries = entries / entries.square().mean().sqrt()
    origin = plain.subspace.origin_D
    torch.testing.assert_close(scaled.theta() - origin, entries * (plain.theta() - origin))
    # A common factor makes no difference.
    tenfold = moved(wrapped(kind, scales={name: 10.0 * scale for name, scale in scales_of(plain).items()}))
    torch.testing.assert_close(tenfold.theta(), scaled.theta())


def test_scales_travel_in_the_message_and_others_are_refused() -> None:
    scales = scales_of(wrapped("learned"))
    model = moved(wrapped("learned", scales=scales))
    model.quantize(0.1)
    message = sublora.encode(model)
    predictor, received = sublora.decode(message.data, network())
    assert received.bits == message.bits and predictor.arguments.scales == scales
    with torch.no_grad():
        assert torch.equal(predictor(inputs()), model.eval()(inputs()))
    for other in (None, scales | {"0.0.lora_A": 3.0}):
        with pytest.raises(UserError, match="wrapped with scales"):
            sublora.decode(message.data, wrapped("learned", scales=other))


def test_a_message_without_scales_names_none() -> None:
    model = moved(wrapped("learned"))
    model.quantize(0.1)
    assert b'"scales"' not in sublora.encode(model).data
