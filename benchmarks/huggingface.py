"""One GPT-2 in two ways: this library's own network, and transformers' with hooks. How much faster is the first?

    python -m benchmarks.huggingface [--layers 12] [--width 768] [--context 1024] [--sequences 1] [--repetitions 3]

Both sides have the same weights and adapters of the same rank on attention (query and value here, the fused c_attn
there) and on the head. A unit of training is a token through forward and backward pass down to theta; of scoring, a
token whose log-probability is taken. Prints medians, and the median of ratios of neighbours.
"""

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.hardware import Machine, this_machine
from benchmarks.timing import compared
from sublora import config
from sublora.models.adapted import LoraNetwork, lora_network
from sublora.models.gpt import DTYPES, GPT
from sublora.models.huggingface import HuggingFaceBackbone, read_pretrained
from sublora.models.protocol import Network
from sublora.models.spaces import lora_space
from sublora.models.weights import pretrained_weights

VOCABULARY = 50257
RANK, ALPHA = 4, 32.0


def networks(folder: Path, given: argparse.Namespace, machine: Machine) -> tuple[Network, Network]:
    """(ours, transformers') with the weights of one GPT-2 written to `folder`."""
    import transformers

    sizes = {"n_layer": given.layers, "n_embd": given.width, "n_head": max(1, given.width // 64)}
    torch.manual_seed(0)
    settings = transformers.GPT2Config(**sizes, n_positions=given.context, vocab_size=VOCABULARY)
    transformers.GPT2LMHeadModel(settings).save_pretrained(folder)
    dtype, use_compiler = DTYPES[machine.dtype], machine.is_gpu
    common = {"rank": RANK, "alpha": ALPHA, "dropout": 0.0, "init": "zero_b"}
    model = config.Model(kind="gpt2", **sizes, context_length=given.context, init_std=0.02)
    gpt = GPT(model, VOCABULARY, dtype=dtype, use_compiler=use_compiler)
    gpt.load(pretrained_weights(folder, model, VOCABULARY))
    space = lora_space(model, config.Lora(targets=("query", "value", "head"), **common), VOCABULARY)
    ours = LoraNetwork(gpt.to(machine.device), space, base_sha256="", scale=ALPHA / RANK)
    base, lora = read_pretrained(folder), config.Lora(targets=("c_attn", "head"), **common)
    backbone = HuggingFaceBackbone(
        base,
        config.HuggingFaceModel(kind="huggingface", n_layer=given.layers, context_length=given.context),
        lora,
        device=machine.device,
        dtype=dtype,
        use_compiler=use_compiler,
    )
    theirs, _ = lora_network(backbone, backbone.space, lora, base_sha256=base.sha256, seed=0)
    return ours, theirs


def start_of(network: Network) -> torch.Tensor:
    """A theta at which nothing is zero."""
    values_D = np.random.default_rng(0).normal(0.0, 0.01, network.space.size)
    return torch.from_numpy(values_D.astype(np.float32)).to(network.device)


def train_once(network: Network, tokens_NT: torch.Tensor) -> int:
    theta_D = start_of(network).requires_grad_()
    model = network.at(theta_D)
    hidden_KC = model.hidden(tokens_NT[:, :-1], training=True).flatten(0, 1)
    model.cross_entropy(hidden_KC, tokens_NT[:, 1:].flatten(), training=True).backward()
    return tokens_NT[:, 1:].numel()


@torch.no_grad()
def score_once(network: Network, tokens_NT: torch.Tensor) -> int:
    model = network.at(start_of(network))
    model.target_scores(model.hidden(tokens_NT[:, :-1]).flatten(0, 1), tokens_NT[:, 1:].flatten())
    return tokens_NT[:, 1:].numel()


def run(machine: Machine, given: argparse.Namespace) -> dict[str, Any]:
    """Rates and ratios of training and scoring, ours against transformers'."""
    with tempfile.TemporaryDirectory() as folder:
        ours, theirs = networks(Path(folder), given, machine)
    tokens = np.random.default_rng(1).integers(VOCABULARY, size=(given.sequences, given.context + 1))
    tokens_NT = torch.from_numpy(tokens).to(machine.device)
    results = {}
    for name, work in (("training", train_once), ("scoring", score_once)):
        for network in (ours, theirs):
            work(network, tokens_NT)
        results[name] = compared(
            machine,
            lambda work=work: work(ours, tokens_NT),  # type: ignore[misc]
            lambda work=work: work(theirs, tokens_NT),  # type: ignore[misc]
            given.repetitions,
        )
    return results


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.huggingface", description=__doc__.splitlines()[0])
    for name, value in (("layers", 12), ("width", 768), ("context", 1024), ("sequences", 1), ("repetitions", 3)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--threads", type=int)
    given = parser.parse_args()
    machine = this_machine(given.threads)
    torch.set_num_threads(machine.threads)
    results = run(machine, given)
    print(json.dumps({"machine": machine.name, "sizes": vars(given), **results}, indent=2))
    for name, result in results.items():
        ours, theirs = (result[side]["tokens_per_second"] for side in ("product", "reference"))
        print(f"{name}: ours {ours:,.0f} tokens/s, transformers' {theirs:,.0f}, ratio {result['ratio']:.2f}")


if __name__ == "__main__":
    main()
