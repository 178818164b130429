"""How well does a small language model of transformers predict new lines of code, in bits per byte?

A random Llama of two layers is frozen and adapted by LoRA to lines of code: 100 numbers, in transformers' Trainer. The
adapted network mixed with its base, line by line, is certified, so the bound pays for what adapting changed. The base's
weight is chosen on the training lines, and the message names it. A pretrained model takes no other line than
`from_pretrained`.

    python examples/language_model.py
"""

import copy
import math
import tempfile

import numpy as np
import torch
from report import Result, result, show
from texts import BYTES, code
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

import sublora
from sublora.bounds.anchor import MixtureLosses

HELD_OUT = 2000
WEIGHTS = (2, 4, 8, 12)
"""k: the base has the weight 2^-k in the mixture."""
GUESSING_WEIGHT = 12
"""k0: guessing has the weight 2^-k0 beside the base; fixed beforehand."""
VOCABULARY = 256


def network() -> LlamaForCausalLM:
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    tokens = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
    return LlamaForCausalLM(LlamaConfig(vocab_size=VOCABULARY, num_key_value_heads=2, **sizes, **tokens))


HEADROOM_NATS = 7.0
"""About what lies between the loss and its upper end: a bound grows by this times ln(2) / n with every bit."""


class PricedTrainer(Trainer):
    """Adds to a wrapped module's loss what its message does to the bound."""

    def compute_loss(self, model, inputs, return_outputs=False, **options):  # type: ignore[no-untyped-def]
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True, **options)
        price = HEADROOM_NATS * math.log(2) / len(self.train_dataset)
        loss = loss + price * sublora.message_bits(model)
        return (loss, outputs) if return_outputs else loss


def train(model: sublora.Wrapped, lines: np.ndarray) -> None:
    """lines: bytes (documents x BYTES)."""
    rows = [{"input_ids": row, "labels": row} for row in torch.from_numpy(lines)]
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder,
            max_steps=200,
            per_device_train_batch_size=64,
            learning_rate=0.1,
            lr_scheduler_type="cosine",
            save_strategy="no",
            report_to=[],
            remove_unused_columns=False,
            disable_tqdm=True,
            logging_strategy="no",
            seed=0,
        )
        anneal = sublora.AnnealCallback(model, round_from=0.5)
        PricedTrainer(model=model, args=arguments, train_dataset=rows, callbacks=[anneal]).train()


def log_probabilities(model: nn.Module, lines: np.ndarray) -> np.ndarray:
    """ln of the probability of each line's bytes but the first, given those before them (documents,)."""
    model.eval()
    found = []
    with torch.no_grad():
        for batch in torch.from_numpy(lines).split(256):
            log_p = model(input_ids=batch).logits[:, :-1].double().log_softmax(dim=-1)
            found.append(log_p.gather(2, batch[:, 1:, None])[:, :, 0].sum(dim=1))
    return torch.cat(found).numpy()


def mixed(log_p: np.ndarray, base_log_p: np.ndarray, k: int) -> MixtureLosses:
    """Losses of the network mixed with its base, in bits per byte."""
    targets = np.full(len(log_p), BYTES - 1)
    sizes = {"vocab_size": VOCABULARY, "min_targets": BYTES - 1}
    return sublora.anchored_losses(log_p, base_log_p, targets, k=k, k0=GUESSING_WEIGHT, **sizes)


def certified(losses: MixtureLosses, code_bits: float) -> sublora.CertifiedExcess:
    """The bound from the message: one on the base, and one on what the network loses more."""
    lower, upper = losses.base_range
    return sublora.certify(
        losses.losses_D,
        against=losses.base_losses_D,
        excess_upper=losses.excess_upper,
        code_bits=code_bits,
        n=len(losses.losses_D),
        lower=lower,
        upper=upper,
    )


def main() -> Result:
    lines = code()
    held_out, training = lines[:HELD_OUT], lines[HELD_OUT:]
    base = network()
    frozen, receivers = copy.deepcopy(base), copy.deepcopy(base)
    model = sublora.wrap(base, ["q_proj", "v_proj", "lm_head"], budget=100, seed=0)
    train(model, training)
    of_base = [log_probabilities(frozen, part) for part in (training, held_out)]
    log_p, bits = log_probabilities(model, training), sublora.message_bits(model).item()
    bounds = [certified(mixed(log_p, of_base[0], k), bits).value for k in WEIGHTS]
    message = sublora.encode(model, choice=int(np.argmin(bounds)), choices=len(WEIGHTS))

    predictor, read = sublora.decode(message.data, receivers)
    k = WEIGHTS[read.choice]
    scored = [
        mixed(log_probabilities(predictor, part), base_log_p, k)
        for part, base_log_p in zip((training, held_out), of_base, strict=True)
    ]
    found = certified(scored[0], message.bits)
    return result(
        "language model, bits",
        message,
        *(losses.losses_D for losses in scored),
        lower=0.0,
        upper=found.upper + found.excess_upper,
        guessing=math.log2(VOCABULARY),
        bound=found.value,
    )


if __name__ == "__main__":
    show([main()])
