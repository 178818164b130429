"""Learning rate over the steps."""

import math


def learning_rate(step: int, *, steps: int, peak: float, final: float, warmup_steps: int) -> float:
    """Rate of step 0 ... steps - 1: linear from peak / warmup_steps to peak, then a half cosine down to `final`."""
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    progress = (step - warmup_steps) / max(1, steps - 1 - warmup_steps)
    return final + 0.5 * (peak - final) * (1.0 + math.cos(math.pi * min(1.0, progress)))


def warmup_steps(fraction: float, steps: int) -> int:
    """Steps of the linear warm-up, at least 1."""
    return max(1, round(fraction * steps))
