"""The optimizer against torch.optim.AdamW."""

import subprocess
import sys

import torch

from sublora.training.step import AdamW


def parameters() -> list[torch.nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in ((5,), (), (3,))]


def groups_of(p: list[torch.nn.Parameter]) -> list[dict]:
    return [{"params": p[:1], "weight_decay": 0.1}, {"params": p[1:], "lr": 0.3}]


def walk(optimizer, p: list[torch.nn.Parameter], steps: range) -> None:
    for step in steps:
        optimizer.zero_grad()
        # The last parameter has no gradient in the first steps, as the quantization step before its phase.
        (p[0].square().sum() + (p[1] - step).square() + (p[2].sin().sum() if step > 2 else 0.0)).backward()
        optimizer.param_groups[0]["lr"] = 0.1 / (1 + step)
        optimizer.step()


def test_equals_torch_step_by_step():
    mine, theirs = parameters(), parameters()
    walk(AdamW(groups_of(mine), lr=0.1, betas=(0.8, 0.95), eps=1e-6), mine, range(8))
    reference = torch.optim.AdamW(groups_of(theirs), lr=0.1, betas=(0.8, 0.95), eps=1e-6, weight_decay=0.0)
    walk(reference, theirs, range(8))
    for a, b in zip(mine, theirs, strict=True):
        assert torch.equal(a, b)


def test_state_restores_exactly():
    whole, first, second = parameters(), parameters(), parameters()
    walk(AdamW(groups_of(whole), lr=0.1, betas=(0.9, 0.99), eps=1e-8), whole, range(8))
    optimizer = AdamW(groups_of(first), lr=0.1, betas=(0.9, 0.99), eps=1e-8)
    walk(optimizer, first, range(5))
    resumed = AdamW(groups_of(second), lr=0.1, betas=(0.9, 0.99), eps=1e-8)
    resumed.load_state_dict(optimizer.state_dict())
    with torch.no_grad():
        for a, b in zip(second, first, strict=True):
            a.copy_(b)
    walk(resumed, second, range(5, 8))
    for a, b in zip(whole, second, strict=True):
        assert torch.equal(a, b)


def test_the_compiler_is_not_imported():
    code = (
        "import sys, torch\n"
        "from sublora.training.step import AdamW\n"
        "p = torch.nn.Parameter(torch.ones(2)); o = AdamW([{'params': [p]}], lr=0.1, betas=(0.9, 0.99), eps=1e-8)\n"
        "p.sum().backward(); o.step(); assert 'torch._dynamo' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
