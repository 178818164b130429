"""A small Llama that has learned to write, and documents that it has to be adapted to, for `sublora adapt`."""

import json
from pathlib import Path

import numpy as np
import torch
from huggingface_samples import WORDS, tiny_model, tiny_tokenizer

from sublora.system.streams import generator

VOCABULARY = 300
LEARNING_STEPS = 150


def sentences(count: int, words: list[str], seed: int) -> list[str]:
    """Distinct sentences of random words."""
    rng = generator(seed, "sentences of adapt")
    return [f"{i} " + " ".join(rng.choice(words, size=int(rng.integers(8, 24)))) for i in range(count)]


def write_adapt_inputs(folder: Path, *, documents: int) -> None:
    """Write model/, which has learned sentences of all words, and documents/, which hold few of the words."""
    general = sentences(400, WORDS, seed=1)
    tokenizer = tiny_tokenizer(general, VOCABULARY - 4)
    model = tiny_model("Llama", VOCABULARY, hidden_size=32, intermediate_size=48)
    torch.set_num_threads(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(0.25)
    rows = [ids[:32] + [0] * (32 - len(ids)) for ids in tokenizer(general).input_ids]
    tokens, rng = torch.tensor(rows), np.random.default_rng(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(LEARNING_STEPS):
        batch = tokens[torch.from_numpy(rng.choice(len(tokens), 16))]
        loss = model(input_ids=batch, labels=batch).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.save_pretrained(folder / "model")  # type: ignore[operator]
    tokenizer.save_pretrained(folder / "model")
    texts = sentences(documents, WORDS[:6], seed=2)
    (folder / "documents").mkdir(parents=True)
    lines = [json.dumps({"text": text, "customer": f"customer {i % 60}"}) for i, text in enumerate(texts)]
    (folder / "documents/tickets.jsonl").write_text("\n".join(lines), encoding="utf-8")
