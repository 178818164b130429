"""What the settings of a run cost where they are charged and not supposed: the input of `bound_strict`.

A message that names one of R reference configurations, which come with the release, and lists what differs from it can
be decoded by anyone who has the release. The list is a prefix-free code:

    which reference             ceil(log2 R) bits
    number of differing keys    plus one, in Elias' gamma code
    each of them                its index among the K keys that are charged, ceil(log2 K) bits, and the JSON text of its
                                value: the bytes after a leading 1, read as one integer, in Elias' delta code
"""

from sublora import config
from sublora.bounds.run_bounds import SettingsCharge
from sublora.coding.bits import elias_delta_bits, elias_gamma_bits, index_bits
from sublora.config.claim import charged_keys, claim_settings, differing_keys, reference, reference_names, unfit
from sublora.system.digests import canonical_json


def settings_bits(settings: config.Settings, name: str) -> int:
    """Bits of the code that names `settings` by the reference of that name."""
    values, differing = claim_settings(settings), differing_keys(settings, reference(name))
    bits = index_bits(len(reference_names())) + elias_gamma_bits(len(differing) + 1)
    for key in differing:
        text = canonical_json(values[key])
        bits += index_bits(len(charged_keys())) + elias_delta_bits(int.from_bytes(b"\1" + text, "big"))
    return bits


def settings_charge(settings: config.Settings) -> SettingsCharge:
    """The cheapest reference that fits, and the bits it costs to name these settings by it; the reason if none fits."""
    reasons = {name: unfit(settings, name) for name in reference_names()}
    costs = {name: settings_bits(settings, name) for name, reason in reasons.items() if reason is None}
    if not costs:
        return SettingsCharge(None, None, "; ".join(map(str, reasons.values())))
    cheapest = min(costs, key=lambda name: (costs[name], name))
    return SettingsCharge(cheapest, costs[cheapest], None)
