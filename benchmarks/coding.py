"""Quantizing, encoding and decoding a trained w: milliseconds, on the CPU."""

import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.synthetic import settings_with
from sublora import config
from sublora.coding.payload import MessageContents, read_payload, write_payload
from sublora.coding.quantizer import quantize_plain, round_for_rate
from sublora.runs.encode import PRICES_PER_BIT
from sublora.runs.message import payload_context
from sublora.system.streams import generator

REPETITIONS = 7


def run(*, budgets: tuple[int, ...] = (1000, 2000), repetitions: int | None = None) -> dict[str, Any]:
    """Milliseconds and bits by quantizer and budget; the decoded message is checked against the encoded one."""
    return {
        quantizer: {str(budget): _measure(quantizer, budget, repetitions or REPETITIONS) for budget in budgets}
        for quantizer in ("plain", "entropy")
    }


def _measure(quantizer: str, budget: int, repetitions: int) -> dict[str, float]:
    settings = settings_with({"message": {"quantizer": quantizer}})
    context = payload_context(settings, config.RunSpec(budget=budget, allocation="uniform", seed=42))
    w = generator("benchmark w", budget).laplace(size=budget)
    step = settings.rate_phase.relative_step * float(np.std(w))

    def quantize() -> Any:
        """As `sublora encode`: one quantization, or the candidates of the entropy scheme."""
        if quantizer == "plain":
            return quantize_plain(w, settings.message.levels)
        return [round_for_rate(w, step, price * step**2) for price in PRICES_PER_BIT][0]

    weights, quantize_ms = _median_ms(quantize, repetitions)
    contents = MessageContents(weights, (), 0)
    payload, encode_ms = _median_ms(lambda: write_payload(contents, context), repetitions)
    (decoded, _), decode_ms = _median_ms(lambda: read_payload(payload.data, context), repetitions)
    if not np.array_equal(decoded.weights.values(), weights.values()):
        raise RuntimeError(f"{quantizer}, d = {budget}: the decoded message differs from the encoded one")
    return {"quantize_ms": quantize_ms, "encode_ms": encode_ms, "decode_ms": decode_ms, "payload_bits": payload.bits}


def _median_ms(work: Callable[[], Any], repetitions: int) -> tuple[Any, float]:
    result, times = None, []
    for _ in range(repetitions):
        start = time.perf_counter()
        result = work()
        times.append(1e3 * (time.perf_counter() - start))
    return result, statistics.median(times)
