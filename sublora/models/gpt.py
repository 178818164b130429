"""GPT-2 with LoRA adapters that are inputs, not parameters.

Shape legend: N sequences, T positions, C width, H heads, V vocabulary, R rank, K scored positions.
"""

import copy
import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sublora import config
from sublora.models.head import compiled
from sublora.models.lora import Adapters, Pair, down_projection
from sublora.models.weights import LAYER_NORM_EPSILON, Weights, weight_shapes

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
"""The types that a network computes in, by their names in settings."""
MERGED_WIDTH_PER_RANK = 6
"""Up to this ratio of width to rank, the C x C gradient of W + up down takes fewer multiplications than it saves."""
_SLOPE = 2.0 * math.sqrt(2.0 / math.pi)
_CUBIC = 0.044715 * _SLOPE
BLOCK_PARTS = ("ln_1", "attn.c_attn", "attn.c_proj", "ln_2", "mlp.c_fc", "mlp.c_proj")


class GPT(nn.Module):
    """GPT-2 (pre-norm, learned positions, tanh GELU, head tied to the token embedding).

    Weights are buffers, named as in Hugging Face's GPT2LMHeadModel but stored output x input. The head has exactly V
    rows, so no probability goes to padding ids.
    """

    def __init__(
        self,
        model: config.Model,
        vocab_size: int,
        *,
        dtype: torch.dtype = torch.float32,
        use_compiler: bool = False,
    ) -> None:
        """Allocate the weights, all zero.

        `use_compiler`: run layers and head through torch.compile (its half a minute pays off within minutes of work).
        """
        super().__init__()
        self.shape, self.vocab_size, self.dtype, self.use_compiler = model, vocab_size, dtype, use_compiler
        for name, shape in weight_shapes(model, vocab_size).items():
            self.register_buffer(_buffer_name(name), torch.zeros(shape, dtype=dtype), persistent=False)

    @property
    def context_length(self) -> int:
        return self.shape.context_length

    @property
    def head_VC(self) -> Tensor:
        return self.weight("wte.weight")

    def weight(self, name: str) -> Tensor:
        """Return a weight by its name in GPT2LMHeadModel."""
        return getattr(self, _buffer_name(name))

    @torch.no_grad()
    def load(self, weights: Weights) -> None:
        """Copy all weights; ValueError if a name or a shape differs from `weight_shapes`."""
        expected = weight_shapes(self.shape, self.vocab_size)
        if set(weights) != set(expected):
            raise ValueError(f"weights named {sorted(set(weights) ^ set(expected))} are missing or unknown")
        for name, value in weights.items():
            if tuple(value.shape) != expected[name]:
                raise ValueError(f"weight {name} has shape {tuple(value.shape)}, expected {expected[name]}")
            self.weight(name).copy_(torch.from_numpy(value))

    def place(self, weights: Mapping[str, Tensor]) -> None:
        """Use these tensors from now on, not copies of them, so that gradients reach them."""
        for name, value in weights.items():
            setattr(self, _buffer_name(name), value)

    def with_weights(self, weights: Mapping[str, Tensor]) -> "GPT":
        """Return the same network on these tensors; this one keeps its own."""
        other = copy.copy(self)
        other._buffers = dict(self._buffers)
        other.place(weights)
        return other

    def hidden(self, tokens_NT: Tensor, adapters: Adapters | None = None, *, dropout: float = 0.0) -> Tensor:
        """Return the final hidden states (N x T x C) for token ids; `dropout` acts on the input of every adapter."""
        # One function serves every layer, with the weights as arguments, so it is compiled once.
        block = compiled(_block, self.use_compiler)
        x_NTC = F.embedding(tokens_NT, self.weight("wte.weight")) + self.weight("wpe.weight")[: tokens_NT.shape[1]]
        for layer in range(self.shape.n_layer):
            pairs = _block_pairs(adapters, str(layer))
            x_NTC = block(x_NTC, self._block_weights(layer), pairs, self.shape.n_head, dropout)
        return _norm(x_NTC, (self.weight("ln_f.weight"), self.weight("ln_f.bias")))

    def target_weight(self, group: str, target: str) -> Tensor:
        """Return the weight (outputs x inputs) of an adapted linear map: a layer's, or the head's."""
        if target == config.HEAD_TARGET:
            return self.head_VC
        if target in ("query", "value"):
            query, _, value = self.weight(f"h.{group}.attn.c_attn.weight").chunk(3)
            return query if target == "query" else value
        return self.weight(f"h.{group}.mlp.{'c_fc' if target == 'mlp_in' else 'c_proj'}.weight")

    def _block_weights(self, layer: int) -> dict[str, tuple[Tensor, Tensor]]:
        """Return weight and bias of a layer's norms and linear maps by name."""
        return {
            name: (self.weight(f"h.{layer}.{name}.weight"), self.weight(f"h.{layer}.{name}.bias"))
            for name in BLOCK_PARTS
        }


def _pair(adapters: Adapters | None, group: str, target: str) -> Pair | None:
    return None if adapters is None else adapters.pair(group, target)


def _block_pairs(adapters: Adapters | None, group: str) -> dict[str, Pair]:
    """Return the adapters of a layer by their targets."""
    pairs = {target: _pair(adapters, group, target) for target in config.BLOCK_TARGETS}
    return {target: pair for target, pair in pairs.items() if pair is not None}


def _block(
    x_NTC: Tensor,
    weights: dict[str, tuple[Tensor, Tensor]],
    pairs: dict[str, Pair],
    n_head: int,
    dropout: float,
) -> Tensor:
    """Return the output of one layer: attention, then the MLP, each added to its input."""
    n, t, c = x_NTC.shape
    query_pair, value_pair = pairs.get("query"), pairs.get("value")
    # Queries, keys and values are one product; their adapters are merged into its weight or added to its output.
    normed = _norm(x_NTC, weights["ln_1"])
    weight, bias = weights["attn.c_attn"]
    if _merging_pays(query_pair, value_pair, dropout):
        weight = _merged(weight, query_pair, value_pair)
        query_pair = value_pair = None
    query, key, value = F.linear(normed, weight, bias).split(c, dim=2)
    if query_pair is not None:
        query = query + _delta(normed, query_pair, dropout)
    if value_pair is not None:
        value = value + _delta(normed, value_pair, dropout)
    # Attention, head by head.
    query, key, value = (part.view(n, t, n_head, -1).transpose(1, 2) for part in (query, key, value))
    mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True)
    x_NTC = x_NTC + F.linear(mixed.transpose(1, 2).reshape(n, t, c), *weights["attn.c_proj"])
    # The MLP.
    hidden = gelu_tanh(_adapted(_norm(x_NTC, weights["ln_2"]), weights["mlp.c_fc"], pairs.get("mlp_in"), dropout))
    return x_NTC + _adapted(hidden, weights["mlp.c_proj"], pairs.get("mlp_out"), dropout)


def _adapted(x: Tensor, weight_and_bias: tuple[Tensor, Tensor], pair: Pair | None, dropout: float) -> Tensor:
    """Return the output of a linear map plus that of its adapter."""
    output = F.linear(x, *weight_and_bias)
    return output if pair is None else output + _delta(x, pair, dropout)


def _merging_pays(query_pair: Pair | None, value_pair: Pair | None, dropout: float) -> bool:
    """Return whether one product with W + up down is faster than the product with W and the adapters' own four.

    Without gradients it always is; with them only in narrow networks, because the gradient of W + up down is a C x C
    product over all positions. It is not used in bfloat16, where W + up down has fewer correct bits than W x and
    up down x apart.
    """
    down_RC = next((pair[0] for pair in (query_pair, value_pair) if pair is not None), None)
    if down_RC is None or dropout or down_RC.dtype == torch.bfloat16:
        return False
    rank, width = down_RC.shape
    return not torch.is_grad_enabled() or width <= MERGED_WIDTH_PER_RANK * rank


def _merged(weight: Tensor, query_pair: Pair | None, value_pair: Pair | None) -> Tensor:
    """Return W + up down (3C x C)."""
    query, key, value = weight.chunk(3)
    if query_pair is not None:
        query = torch.addmm(query, query_pair[1], query_pair[0])
    if value_pair is not None:
        value = torch.addmm(value, value_pair[1], value_pair[0])
    return torch.cat([query, key, value])


def _delta(x: Tensor, pair: Pair, dropout: float) -> Tensor:
    """Return what an adapter adds: B (scale A) x."""
    return F.linear(down_projection(x, pair, dropout), pair[1])


def _norm(x: Tensor, weight_and_bias: tuple[Tensor, Tensor]) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], *weight_and_bias, LAYER_NORM_EPSILON)


def _buffer_name(name: str) -> str:
    return name.replace(".", "__")


def gelu_tanh(x: Tensor) -> Tensor:
    """Return x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))) / 2, equal to x sigmoid(_SLOPE x + _CUBIC x^3).

    In float32 on a CPU the second form is used, since PyTorch's tanh kernel takes almost twice as long there. In
    bfloat16 the kernel is more exact, since it rounds once.
    """
    if x.device.type != "cpu" or x.dtype == torch.bfloat16:
        return F.gelu(x, approximate="tanh")
    return _SigmoidForm.apply(x) if torch.is_grad_enabled() else _gate(x).mul_(x)


def _gate(x: Tensor) -> Tensor:
    """Return sigmoid(_SLOPE x + _CUBIC x^3)."""
    return torch.addcmul(x.new_tensor(_SLOPE), x, x, value=_CUBIC).mul_(x).sigmoid_()


class _SigmoidForm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:  # noqa: ANN001
        gate = _gate(x)
        ctx.save_for_backward(x, gate)
        return x * gate

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:  # noqa: ANN001
        x, gate = ctx.saved_tensors
        # d/dx = gate + gate (1 - gate) x (_SLOPE + 3 _CUBIC x^2)
        rise = torch.addcmul(x.new_tensor(_SLOPE), x, x, value=3.0 * _CUBIC).mul_(x)
        rise.mul_(torch.addcmul(gate, gate, gate, value=-1.0))
        return rise.add_(gate).mul_(grad)
