"""The plain reference: what a careful author writes in PyTorch without caring for speed beyond vectorising.

Eager GPT-2 in float32 with scaled-dot-product attention, frozen weights without gradients, LoRA by matrix products,
logits of all positions, PyTorch's own cross-entropy and AdamW; scoring takes one document at a time, its windows as
a batch. It computes the same functions as sublora (tests/test_benchmarks.py compares them) and shares with it only
what defines them: seeds, the projection of w, and the choice of batches.

Shape legend: N sequences, T positions, C width, D LoRA parameters, A smoothing values.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sublora import config
from sublora.data.dataset import TokenDataset
from sublora.models.lora_space import HEAD, lora_name, lora_space
from sublora.models.weights import random_weights
from sublora.runs.build import build_run
from sublora.training.rate_phase import training_documents
from sublora.training.schedule import learning_rate


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
        if (spec.allocation, settings.message.quantizer, settings.lora.init) != ("uniform", "entropy", "zero_b"):
            raise ValueError("the reference trains uniform allocations for the entropy quantizer, from B = 0, only")
        self.settings, self.device, training = settings, device, settings.training
        self.model = PlainGPT(settings, dataset.vocab_size, spec.seed).to(device)
        run = build_run(settings, spec, dataset, device)
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
        training, smoothing = self.settings.training, self.settings.rate_phase.smoothing
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(
                step,
                steps=training.steps,
                peak=training.learning_rate,
                final=training.final_learning_rate,
                warmup_steps=round(training.warmup_fraction * training.steps),
            )
        self.optimizer.zero_grad()
        arrays = self.sampler.batch(step)
        inputs, targets, weights = (torch.from_numpy(part).to(self.device) for part in arrays)
        rows = training.micro_batch_sequences
        for start in range(0, len(inputs), rows):
            part = slice(start, start + rows)
            logits = self.model(inputs[part], self.subspace())
            losses = F.cross_entropy(logits.flatten(0, 1), targets[part].flatten(), reduction="none")
            smoothed = -((1.0 - smoothing) * (-losses).exp() + smoothing / logits.shape[-1]).log()
            loss = (smoothed * weights[part].flatten()).sum()
            loss.backward()
            self.loss_sum += loss.detach()
        nn.utils.clip_grad_norm_(self.subspace.parameters(), training.gradient_clip)
        self.optimizer.step()


@torch.no_grad()
def score_documents(
    model: PlainGPT,
    theta_D: Tensor,
    documents: Sequence[np.ndarray],
    *,
    eot_id: int,
    stride: int,
    smoothing: Sequence[float],
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
        stops = torch.tensor([*range(length, count, stride), count], device=device)
        first_new = torch.cat([torch.zeros(1, dtype=torch.long, device=device), stops[:-1]])
        positions = stops[:, None] - length + torch.arange(length, device=device)
        log_p, rank = [], []
        for start in range(0, len(stops), windows_at_once):
            where = positions[start : start + windows_at_once]
            logits = model(inputs[where], theta_D)
            wanted = targets[where][..., None]
            is_new = where >= first_new[start : start + windows_at_once, None]
            log_p.append(F.log_softmax(logits, dim=-1).gather(-1, wanted)[..., 0][is_new])
            rank.append(((logits >= logits.gather(-1, wanted)).sum(-1) - 1)[is_new])
        p = torch.cat(log_p).double().exp()
        rows = [-((1.0 - a) * p + a / logits.shape[-1]).log().mean() / math.log(2.0) for a in smoothing]
        losses.append(torch.stack(rows).cpu().numpy())
        ranks.append(torch.cat(rank).cpu().numpy())
    return np.stack(losses), np.concatenate(ranks)
