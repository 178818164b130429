"""The plain reference: what a careful author writes in PyTorch without caring for speed beyond vectorising.

Eager GPT-2 in float32 with scaled-dot-product attention, frozen weights without gradients, LoRA by matrix products,
logits of all positions, PyTorch's own cross-entropy and AdamW; scoring takes one document at a time, its windows as
a batch. It computes the same functions as sublora (tests/test_benchmarks.py compares them) and shares with it only
what defines them: seeds, the projection of w, and the choice of batches.

Shape legend: N sequences, T positions, C width, D LoRA parameters, A candidates of the smoothing.
"""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sublora import config
from sublora.bounds.smoothing import Smoothing, TokenSmoothing, parse_smoothing
from sublora.data.dataset import TokenDataset
from sublora.models.spaces import HEAD, lora_name, lora_space
from sublora.models.weights import random_weights
from sublora.runs.build import build_run
from sublora.training.rate_phase import training_documents
from sublora.training.step import learning_rate


class Attention(nn.Module):
    def __init__(self, model: config.Model) -> None:
        super().__init__()
        self.heads = model.n_head
        self.c_attn = nn.Linear(model.n_embd, 3 * model.n_embd)
        self.c_proj = nn.Linear(model.n_embd, model.n_embd)

    def forward(self, x_NTC: Tensor, query_delta: Tensor, value_delta: Tensor) -> Tensor:
        n, t, c = x_NTC.shape
        query, key, value = self.c_attn(x_NTC).split(c, dim=2)
        parts = (query + query_delta, key, value + value_delta)
        heads = [part.view(n, t, self.heads, c // self.heads).transpose(1, 2) for part in parts]
        return self.c_proj(F.scaled_dot_product_attention(*heads, is_causal=True).transpose(1, 2).reshape(n, t, c))


class Block(nn.Module):
    def __init__(self, model: config.Model) -> None:
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(model.n_embd), nn.LayerNorm(model.n_embd)
        self.attn = Attention(model)
        self.mlp = nn.ModuleDict(
            {
                "c_fc": nn.Linear(model.n_embd, 4 * model.n_embd),
                "c_proj": nn.Linear(4 * model.n_embd, model.n_embd),
            }
        )


class PlainGPT(nn.Module):
    """GPT-2 with LoRA on query, value and head; its LoRA matrices come in one vector theta, see sublora.models.lora."""

    def __init__(self, settings: config.Settings, vocab_size: int, seed: int) -> None:
        super().__init__()
        model = settings.model
        self.space = lora_space(model, settings.lora, vocab_size)
        self.scale, self.dropout = settings.lora.alpha / settings.lora.rank, settings.lora.dropout
        self.wte = nn.Embedding(vocab_size, model.n_embd)
        self.wpe = nn.Embedding(model.context_length, model.n_embd)
        self.h = nn.ModuleList([Block(model) for _ in range(model.n_layer)])
        self.ln_f = nn.LayerNorm(model.n_embd)
        weights = random_weights(model, vocab_size, seed)
        self.load_state_dict({name: torch.from_numpy(value) for name, value in weights.items()})
        self.requires_grad_(False)

    def forward(self, tokens_NT: Tensor, theta_D: Tensor) -> Tensor:
        """Logits of all positions (N x T x V)."""
        lora = {p.name: theta_D[p.start : p.stop].view(p.shape) for p in self.space.parameters}

        def delta(group: str, target: str, x: Tensor) -> Tensor:
            down = F.linear(F.dropout(x, self.dropout, self.training), lora[lora_name(group, target, "A")])
            return F.linear(down, lora[lora_name(group, target, "B")]) * self.scale

        x_NTC = self.wte(tokens_NT) + self.wpe(torch.arange(tokens_NT.shape[1], device=tokens_NT.device))
        for layer, block in enumerate(self.h):
            normed = block.ln_1(x_NTC)
            deltas = [delta(str(layer), target, normed) for target in ("query", "value")]
            x_NTC = x_NTC + block.attn(normed, *deltas)
            inner = F.gelu(block.mlp["c_fc"](block.ln_2(x_NTC)), approximate="tanh")
            x_NTC = x_NTC + block.mlp["c_proj"](inner)
        x_NTC = self.ln_f(x_NTC)
        return F.linear(x_NTC, self.wte.weight) + delta(HEAD, "head", x_NTC)


class ReferenceTrainer:
    """The training of a run with a uniform allocation, before its rate phase, one optimizer step at a time."""

    def __init__(
        self, settings: config.Settings, spec: config.RunSpec, dataset: TokenDataset, device: torch.device
    ) -> None:
        arm = spec.allocation, settings.message.quantizer, settings.lora.init, settings.base.kind
        if arm != ("uniform", "entropy", "zero_b", "random"):
            raise ValueError(
                "the reference trains uniform allocations of a random base for the entropy quantizer, from B = 0, only"
            )
        self.settings, self.device, training = settings, device, settings.training
        self.model = PlainGPT(settings, dataset.vocab_size, spec.seed).to(device)
        run = build_run(settings, spec, dataset, Path(), device)
        self.subspace = run.subspace
        self.loss_sum = torch.zeros((), device=device)
        self.sampler = training_documents(run)
        self.optimizer = torch.optim.AdamW(
            self.subspace.parameters(),
            lr=training.learning_rate,
            betas=training.betas,
            eps=training.epsilon,
            weight_decay=training.weight_decay,
        )

    def step(self, step: int) -> None:
        training, smoothing = self.settings.training, parse_smoothing(self.settings.rate_phase.smoothing)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(
                step,
                steps=training.steps,
                peak=training.learning_rate,
                final=training.final_learning_rate,
                warmup_steps=round(training.warmup_fraction * training.steps),
            )
        self.optimizer.zero_grad()
        for arrays in self.sampler.micro_batches(step):
            inputs, targets, weights, counts = (torch.from_numpy(part).to(self.device) for part in arrays)
            logits = self.model(inputs, self.subspace())
            losses = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
            loss = batch_loss(-losses.view_as(weights), weights, counts, smoothing, logits.shape[-1])
            loss.backward()
            self.loss_sum += loss.detach()
        nn.utils.clip_grad_norm_(self.subspace.parameters(), training.gradient_clip)
        self.optimizer.step()


def batch_loss(log_p_NT: Tensor, weights_NT: Tensor, counts_N: Tensor, smoothing: Smoothing, vocab_size: int) -> Tensor:
    """What a step minimizes, nats per token: of windows with these weights, of documents with these many targets."""
    if isinstance(smoothing, TokenSmoothing):
        smoothed_NT = -((1.0 - smoothing.a) * log_p_NT.exp() + smoothing.a / vocab_size).log()
        return (smoothed_NT * weights_NT).sum()
    share_N = weights_NT.sum(1)
    # A document goes on as its window does.
    log_p_N = (log_p_NT * weights_NT).sum(1) / share_N * counts_N
    return -(share_N * log_mixture(log_p_N, counts_N, smoothing.k, vocab_size) / counts_N).sum()


def log_mixture(log_p_N: Tensor, counts_N: Tensor, k: int, vocab_size: int) -> Tensor:
    """ln((1 - 2^-k) P + 2^-k V^-T) of documents."""
    network_N = log_p_N + math.log1p(-(2.0**-k))
    return torch.logaddexp(network_N, -k * math.log(2.0) - counts_N * math.log(vocab_size))


@torch.no_grad()
def score_documents(
    model: PlainGPT,
    theta_D: Tensor,
    documents: Sequence[np.ndarray],
    *,
    eot_id: int,
    stride: int,
    smoothing: Sequence[Smoothing],
    windows_at_once: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Losses (documents x A), bits per token, and ranks of all targets, as sublora.losses defines both."""
    model.eval()
    context, device = model.wpe.num_embeddings, theta_D.device
    losses, ranks = [], []
    for document in documents:
        ended = np.concatenate([[eot_id], document, [eot_id]]).astype(np.int64)
        inputs, targets = torch.from_numpy(ended[:-1]).to(device), torch.from_numpy(ended[1:]).to(device)
        count = len(inputs)
        length = min(context, count)
        starts = torch.arange(0, max(count - context, 0) + stride, stride, device=device)
        first_new = torch.cat([starts[:1], starts[:-1] + context])
        positions = starts[:, None] + torch.arange(length, device=device)
        log_p, rank = [], []
        for start in range(0, len(starts), windows_at_once):
            where = positions[start : start + windows_at_once]
            inside = where.clamp(max=count - 1)  # the last window is padded on the right, where nothing is scored
            logits = model(inputs[inside], theta_D)
            wanted = targets[inside][..., None]
            is_new = (where >= first_new[start : start + windows_at_once, None]) & (where < count)
            log_p.append(F.log_softmax(logits, dim=-1).gather(-1, wanted)[..., 0][is_new])
            rank.append(((logits >= logits.gather(-1, wanted)).sum(-1) - 1)[is_new])
        scored = torch.cat(log_p).double()
        rows = [document_loss_bits(scored, each, logits.shape[-1]) for each in smoothing]
        losses.append(torch.stack(rows).cpu().numpy())
        ranks.append(torch.cat(rank).cpu().numpy())
    return np.stack(losses), np.concatenate(ranks)


def document_loss_bits(log_p_T: Tensor, smoothing: Smoothing, vocab_size: int) -> Tensor:
    """Bits per token of a document (), from ln p of its T targets."""
    if isinstance(smoothing, TokenSmoothing):
        return -((1.0 - smoothing.a) * log_p_T.exp() + smoothing.a / vocab_size).log2().mean()
    count = torch.tensor(float(len(log_p_T)), dtype=log_p_T.dtype, device=log_p_T.device)
    return -log_mixture(log_p_T.sum(), count, smoothing.k, vocab_size) / count / math.log(2.0)
