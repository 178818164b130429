"""The frozen network against Hugging Face's GPT-2 and against its own definition."""

import numpy as np
import pytest
import torch

from sublora import config
from sublora.models import gpt
from sublora.models.adapted import AdaptedModel, LoraNetwork
from sublora.models.gpt import GPT
from sublora.models.lora import Adapters, initial_theta
from sublora.models.spaces import lora_name, lora_space
from sublora.models.weights import Base, random_weights, weight_shapes, weights_sha256
from sublora.subspace.parameters import ParameterSpace

VOCABULARY = 101


def random_everything(model: config.Model, generator: np.random.Generator) -> dict[str, np.ndarray]:
    """Weights with no special values: biases and norms too are random."""
    return {
        name: (0.3 * generator.standard_normal(shape)).astype(np.float32)
        for name, shape in weight_shapes(model, VOCABULARY).items()
    }


def plain_adapters(settings: config.Settings, theta: torch.Tensor | None = None) -> Adapters:
    space = lora_space(settings.model, settings.lora, VOCABULARY)
    theta = torch.from_numpy(initial_theta(space, 1, "zero_b")) if theta is None else theta
    return Adapters(space, theta, scale=4.0, dtype=theta.dtype)


def mean_loss(model: GPT, tokens: torch.Tensor, adapters: Adapters) -> torch.Tensor:
    """Cross-entropy of each next token, nats."""
    adapted = AdaptedModel(model, adapters)
    return adapted.cross_entropy(adapted.hidden(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())


def logits_of(model: GPT, tokens: torch.Tensor, adapters: Adapters) -> torch.Tensor:
    adapted = AdaptedModel(model, adapters)
    return adapted.differentiable_logits(adapted.hidden(tokens))


def product(space: ParameterSpace, theta: torch.Tensor, group: str, target: str) -> torch.Tensor:
    """4 B A, from the definition of theta alone."""
    named = {p.name: theta[p.start : p.stop].view(p.shape) for p in space.parameters}
    return 4.0 * named[lora_name(group, target, "B")] @ named[lora_name(group, target, "A")]


def test_start_is_the_base_model_whatever_b_is(tiny_settings):
    """Not only nearly: the adapter is exactly zero at the start, so all arms and both inits begin alike."""
    space = lora_space(tiny_settings.model, tiny_settings.lora, VOCABULARY)
    model = GPT(tiny_settings.model, VOCABULARY)
    model.load(random_everything(tiny_settings.model, np.random.default_rng(0)))
    tokens = torch.from_numpy(np.random.default_rng(1).integers(0, VOCABULARY, (3, 17)))[:, :16]
    outcomes = []
    for init in ("zero_b", "both_random"):
        start = torch.from_numpy(initial_theta(space, 1, init))
        theta = start.clone().requires_grad_()
        adapters = Adapters(space, theta, scale=4.0, dtype=torch.float32, origin_D=start)
        outcomes.append(logits_of(model, tokens, adapters).detach())
        mean_loss(model, tokens, adapters).backward()
        for parameter in space.parameters:
            gradient = theta.grad[parameter.start : parameter.stop]
            vanishes = init == "zero_b" and parameter.role == "A"
            assert bool((gradient == 0.0).all()) if vanishes else float(gradient.abs().max()) > 0.0
    assert torch.equal(*outcomes)


def test_initial_product_is_subtracted_from_the_frozen_weight(tiny_settings):
    """Against ordinary adapters on a network whose query, value and head weights have lost scale B0 A0."""
    space = lora_space(tiny_settings.model, tiny_settings.lora, VOCABULARY)
    generator = torch.Generator().manual_seed(5)
    start = torch.from_numpy(initial_theta(space, 1, "both_random")).double()
    theta = start + 0.1 * torch.randn(space.size, generator=generator, dtype=torch.float64)
    weights = random_everything(tiny_settings.model, np.random.default_rng(0))
    model, reduced = (GPT(tiny_settings.model, VOCABULARY, dtype=torch.float64) for _ in range(2))
    model.load(weights)
    reduced.load(weights)
    plain = Adapters(space, theta, scale=4.0, dtype=torch.float64)
    width = tiny_settings.model.n_embd
    for group in space.groups[:-1]:
        for target, first in (("query", 0), ("value", 2 * width)):
            block = reduced.weight(f"h.{group}.attn.c_attn.weight")
            block[first : first + width] -= product(space, start, group, target)
    tokens = torch.from_numpy(np.random.default_rng(1).integers(0, VOCABULARY, (3, 16)))
    hidden = reduced.hidden(tokens, plain)
    # The embedding that the head is tied to keeps its weights.
    expected = (
        AdaptedModel(reduced, plain).differentiable_logits(hidden) - hidden @ product(space, start, "head", "head").T
    )
    adapters = Adapters(space, theta, scale=4.0, dtype=torch.float64, origin_D=start)
    torch.testing.assert_close(logits_of(model, tokens, adapters), expected)


def test_logits_equal_hugging_face(tiny_settings):
    transformers = pytest.importorskip("transformers")
    shape = tiny_settings.model
    weights = random_everything(shape, np.random.default_rng(0))
    reference = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            vocab_size=VOCABULARY,
            n_positions=shape.context_length,
            n_embd=shape.n_embd,
            n_layer=shape.n_layer,
            n_head=shape.n_head,
        )
    ).eval()
    state = {
        "transformer." + name: torch.from_numpy(value.T if value.ndim == 2 and not name.startswith("w") else value)
        for name, value in weights.items()
    }
    missing, unexpected = reference.load_state_dict(state, strict=False)
    assert set(missing) <= {"lm_head.weight"} and not unexpected
    reference.tie_weights()

    model = GPT(shape, VOCABULARY)
    model.load(weights)
    tokens = torch.from_numpy(np.random.default_rng(1).integers(0, VOCABULARY, (3, shape.context_length)))
    adapters = plain_adapters(tiny_settings)
    logits = logits_of(model, tokens, adapters)
    with torch.no_grad():
        expected = reference(tokens).logits
    assert logits.shape == (3, shape.context_length, VOCABULARY)
    torch.testing.assert_close(logits, expected, rtol=2e-5, atol=2e-5)
    loss = mean_loss(model, tokens, adapters)
    torch.testing.assert_close(loss, reference(tokens, labels=tokens).loss.detach(), rtol=1e-5, atol=1e-5)


def test_adapters_add_scaled_product_to_the_frozen_weights(tiny_settings):
    """Merging W + (alpha / r) B A into query, value and head gives the same logits as the adapters."""
    shape = tiny_settings.model
    weights = random_everything(shape, np.random.default_rng(0))
    model = GPT(shape, VOCABULARY, dtype=torch.float64)
    model.load(weights)
    space = lora_space(shape, tiny_settings.lora, VOCABULARY)
    theta = torch.from_numpy(np.random.default_rng(2).standard_normal(space.size)) * 0.3
    adapters = plain_adapters(tiny_settings, theta)
    tokens = torch.arange(12)[None]
    adapted = logits_of(model, tokens, adapters)

    merged = GPT(shape, VOCABULARY, dtype=torch.float64)
    merged.load(weights)
    width = shape.n_embd
    for layer in range(shape.n_layer):
        attention = merged.weight(f"h.{layer}.attn.c_attn.weight")
        attention[:width] += product(space, theta, str(layer), "query")
        attention[2 * width :] += product(space, theta, str(layer), "value")
    nothing = plain_adapters(tiny_settings, torch.zeros_like(theta))
    hidden = merged.hidden(tokens, nothing)
    merged_logits = hidden @ (merged.weight("wte.weight") + product(space, theta, "head", "head")).T
    torch.testing.assert_close(adapted, merged_logits, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("targets", [["query", "value", "head"], ["value"]])
def test_merging_the_adapters_changes_neither_values_nor_gradients(tiny_settings, monkeypatch, targets):
    lora = tiny_settings.lora.model_copy(update={"targets": targets})
    space = lora_space(tiny_settings.model, lora, VOCABULARY)
    model = GPT(tiny_settings.model, VOCABULARY, dtype=torch.float64)
    model.load(random_everything(tiny_settings.model, np.random.default_rng(0)))
    tokens = torch.from_numpy(np.random.default_rng(1).integers(0, VOCABULARY, (3, 16)))
    theta = torch.randn(space.size, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    outcomes = []
    for ratio in (0, 10**6):
        monkeypatch.setattr(gpt, "MERGED_WIDTH_PER_RANK", ratio)
        leaf = theta.clone().requires_grad_()
        hidden = model.hidden(tokens, Adapters(space, leaf, scale=4.0, dtype=torch.float64))
        hidden.square().sum().backward()
        outcomes.append((hidden.detach(), leaf.grad))
    with torch.no_grad():
        unwatched = model.hidden(tokens, Adapters(space, theta, scale=4.0, dtype=torch.float64))
    torch.testing.assert_close(outcomes[0], outcomes[1], rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(unwatched, outcomes[0][0], rtol=1e-10, atol=1e-10)
    assert not torch.equal(outcomes[0][0], outcomes[1][0])  # two ways were taken


def test_zero_b_reproduces_the_base_model_exactly(tiny_settings):
    """At LoRA's initialization (B = 0) every arm computes the frozen network bit for bit."""
    model = GPT(tiny_settings.model, VOCABULARY)
    model.load(random_weights(tiny_settings.model, VOCABULARY, 3))
    tokens = torch.arange(16)[None]
    at_start, nothing = (plain_adapters(tiny_settings, t) for t in (None, torch.zeros(build_size(tiny_settings))))
    assert torch.equal(logits_of(model, tokens, at_start), logits_of(model, tokens, nothing))


def build_size(settings: config.Settings) -> int:
    return lora_space(settings.model, settings.lora, VOCABULARY).size


def test_weights_depend_on_the_seed_alone(tiny_settings):
    first, again, other = (random_weights(tiny_settings.model, VOCABULARY, seed) for seed in (5, 5, 6))
    assert weights_sha256(first) == weights_sha256(again) != weights_sha256(other)
    assert first["wte.weight"].std() == pytest.approx(tiny_settings.model.init_std, rel=0.1)
    negative = {name: np.where(value == 0.0, np.float32(-0.0), value) for name, value in first.items()}
    assert weights_sha256(negative) == weights_sha256(first), "one spelling of zero"
    residual = first["h.0.mlp.c_proj.weight"].std() * 2.0  # sqrt(2 x 2 layers)
    assert residual == pytest.approx(tiny_settings.model.init_std, rel=0.1)


def test_position_embeddings_that_no_document_reaches_are_no_part_of_what_is_seen(tiny_settings):
    weights = random_weights(tiny_settings.model, VOCABULARY, 5)
    shorter = weights | {"wpe.weight": weights["wpe.weight"][:12]}
    whole, cut = Base(weights, weights_sha256(weights)), Base(shorter, weights_sha256(shorter))
    assert whole.sha256 != cut.sha256
    assert whole.seen_sha256(12) == cut.seen_sha256(12) == cut.sha256
    assert whole.seen_sha256(13) != cut.seen_sha256(13)
    assert whole.seen_sha256(99) == whole.sha256


def test_context_overflow_is_refused(tiny_settings):
    model = GPT(tiny_settings.model, VOCABULARY)
    with pytest.raises(ValueError, match="17 positions exceed the context of 16"):
        AdaptedModel(model, plain_adapters(tiny_settings)).hidden(torch.zeros(1, 17, dtype=torch.long))


@pytest.mark.parametrize("init", ["zero_b", "both_random"])
def test_a_model_is_a_view_of_theta_and_dropout_acts_in_training_alone(tiny_settings, init):
    """`LoraNetwork.at` makes independent models: the second neither changes the first nor the network."""
    space = lora_space(tiny_settings.model, tiny_settings.lora, VOCABULARY)
    base = GPT(tiny_settings.model, VOCABULARY)
    base.load(random_everything(tiny_settings.model, np.random.default_rng(0)))
    start = torch.from_numpy(initial_theta(space, 1, init))
    origin = start if init == "both_random" else None
    network = LoraNetwork(base, space, base_sha256="", scale=4.0, dropout=0.5, origin_D=origin)
    tokens = torch.from_numpy(np.random.default_rng(1).integers(0, VOCABULARY, (3, 16)))
    theta = start + 0.1 * torch.randn(space.size, generator=torch.Generator().manual_seed(5))
    first = network.at(theta)
    before = first.hidden(tokens)
    assert not torch.equal(network.at(start).hidden(tokens), before)
    assert torch.equal(first.hidden(tokens), before)
    assert not torch.equal(first.hidden(tokens, training=True), before)
    assert (network.vocab_size, network.context_length) == (first.vocab_size, first.context_length) == (VOCABULARY, 16)
