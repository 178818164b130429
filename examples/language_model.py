"""How well does a small language model of transformers predict new lines of code, in bits per byte?

A random Llama of two layers is frozen and adapted by LoRA to lines of code: 100 numbers, in transformers' Trainer.
Which smoothing is best is asked of the training lines, and the message names it. A pretrained model takes no other line
than `from_pretrained`.

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
from sublora.bounds.smoothing import TokenSmoothing

HELD_OUT = 2000
SMOOTHINGS = [TokenSmoothing(2.0**-k) for k in (2, 4, 6, 8)]
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


def target_probabilities(model: nn.Module, lines: np.ndarray) -> np.ndarray:
    """The probability of each byte but the first, given those before it (documents x BYTES - 1)."""
    model.eval()
    found = []
    with torch.no_grad():
        for batch in torch.from_numpy(lines).split(256):
            p = model(input_ids=batch).logits[:, :-1].double().softmax(dim=-1)
            found.append(p.gather(2, batch[:, 1:, None])[:, :, 0])
    return torch.cat(found).numpy()


def losses_bits(p: np.ndarray, smoothing: TokenSmoothing) -> np.ndarray:
    """Bits per byte of each line under the smoothed predictor (1 - a) p + a / V."""
    return -np.log2((1.0 - smoothing.a) * p + smoothing.a / VOCABULARY).mean(axis=1)


def main() -> Result:
    lines = code()
    held_out, training = lines[:HELD_OUT], lines[HELD_OUT:]
    base = network()
    receivers = copy.deepcopy(base)
    model = sublora.wrap(base, ["q_proj", "v_proj", "lm_head"], budget=100, seed=0)
    train(model, training)
    p = target_probabilities(model, training)
    choice = int(np.argmin([losses_bits(p, smoothing).mean() for smoothing in SMOOTHINGS]))
    message = sublora.encode(model, choice=choice, choices=len(SMOOTHINGS))

    predictor, read = sublora.decode(message.data, receivers)
    smoothing = SMOOTHINGS[read.choice]
    scored = [losses_bits(target_probabilities(predictor, part), smoothing) for part in (training, held_out)]
    lower, upper = smoothing.loss_range_bits(VOCABULARY, min_targets=BYTES - 1)
    return result("language model, bits", message, *scored, lower=lower, upper=upper, guessing=math.log2(VOCABULARY))


if __name__ == "__main__":
    show([main()])
