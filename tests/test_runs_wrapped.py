"""A wrapped module as a message: a stranger rebuilds the predictor, every choice is charged, damage is refused."""

import dataclasses
import hashlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from test_models_wrap import KINDS, Normed, inputs, moved, network, wrapped
from torch import nn

import sublora
from sublora.coding.bits import index_bits
from sublora.coding.certificate import certificate_bytes, parse_certificate
from sublora.coding.payload import Payload
from sublora.runs.message import read_message
from sublora.system.errors import UserError


def trained(kind: str = "learned", **changes) -> sublora.Wrapped:
    model = moved(wrapped(kind, **changes)).eval()
    model.anneal(1.0)
    return model


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sharing", ["shared", "per_layer"])
def test_a_stranger_rebuilds_the_predictor_bit_for_bit(kind, sharing) -> None:
    model = trained(kind, sharing=sharing)
    message = sublora.encode(model)
    outputs = model(inputs())
    for module in (network(), wrapped(kind, sharing=sharing)):
        decoded = sublora.decode(message.data, module)
        assert torch.equal(decoded.predictor(inputs()), outputs)
        assert decoded.message == message
        assert decoded.predictor.arguments == model.arguments and not decoded.predictor.training
        assert sublora.encode(decoded.predictor).data == message.data


def test_a_stranger_in_another_process_rebuilds_it_too(tmp_path: Path) -> None:
    model = trained()
    (tmp_path / "message.bin").write_bytes(sublora.encode(model).data)
    code = (
        "import sys, hashlib, torch; from torch import nn; import sublora\n"
        "torch.manual_seed(0)\n"
        "net = nn.Sequential(nn.Linear(6, 12), nn.Tanh(), nn.Linear(12, 12), nn.Tanh(), nn.Linear(12, 4))\n"
        "predictor, message = sublora.decode(open(sys.argv[1], 'rb').read(), net)\n"
        "x = torch.randn(9, 6, generator=torch.Generator().manual_seed(1))\n"
        "print(hashlib.sha256(predictor(x).detach().numpy().tobytes()).hexdigest(), message.bits)\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "message.bin")]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    assert printed[0] == hashlib.sha256(model(inputs()).detach().numpy().tobytes()).hexdigest()
    assert float(printed[1]) == sublora.encode(model).bits


def test_gates_at_their_ends_survive() -> None:
    model = trained()
    for logit in (-60.0, 60.0, 0.0):
        with torch.no_grad():
            for gate in model.subspace.gating_params.values():
                gate.fill_(logit)
        decoded = sublora.decode(sublora.encode(model).data, network())
        assert torch.equal(decoded.predictor(inputs()), model(inputs()))


def test_every_bit_that_the_data_chose_is_counted() -> None:
    model = trained()
    plain = sublora.encode(model)
    chosen = sublora.encode(model, choice=9, choices=30, extra_bits=2.5)
    assert chosen.bits == plain.bits + 5 + 2.5
    assert set(chosen.items) == {"step", "w", "gates", "choice", "extra"}
    assert sum(chosen.items.values()) == chosen.bits
    assert chosen.items["gates"] == 3 * index_bits(31) and chosen.items["step"] == 10
    read = sublora.decode(chosen.data, network()).message
    assert (read.choice, read.choices, read.bits) == (9, 30, chosen.bits)


def test_other_symbols_gates_and_choices_are_other_bytes() -> None:
    model = trained()
    seen = {sublora.encode(model, choices=4, choice=choice).data for choice in range(4)}
    with torch.no_grad():
        model.subspace.subspace_params[0] += model.step
        seen.add(sublora.encode(model, choices=4).data)
        model.subspace.gating_params["2"] += 1.0
        seen.add(sublora.encode(model, choices=4).data)
    assert len(seen) == 6


def test_what_is_no_message_yet_is_refused() -> None:
    model = moved(wrapped("learned"))
    with pytest.raises(ValueError, match="not quantized yet"):
        sublora.encode(model)
    model.quantize()
    model.anneal(0.1)
    with pytest.raises(ValueError, match="still soft"):
        sublora.encode(model)
    model.anneal(1.0)
    with pytest.raises(ValueError, match="found 3 of 3"):
        sublora.encode(model, choice=3, choices=3)
    with pytest.raises(ValueError, match="found -1.0"):
        sublora.encode(model, extra_bits=-1.0)
    with torch.no_grad():
        model.subspace.subspace_params[3] = float("nan")
    with pytest.raises(ValueError, match="finite"):
        sublora.encode(model)


def test_a_module_that_changed_after_wrapping_has_no_message() -> None:
    model = trained("uniform", module=Normed(), budget=20)
    sublora.encode(model)
    model.module.train()
    model.module(inputs())
    with pytest.raises(ValueError, match="changed since it was wrapped"):
        sublora.encode(model)


def test_another_module_or_other_arguments_are_refused() -> None:
    data = sublora.encode(trained()).data
    with pytest.raises(UserError, match="weights of this module are not those"):
        sublora.decode(data, network(seed=1))
    with pytest.raises(UserError, match="wrapped with seed 5, this module with 6"):
        sublora.decode(data, wrapped("learned", seed=6))
    with pytest.raises(UserError, match="arguments do not fit this module"):
        sublora.decode(data, nn.Linear(2, 2))
    assert "\n" not in str(pytest.raises(UserError, sublora.decode, data, nn.Linear(2, 2)).value)


def test_every_damaged_byte_and_every_cut_is_refused() -> None:
    data = sublora.encode(trained()).data
    module = network()
    for position in range(0, len(data), 23):
        damaged = bytearray(data)
        damaged[position] ^= 1 << (position % 8)
        with pytest.raises(UserError):
            sublora.decode(bytes(damaged), module)
        with pytest.raises(UserError):
            sublora.decode(data[:position], module)
    with pytest.raises(UserError, match="follow"):
        sublora.decode(data + b"\0", module)


def forged(data: bytes, payload: bytes | None = None, bits: int | None = None, **changes) -> bytes:
    """The message with another header or payload and a checksum that fits."""
    found = parse_certificate(data, Path("message"))
    arguments = found.header["arguments"] | {
        key: changes.pop(key) for key in list(changes) if key in ("rank", "budget")
    }
    header = found.header | {"arguments": arguments} | changes
    content = Payload(payload or found.payload_bytes, bits or found.payload_bits, {})
    return certificate_bytes(header, content)


@pytest.mark.parametrize(
    "changes",
    [
        {"kind": "run"},
        {"choices": 0},
        {"choices": 4},
        {"extra_bits": -1.0},
        {"surplus": 1},
        {"rank": 10**9},
        {"budget": 10**12},
        {"budget": 29},
        {"origin_sha256": "0" * 64},
        {"projection_sha256": "0" * 64},
        {"payload": b"\xff" * 40, "bits": 320},
        {"bits": 8},
    ],
    ids=str,
)
def test_forged_headers_and_payloads_are_refused(changes) -> None:
    data = sublora.encode(trained()).data
    assert forged(data) == data
    with pytest.raises(UserError) as error:
        sublora.decode(forged(data, **changes), network())
    assert "\n" not in str(error.value)


def test_a_message_is_no_run_s_certificate(tmp_path: Path) -> None:
    path = tmp_path / "certificate.bin"
    path.write_bytes(sublora.encode(trained()).data)
    with pytest.raises(UserError, match="header"):
        read_message(path)


def test_the_same_module_and_seed_give_the_same_bytes() -> None:
    one, two = sublora.encode(trained()), sublora.encode(trained())
    assert one == two and dataclasses.asdict(one) == dataclasses.asdict(two)
    assert len(one.data) < 1200 and np.isfinite(one.bits)


# The same weights in another architecture


def llama(**changes) -> nn.Module:
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    rope = {"rope_type": "default", "rope_theta": changes.pop("rope_theta", 10000.0)}
    values = {"vocab_size": 64, "num_key_value_heads": 4, "bos_token_id": None, "eos_token_id": None} | sizes | changes
    torch.manual_seed(0)
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(rope_parameters=rope, **values)).eval()


def message_of(module: nn.Module, *targets: str) -> bytes:
    model = sublora.wrap(module, targets, rank=2, budget=20, seed=0)
    with torch.no_grad():
        model.subspace.subspace_params.normal_(0, 0.2, generator=torch.Generator().manual_seed(1))
    model.quantize()
    return sublora.encode(model).data


@pytest.mark.parametrize(
    "changes",
    [
        {"rope_theta": 1e6},
        {"rms_norm_eps": 1e-2},
        {"num_attention_heads": 8, "num_key_value_heads": 8},
        {"hidden_act": "relu"},
    ],
    ids=str,
)
def test_the_same_weights_with_another_configuration_are_refused(changes) -> None:
    data = message_of(llama(), "q_proj", "v_proj")
    with pytest.raises(UserError, match="computes something else with them"):
        sublora.decode(data, llama(**changes))


def test_what_a_configuration_says_of_training_and_files_is_no_difference() -> None:
    data = message_of(llama(), "q_proj", "v_proj")
    other = llama(attention_dropout=0.3, use_cache=False, name_or_path="elsewhere")
    sublora.decode(data, other)


class Attention(nn.Module):
    """Heads, a scale and a mask that no state dict holds."""

    def __init__(self, heads: int = 2, *, scale: float = 0.5, theta: float = 10.0, window: int = 3) -> None:
        super().__init__()
        self.heads, self.scale, self.calls = heads, scale, None
        self.qkv, self.out = nn.Linear(8, 24), nn.Linear(8, 8)
        self.norm, self.drop = nn.LayerNorm(8), nn.Dropout(0.1)
        position = torch.arange(6)
        self.register_buffer("angles", theta ** -(torch.arange(4) / 4), persistent=False)
        self.register_buffer("seen", (position[:, None] - position).abs() < window, persistent=False)
        self.register_buffer("mask", torch.zeros(6, 6).masked_fill(~self.seen, -torch.inf), persistent=False)

    def forward(self, x):
        q, k, v = (each.view(len(x), 6, self.heads, -1).transpose(1, 2) for each in self.qkv(x).chunk(3, dim=-1))
        weights = (self.scale * q @ k.transpose(2, 3) + self.mask).softmax(-1)
        return self.norm(self.out((weights @ v).transpose(1, 2).reshape(len(x), 6, 8)) + self.angles.sum())


def attention(**changes) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), Attention(**changes)).eval()


@pytest.mark.parametrize("changes", [{"heads": 4}, {"scale": 0.25}, {"theta": 11.0}, {"window": 4}], ids=str)
def test_attributes_and_unsaved_buffers_belong_to_a_module(changes) -> None:
    data = message_of(attention(), "qkv", "out")
    sublora.decode(data, attention())
    with pytest.raises(UserError, match="computes something else with them"):
        sublora.decode(data, attention(**changes))


@pytest.mark.parametrize("change", ["eps", "class"])
def test_settings_of_torch_s_own_modules_belong_to_it(change) -> None:
    data = message_of(attention(), "qkv", "out")
    other = attention()
    if change == "eps":
        other[1].norm.eps = 1e-2
    else:
        other[0].__class__ = type("Doubled", (nn.Linear,), {"forward": lambda self, x: 2 * nn.Linear.forward(self, x)})
    with pytest.raises(UserError, match="computes something else with them"):
        sublora.decode(data, other)


def test_the_last_bits_of_a_buffer_are_no_difference() -> None:
    """inv_freq = theta^(-2i/d) is computed anew on every machine, whose powers differ in the last bit."""
    data = message_of(attention(), "qkv", "out")
    other = attention()
    other[1].angles = torch.nextafter(other[1].angles, torch.tensor(9.0))
    other[1].drop.p = 0.5
    assert not torch.equal(other[1].angles, attention()[1].angles)
    sublora.decode(data, other)


def test_a_cache_that_a_forward_pass_fills_is_no_change() -> None:
    """The module is described when it is wrapped, before it computes anything."""
    module = attention()
    model = sublora.wrap(module, ["qkv"], rank=2, budget=20, seed=0)
    with torch.no_grad():
        model.subspace.subspace_params.normal_(0, 0.2, generator=torch.Generator().manual_seed(1))
    module[1].angles = module[1].angles.repeat(2)
    model.quantize()
    sublora.decode(sublora.encode(model).data, attention())


class Plain(nn.Module):
    """A network whose activation stands in its code alone."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.drop = nn.Linear(6, 12), nn.Linear(12, 4), nn.Dropout(0.5)

    def forward(self, x, *, scale: float = 1.0):
        return {"logits": self.second(self.drop(self.activation(self.first(x)))) * scale, "ids": torch.arange(3)}

    def activation(self, x):
        return torch.tanh(x)


def plain(activation=torch.tanh) -> nn.Module:
    torch.manual_seed(0)
    module = Plain().train()
    module.__class__ = type("Plain", (Plain,), {"activation": lambda self, x: activation(x)})
    return module


@pytest.mark.parametrize(
    "probe", [inputs(), (inputs(),), {"x": inputs(), "scale": 2.0}], ids=["tensor", "tuple", "dict"]
)
def test_a_probe_sees_what_only_the_code_says(probe) -> None:
    model = sublora.wrap(plain(), ["first", "second"], rank=2, budget=20, seed=0)
    with torch.no_grad():
        model.subspace.subspace_params.normal_(0, 0.2, generator=torch.Generator().manual_seed(1))
    model.quantize()
    without, data = sublora.encode(model).data, sublora.encode(model, probe=probe).data
    assert model.module.training and model.module.drop.training
    sublora.decode(without, plain(torch.relu))  # nothing tells
    sublora.decode(data, plain(), probe=probe)
    with pytest.raises(UserError, match="other outputs for the probe"):
        sublora.decode(data, plain(torch.relu), probe=probe)
    with pytest.raises(UserError, match="encoded with a probe; give decode the same probe"):
        sublora.decode(data, plain())
    with pytest.raises(UserError, match="encoded without a probe; give decode no probe"):
        sublora.decode(without, plain(), probe=probe)
    with pytest.raises(ValueError, match="no finite numbers"):
        sublora.encode(model, probe=torch.full((2, 6), torch.nan))
