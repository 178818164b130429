"""The frozen network against Hugging Face's GPT-2 and against its own definition."""

import numpy as np
import pytest
import torch

from sublora import config
from sublora.nn import gpt
from sublora.nn.gpt import FrozenGPT, random_weights, weight_shapes, weights_sha256
from sublora.nn.layout import build_layout
from sublora.nn.lora import Adapters, initial_theta

VOCABULARY = 101


def random_everything(model: config.Model, generator: np.random.Generator) -> dict[str, np.ndarray]:
    """Weights with no special values: biases and norms too are random."""
    return {
        name: (0.3 * generator.standard_normal(shape)).astype(np.float32)
        for name, shape in weight_shapes(model, VOCABULARY).items()
    }


def plain_adapters(settings: config.Settings, theta: torch.Tensor | None = None) -> Adapters:
    layout = build_layout(settings.model, settings.lora, VOCABULARY)
    theta = torch.from_numpy(initial_theta(layout, 1, "zero_b")) if theta is None else theta
    return Adapters(layout, theta, scale=4.0, dtype=theta.dtype)


def test_start_is_the_base_model_whatever_b_is(tiny_settings):
    """Not only nearly: the adapter is exactly zero at the start, so all arms and both inits begin alike."""
    layout = build_layout(tiny_settings.model, tiny_settings.lora, VOCABULARY)
    model = FrozenGPT(tiny_settings.model, VOCABULARY)
    model.load(random_everything(tiny_settings.model, np.random.default_rng(0)))
    tokens = torch.from_numpy(np.random.default_rng(1).integers(0, VOCABULARY, (3, 17)))[:, :16]
    outcomes = []
    for init in ("zero_b", "both_random"):
        start = torch.from_numpy(initial_theta(layout, 1, init))
        theta = start.clone().requires_grad_()
        adapters = Adapters(layout, theta, scale=4.0, dtype=torch.float32, origin_D=start)
        outcomes.append(model.logits(model.hidden(tokens, adapters), adapters).detach())
        model.loss(tokens[:, :-1], tokens[:, 1:], adapters).backward()
        for entry in layout.entries:
            gradient = theta.grad[entry.start : entry.stop]
            vanishes = init == "zero_b" and entry.factor == "A"
            assert bool((gradient == 0.0).all()) if vanishes else float(gradient.abs().max()) > 0.0
    assert torch.equal(*outcomes)


def test_initial_product_is_subtracted_from_the_frozen_weight(tiny_settings):
    """Against ordinary adapters on a network whose query, value and head weights have lost scale B0 A0."""
    layout = build_layout(tiny_settings.model, tiny_settings.lora, VOCABULARY)
    generator = torch.Generator().manual_seed(5)
    start = torch.from_numpy(initial_theta(layout, 1, "both_random")).double()
    theta = start + 0.1 * torch.randn(layout.size, generator=generator, dtype=torch.float64)
    weights = random_everything(tiny_settings.model, np.random.default_rng(0))
    model, reduced = (FrozenGPT(tiny_settings.model, VOCABULARY, dtype=torch.float64) for _ in range(2))
    model.load(weights)
    reduced.load(weights)
    plain = Adapters(layout, theta, scale=4.0, dtype=torch.float64)
    initial = Adapters(layout, start, scale=4.0, dtype=torch.float64)
    width = tiny_settings.model.n_embd
    for group in layout.groups[:-1]:
        for target, first in (("query", 0), ("value", 2 * width)):
            product = 4.0 * initial.matrix(group, target, "B") @ initial.matrix(group, target, "A")
            reduced.weight(f"h.{group}.attn.c_attn.weight")[first : first + width] -= product
    tokens = torch.from_numpy(np.random.default_rng(1).integers(0, VOCABULARY, (3, 16)))
    hidden = reduced.hidden(tokens, plain)
    # The embedding that the head is tied to keeps its weights.
    head = 4.0 * initial.matrix("head", "head", "B") @ initial.matrix("head", "head", "A")
    expected = reduced.logits(hidden, plain) - hidden @ head.T
    adapters = Adapters(layout, theta, scale=4.0, dtype=torch.float64, origin_D=start)
    torch.testing.assert_close(model.logits(model.hidden(tokens, adapters), adapters), expected)


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

    model = FrozenGPT(shape, VOCABULARY)
    model.load(weights)
    tokens = torch.from_numpy(np.random.default_rng(1).integers(0, VOCABULARY, (3, shape.context_length)))
    adapters = plain_adapters(tiny_settings)
    logits = model.logits(model.hidden(tokens, adapters), adapters)
    with torch.no_grad():
        expected = reference(tokens).logits
    assert logits.shape == (3, shape.context_length, VOCABULARY)
    torch.testing.assert_close(logits, expected, rtol=2e-5, atol=2e-5)
    loss = model.loss(tokens[:, :-1], tokens[:, 1:], adapters)
    torch.testing.assert_close(loss, reference(tokens, labels=tokens).loss.detach(), rtol=1e-5, atol=1e-5)


def test_adapters_add_scaled_product_to_the_frozen_weights(tiny_settings):
    """Merging W + (alpha / r) B A into query, value and head gives the same logits as the adapters."""
    shape = tiny_settings.model
    weights = random_everything(shape, np.random.default_rng(0))
    model = FrozenGPT(shape, VOCABULARY, dtype=torch.float64)
    model.load(weights)
    layout = build_layout(shape, tiny_settings.lora, VOCABULARY)
    theta = torch.from_numpy(np.random.default_rng(2).standard_normal(layout.size)) * 0.3
    adapters = plain_adapters(tiny_settings, theta)
    tokens = torch.arange(12)[None]
    adapted = model.logits(model.hidden(tokens, adapters), adapters)

    def product(group: str, target: str) -> torch.Tensor:
        return 4.0 * adapters.matrix(group, target, "B") @ adapters.matrix(group, target, "A")

    merged = FrozenGPT(shape, VOCABULARY, dtype=torch.float64)
    merged.load(weights)
    width = shape.n_embd
    for layer in range(shape.n_layer):
        attention = merged.weight(f"h.{layer}.attn.c_attn.weight")
        attention[:width] += product(str(layer), "query")
        attention[2 * width :] += product(str(layer), "value")
    nothing = plain_adapters(tiny_settings, torch.zeros_like(theta))
    hidden = merged.hidden(tokens, nothing)
    merged_logits = hidden @ (merged.weight("wte.weight") + product("head", "head")).T
    torch.testing.assert_close(adapted, merged_logits, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("targets", [["query", "value", "head"], ["value"]])
def test_merging_the_adapters_changes_neither_values_nor_gradients(tiny_settings, monkeypatch, targets):
    lora = tiny_settings.lora.model_copy(update={"targets": targets})
    layout = build_layout(tiny_settings.model, lora, VOCABULARY)
    model = FrozenGPT(tiny_settings.model, VOCABULARY, dtype=torch.float64)
    model.load(random_everything(tiny_settings.model, np.random.default_rng(0)))
    tokens = torch.from_numpy(np.random.default_rng(1).integers(0, VOCABULARY, (3, 16)))
    theta = torch.randn(layout.size, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    outcomes = []
    for ratio in (0, 10**6):
        monkeypatch.setattr(gpt, "MERGED_WIDTH_PER_RANK", ratio)
        leaf = theta.clone().requires_grad_()
        hidden = model.hidden(tokens, Adapters(layout, leaf, scale=4.0, dtype=torch.float64))
        hidden.square().sum().backward()
        outcomes.append((hidden.detach(), leaf.grad))
    with torch.no_grad():
        unwatched = model.hidden(tokens, Adapters(layout, theta, scale=4.0, dtype=torch.float64))
    torch.testing.assert_close(outcomes[0], outcomes[1], rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(unwatched, outcomes[0][0], rtol=1e-10, atol=1e-10)
    assert not torch.equal(outcomes[0][0], outcomes[1][0])  # two ways were taken


def test_zero_b_reproduces_the_base_model_exactly(tiny_settings):
    """At LoRA's initialization (B = 0) every arm computes the frozen network bit for bit."""
    model = FrozenGPT(tiny_settings.model, VOCABULARY)
    model.load(random_weights(tiny_settings.model, VOCABULARY, 3))
    tokens = torch.arange(16)[None]
    at_start, nothing = (plain_adapters(tiny_settings, t) for t in (None, torch.zeros(build_size(tiny_settings))))
    assert torch.equal(
        model.logits(model.hidden(tokens, at_start), at_start), model.logits(model.hidden(tokens, nothing), nothing)
    )


def build_size(settings: config.Settings) -> int:
    return build_layout(settings.model, settings.lora, VOCABULARY).size


def test_weights_depend_on_the_seed_alone(tiny_settings):
    first, again, other = (random_weights(tiny_settings.model, VOCABULARY, seed) for seed in (5, 5, 6))
    assert weights_sha256(first) == weights_sha256(again) != weights_sha256(other)
    assert first["wte.weight"].std() == pytest.approx(tiny_settings.model.init_std, rel=0.1)
    residual = first["h.0.mlp.c_proj.weight"].std() * 2.0  # sqrt(2 x 2 layers)
    assert residual == pytest.approx(tiny_settings.model.init_std, rel=0.1)


def test_base_weights_are_the_same_on_every_machine(tiny_settings):
    """Golden digest: a change means that every trained run loses its base, so the train numerics version rises."""
    weights = random_weights(tiny_settings.model, VOCABULARY, 42)
    assert weights_sha256(weights) == "c35725a2d716d9a8916c03d43d02022f3197c18d2e45f554bab5fc3cb597acad"


def test_context_overflow_is_refused(tiny_settings):
    model = FrozenGPT(tiny_settings.model, VOCABULARY)
    with pytest.raises(ValueError, match="17 positions exceed the context of 16"):
        model.hidden(torch.zeros(1, 17, dtype=torch.long), plain_adapters(tiny_settings))
