"""The objective of a step and its gradient: micro-batches through the network, one pass through the projection."""

import torch
from torch import Tensor

from sublora.bounds.smoothing import parse_smoothing
from sublora.losses.windowed import DocumentWeights, document_loss
from sublora.system.streams import stream_key
from sublora.training.distributed import Peers
from sublora.training.quantization import Price
from sublora.training.rate_phase import RatePhase
from sublora.training.resumable import NonFinite
from sublora.training.run import Run
from sublora.training.transfer import Assemble, Prefetcher


class Objective:
    """The loss of a step's batch, plus in a rate phase the price of the message."""

    def __init__(
        self, run: Run, assemble: Assemble, *, rate: RatePhase | None = None, peers: Peers | None = None
    ) -> None:
        """`assemble` gives inputs and targets (N x T) of a step; windows of documents also have weights and lengths."""
        self._run, self._assemble, self._rate, self._peers = run, assemble, rate, peers or Peers()
        self._rows = run.settings.training.micro_batch_sequences
        self._prefetcher = Prefetcher(run.device)

    def gradient(self, step: int, mask_width: float, trained: list[torch.nn.Parameter]) -> Tensor:
        """Put the gradient into `trained`, summed over all processes; return the loss of the batch in nats ().

        Raises:
            NonFinite: the coefficients cannot be priced, since one is infinite or not a number.
        """
        subspace = self._run.subspace
        batch = self._prefetcher.batch(self._assemble, step)
        w, price = self._rate.forward(step) if self._rate else (subspace.subspace_params, None)
        theta = subspace.theta(w, subspace.masks(mask_width))
        # Through the network, which sees theta as a leaf: the gradient accumulates over micro-batches.
        leaf = theta.detach().requires_grad_()
        loss, gradient_D = self._accumulate(leaf, step, batch)
        for parameter in trained:
            parameter.grad = None
        # Through the projection, once. theta.backward(gradient_D) is the same but imports the compiler's algebra.
        torch.dot(theta, gradient_D).backward(retain_graph=price is not None)
        # Over all processes.
        self._peers.add_up([loss, *(p.grad for p in trained if p.grad is not None)])
        if price is not None:
            self._add_price(price)
        return loss

    def _accumulate(self, leaf_D: Tensor, step: int, batch: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Go backward through the network for this process's micro-batches; return their loss and its gradient (D)."""
        pieces = batch[0].shape[0] // self._rows
        total = torch.zeros((), device=self._run.device)
        for piece in self._peers.share(pieces):
            if self._run.settings.lora.dropout:
                # One stream per micro-batch, so that it does not matter which process computes it.
                torch.manual_seed(stream_key(self._run.spec.seed, "dropout", step, piece) % 2**63)
            model = self._run.network.at(leaf_D)
            rows = slice(piece * self._rows, (piece + 1) * self._rows)
            inputs_NT, targets_NT, *windows = (part[rows] for part in batch)
            hidden_KC = model.hidden(inputs_NT, training=True).flatten(0, 1)
            if windows:
                # With a network as anchor, responsibilities stay near 1 and are dropped: the loss is the plain one.
                mixes = self._rate is not None and self._run.loss.anchoring is None
                smoothing = parse_smoothing(self._rate.state.smoothing) if self._rate and mixes else None
                loss, value = document_loss(model, hidden_KC, targets_NT, DocumentWeights(*windows), smoothing)
            else:
                loss = model.cross_entropy(hidden_KC, targets_NT.flatten(), training=True) / pieces
                value = loss.detach()
            loss.backward()
            total += value
        return total, torch.zeros_like(leaf_D) if leaf_D.grad is None else leaf_D.grad

    @staticmethod
    def _add_price(price: Price) -> None:
        if not price.is_finite():
            raise NonFinite
        price.nats().backward()  # the same in every process, so it is not summed
