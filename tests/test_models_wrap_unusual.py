"""Modules that use their weights in unusual ways: wrapped they compute what they compute merged, or are refused."""

import warnings

import pytest
import torch
from test_models_wrap import inputs, moved, network, wrapped
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import prune
from torch.utils.checkpoint import checkpoint

import sublora
from sublora.models.linear_maps import ParameterReads
from sublora.wrapping.frozen import base_sha256

WIDTH = 6


class Net(nn.Module):
    """Two linear maps, the first of which is used as `how` says."""

    def __init__(self, how) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last, self.how = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 4), how
        self.double()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(torch.tanh(self.how(self.first, x.double())))


USES = {
    "called": lambda layer, x: layer(x),
    "called by keyword": lambda layer, x: layer(input=x),
    "forward called": lambda layer, x: layer.forward(x),
    "weight read": lambda layer, x: F.linear(x, layer.weight, layer.bias),
    "weight multiplied": lambda layer, x: (layer.weight @ x.T).T + layer.bias,
    "called and read": lambda layer, x: layer(x) + x @ layer.weight.T + layer(-x),
    "parts of the weight read": lambda layer, x: x[:, :2] @ layer.weight[:, :2].T + x[:, 2:] @ layer.weight[:, 2:].T,
    "called in eight bits elsewhere": lambda layer, x: layer(x.to(layer.weight.dtype)) if layer.weight.ndim else x,
}


@pytest.mark.parametrize("kind", ["learned", "both random", "weights"])
@pytest.mark.parametrize("use", USES)
def test_a_weight_that_is_read_is_the_moved_one(use, kind) -> None:
    """So it is in WavLM's attention, in Mamba's dt_proj, in fused kernels."""
    module = Net(USES[use])
    model = moved(wrapped(kind, module))
    merged = model.merge()
    torch.testing.assert_close(model(inputs()), merged(inputs()))
    assert (model(inputs()) - module(inputs())).abs().max() > 0.05
    assert type(module.first) is nn.Linear and not module.first._forward_hooks and not module.first._forward_pre_hooks


@pytest.mark.parametrize("kind", ["learned", "weights"])
def test_the_gradient_is_the_same_however_the_weight_is_used(kind) -> None:
    gradients = []
    for use in ("called", "weight read", "forward called", "weight multiplied"):
        model = moved(wrapped(kind, Net(USES[use])))
        model(inputs()).square().mean().backward()
        gradients.append(model.subspace.subspace_params.grad)
    for other in gradients[1:]:
        torch.testing.assert_close(other, gradients[0])


def test_an_error_in_the_pass_leaves_the_module_as_it_was() -> None:
    module = Net(USES["weight read"])
    model = moved(wrapped("uniform", module))
    with pytest.raises(RuntimeError):
        model(torch.zeros(2, 5))
    assert type(module.first) is nn.Linear and set(vars(module.first)) == set(vars(nn.Linear(1, 1)))
    torch.testing.assert_close(model(inputs()), model.merge()(inputs()))


def test_reads_pass_through_every_function_and_end_as_they_began() -> None:
    layer = nn.Linear(2, 2)
    plain, one, two = layer.weight, ParameterReads(), ParameterReads()
    one.attach(layer, "weight", lambda value: value + 1.0)
    two.attach(layer, "weight", lambda value: value * 10.0)
    two.attach(layer, "bias", lambda value: value * 0.0)
    assert torch.equal(layer.weight, (plain + 1.0) * 10.0) and not layer.bias.any()
    assert isinstance(layer, nn.Linear) and repr(layer) == repr(nn.Linear(2, 2)) and len(list(layer.parameters())) == 2
    two.remove()
    assert torch.equal(layer.weight, plain + 1.0)
    one.remove()
    assert layer.weight is plain and type(layer) is nn.Linear


class Listed(nn.Module):
    """Reads its weights from a list as well, which no move by name reaches."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Linear(6, 6), nn.Linear(6, 4)
        self.weights = [self.first.weight]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(torch.tanh(self.first(x)) + x @ self.weights[0].T)


@pytest.mark.parametrize("kind", ["uniform", "weights"])
def test_what_reads_a_weight_past_its_name_reads_the_frozen_one_in_both(kind) -> None:
    model = moved(wrapped(kind, Listed(), budget=20))
    torch.testing.assert_close(model(inputs()), model.merge()(inputs()), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("pattern", ["embedding.weight", "head.weight"])
def test_a_shared_parameter_stays_shared_where_it_moves_itself(pattern) -> None:
    module = Tied()
    if pattern == "head.weight":
        # The first name of a shared parameter is the one that patterns fit.
        with pytest.raises(ValueError, match="fits no parameter"):
            wrapped("weights", module, targets=pattern, budget=20)
        return
    model = moved(wrapped("weights", module, targets=pattern, budget=20))
    merged = model.merge()
    assert merged.head.weight is merged.embedding.weight
    torch.testing.assert_close(model(torch.arange(7)), merged(torch.arange(7)))


class Tied(nn.Module):
    """A head that shares its weight with the embedding, and is read by its owner."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding, self.head = nn.Embedding(7, WIDTH), nn.Linear(WIDTH, 7, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return F.linear(torch.tanh(self.embedding(ids)), self.head.weight)


def test_a_head_that_is_read_is_adapted_apart_from_the_embedding() -> None:
    ids = torch.arange(7)
    model = moved(wrapped("uniform", Tied(), targets="head", budget=20))
    merged = model.merge()
    torch.testing.assert_close(model(ids), merged(ids))
    assert torch.equal(merged.embedding.weight, Tied().embedding.weight)


# Weights of several types, or without values


class Mixed(nn.Module):
    """A body in bfloat16 with a head in float32."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body, self.head = nn.Linear(WIDTH, WIDTH).bfloat16(), nn.Linear(WIDTH, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.tanh(self.body(x.bfloat16())).float())


@pytest.mark.parametrize("kind", ["learned", "both random", "weights"])
def test_every_adapter_has_the_type_of_its_map(kind) -> None:
    module = Mixed()
    model = moved(wrapped(kind, module), 0.1)
    torch.testing.assert_close(model(inputs()), model.merge()(inputs()), atol=3e-2, rtol=3e-2)
    assert (model(inputs()) - module(inputs())).abs().max() > 0.1
    # The head's adapter is computed in float32, whatever the type of the body.
    head = moved(wrapped("uniform", module, targets="head", budget=20))
    torch.testing.assert_close(head(inputs()), head.merge()(inputs()))
    model(inputs()).square().mean().backward()
    assert model.subspace.subspace_params.grad.norm() > 0


COMPUTED = {
    "weight_norm": nn.utils.weight_norm,
    "spectral_norm": nn.utils.spectral_norm,
    "pruning": lambda layer: prune.l1_unstructured(layer, "weight", amount=0.3),
}


@pytest.mark.parametrize("how", COMPUTED)
def test_a_map_whose_weight_is_computed_is_refused_by_name(how) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), COMPUTED[how](nn.Linear(8, 4)))
    with pytest.raises(ValueError, match="the weight of '2' is no parameter but computed before each pass"):
        wrapped("uniform", module)
    model = moved(wrapped("uniform", module, targets="0", budget=20)).eval()
    torch.testing.assert_close(model(inputs()), model.merge()(inputs()))


def test_parametrized_maps_are_no_targets_and_their_parameters_are() -> None:
    module = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.utils.parametrizations.weight_norm(nn.Linear(8, 4)))
    assert [each.name for each in wrapped("uniform", module, budget=20)._maps] == ["0"]
    with pytest.raises(ValueError, match="target '2' fits no linear map"):
        wrapped("uniform", module, targets="2", budget=20)
    model = moved(wrapped("weights", module))
    torch.testing.assert_close(model(inputs()), model.merge()(inputs()))


def test_weights_without_values_are_refused() -> None:
    with pytest.raises(ValueError, match=r"'1.weight' has no shape yet: run one forward pass"):
        wrapped("uniform", nn.Sequential(nn.Linear(6, 8), nn.LazyLinear(4)), budget=20)
    with pytest.raises(ValueError, match=r"'weight' has no values \(device meta\)"):
        wrapped("uniform", nn.Linear(6, 8, device="meta"), budget=20)
    whole = nn.Linear(6, 8)
    whole.weight = nn.Parameter(torch.ones(8, 6, dtype=torch.int32), requires_grad=False)
    with pytest.raises(ValueError, match="the weight of '' is torch.int32, expected a floating-point type"):
        wrapped("uniform", whole, budget=20)


class Initialized(nn.Linear):
    """Linear with another start, as EsmFold's: what it computes is inherited."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs)
        nn.init.zeros_(self.bias)


class Doubled(nn.Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2.0 * super().forward(x)


def test_a_subclass_of_linear_is_a_map_if_it_computes_nothing_else() -> None:
    module = nn.Sequential(Initialized(6, 8), Doubled(8, 8), nn.Linear(8, 4))
    assert [each.name for each in wrapped("uniform", module)._maps] == ["0", "2"]
    with pytest.raises(ValueError, match="target '1' fits no linear map"):
        wrapped("uniform", module, targets="1")


# Recomputation in the backward pass


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.b(torch.relu(self.a(x)))


class Reversible(torch.autograd.Function):
    """Recomputes its block in the backward pass by itself, as reversible networks do."""

    @staticmethod
    def forward(ctx, x, block):
        ctx.save_for_backward(x)
        ctx.block = block
        return block(x)

    @staticmethod
    def backward(ctx, gradient):
        with torch.enable_grad():
            x = ctx.saved_tensors[0].detach().requires_grad_()
            ctx.block(x).backward(gradient)
        return x.grad, None


SAVING = {
    "reentrant": lambda block, x: checkpoint(block, x, use_reentrant=True),
    "not reentrant": lambda block, x: checkpoint(block, x, use_reentrant=False),
    "a method": lambda block, x: checkpoint(lambda y: block.forward(y), x, use_reentrant=False),
    "read": lambda block, x: checkpoint(lambda y: y @ block.a.weight.T @ block.b.weight.T, x, use_reentrant=False),
    "reversible": lambda block, x: Reversible.apply(x, block),
}


class Saving(nn.Module):
    """Blocks that save memory in the way that `how` names; no attribute gradient_checkpointing tells."""

    def __init__(self, how: str | None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 4)
        self.blocks = nn.ModuleList(Block() for _ in range(2))
        self.how = how
        self.double()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x.double())
        for block in self.blocks:
            x = SAVING[self.how](block, x) if self.how and torch.is_grad_enabled() else block(x)
        return self.last(x)


@pytest.mark.parametrize("kind", ["uniform", "weights"])
@pytest.mark.parametrize("targets", ["*", "blocks.*"])
@pytest.mark.parametrize("how", SAVING)
def test_recomputation_by_any_name_is_refused_before_a_gradient_is_wrong(how, targets, kind) -> None:
    module = Saving(how)
    model = moved(wrapped(kind, module, targets=targets))
    with pytest.raises(ValueError, match=r"gradient checkpointing (around 'blocks.0.a|with use_reentrant=True)"):
        model(inputs())
    assert type(module.blocks[0].a) is nn.Linear
    with torch.no_grad():
        torch.testing.assert_close(model(inputs()), model.merge()(inputs()))


def gradient(model: sublora.Wrapped, call=None) -> torch.Tensor:
    model.subspace.subspace_params.grad = None
    (call or model)(inputs()).square().mean().backward()
    assert model.subspace.subspace_params.grad is not None
    return model.subspace.subspace_params.grad


@pytest.mark.parametrize("kind", ["uniform", "weights"])
def test_recomputation_apart_from_what_w_moves_is_right(kind) -> None:
    expected = gradient(moved(wrapped(kind, Saving(None), targets=["first*", "last*"])))
    for how in ("not reentrant", "reentrant", "reversible"):
        found = gradient(moved(wrapped(kind, Saving(how), targets=["first*", "last*"])))
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("kind", ["uniform", "weights"])
def test_what_the_module_runs_under_no_grad_by_design_has_no_gradient(kind) -> None:
    """Sinusoidal positions of Marian and Pegasus, indexers of sparse attention: torch's gradient is zero there too."""
    module = Net(lambda layer, x: torch.no_grad()(lambda: layer(x) + x @ layer.weight.T)() + layer.bias)
    model = moved(wrapped(kind, module))
    torch.testing.assert_close(model(inputs()), model.merge()(inputs()))
    only = moved(wrapped(kind, module, targets="last*", budget=20))
    assert gradient(model).norm() > 0 and gradient(only).norm() > 0


@pytest.mark.parametrize("kind", ["uniform", "weights"])
def test_the_wrapped_module_itself_may_be_recomputed_or_stored_elsewhere(kind) -> None:
    model = moved(wrapped(kind, Saving(None)))
    expected = gradient(model)
    torch.testing.assert_close(gradient(model, lambda x: checkpoint(model, x, use_reentrant=False)), expected)
    with torch.autograd.graph.save_on_cpu():
        torch.testing.assert_close(gradient(model), expected)


class Repeated(nn.Module):
    """Only the last of its passes through the same map has a gradient, as in recycling."""

    def __init__(self) -> None:
        super().__init__()
        self.map = nn.Linear(6, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            x = torch.tanh(self.map(x))
        with torch.autograd.graph.save_on_cpu():
            return self.map(x)


def test_a_map_that_also_runs_without_gradients_is_no_error() -> None:
    model = moved(wrapped("uniform", Repeated(), budget=20))
    assert gradient(model).norm() > 0


# State that a pass changes


class Averaging(nn.Module):
    """Keeps a moving average of its inputs in training, as vector quantization does."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(6, 4)
        self.register_buffer("mean", torch.zeros(6))
        self.register_buffer("unknown", torch.full((3,), torch.nan))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training:
            self.mean.lerp_(x.detach().mean(0), 0.1)
        return self.last(x - self.mean)


def test_a_buffer_that_training_changes_is_found_in_the_first_pass_and_restored() -> None:
    module = Averaging()
    before = base_sha256(module)
    model = moved(wrapped("uniform", module, budget=20)).train()
    with pytest.raises(ValueError, match=r"in training mode changes 'mean' of the module.*evaluation mode"):
        model(inputs())
    assert base_sha256(module) == before
    model.eval()
    gradient(model)
    model.anneal(1.0)
    sublora.encode(model)


class Rescaling(nn.Module):
    """Rescales a weight of its own in evaluation, as RWKV does."""

    def __init__(self, factor: float = 0.5) -> None:
        super().__init__()
        self.last, self.factor, self.rescaled = nn.Linear(6, 4), factor, False

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.training and not self.rescaled:
            with torch.no_grad():
                self.last.weight.mul_(self.factor)
            self.rescaled = True
        return self.last(x)


@pytest.mark.parametrize("changes", [{"rank": 2}, {"rank": None}, {"rank": None, "targets": "last.bias", "budget": 3}])
def test_a_weight_that_a_pass_rewrites_is_refused(changes) -> None:
    model = moved(wrapped("uniform", Rescaling(), **{"budget": 20} | changes))
    model.train()(inputs())
    with pytest.raises(ValueError, match=r"in evaluation mode changes 'last(.weight)?' of the module"):
        model.eval()(inputs())


@pytest.mark.parametrize("kind", ["uniform", "weights"])
def test_instance_normalization_keeps_its_statistics(kind) -> None:
    module = nn.Sequential(
        nn.Conv1d(2, 4, 3), nn.InstanceNorm1d(4, track_running_stats=True), nn.Flatten(), nn.Linear(24, 3)
    )
    model = moved(wrapped(kind, module, targets="3*", budget=20)).train()
    x = torch.randn(8, 2, 8, generator=torch.Generator().manual_seed(2))
    for progress in (0.0, 1.0):
        model.anneal(progress)
        model(x).square().mean().backward()
    assert module[3].training and not module[1].training
    decoded = sublora.decode(sublora.encode(model).data, module)
    assert torch.equal(decoded.predictor(x), model(x))


def test_without_running_statistics_normalization_follows_the_mode() -> None:
    module = nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4, track_running_stats=False))
    assert wrapped("uniform", module, budget=20).train().module[1].training


@pytest.mark.parametrize("cell", [nn.LSTM, nn.GRU])
def test_the_parameters_of_recurrent_networks_move(cell) -> None:
    """They keep their weights in a list as well."""
    torch.manual_seed(0)
    model = moved(wrapped("weights", cell(6, 5), budget=20))
    found, expected = model(inputs())[0], model.merge()(inputs())[0]
    torch.testing.assert_close(found, expected)
    assert (found - model.module(inputs())[0]).abs().max() > 0.01


def test_an_ordinary_network_passes_every_check() -> None:
    model = moved(wrapped("learned", network()))
    for mode in (True, False):
        model.train(mode)(inputs())
    assert model._checked_modes == {True, False}
