"""What near duplicates mean for the best run's bound, in a sentence."""

import json
from pathlib import Path
from typing import Any

from sublora.system.errors import UserError

FORMAT = 1
"""Of near_duplicates.json; a reader refuses every other one."""


def near_duplicates_sentence(path: Path | str, run: str, data_hash: str) -> str:
    """From data/{dataset}/near_duplicates.json; UserError if it is damaged, of other data or older than the run."""
    facts = _read(Path(path), data_hash)
    bounds = facts["runs"].get(run)
    if bounds is None:
        raise UserError(f"{path}: written before run {run} was scored; sublora duplicates --config FILE")
    return (
        f"Near duplicates: {facts['test_mostly_shared']:.0%} of the test documents share over half of their "
        f"{facts['rule']['shingle_bytes']}-byte shingles with training documents, and the {facts['n_documents']:,} "
        f"training documents form {facts['n_clusters']:,} clusters. If only one document of each counted, the bound of "
        f"this run alone would be {bounds['bound_value_by_clusters']:.3f} instead of {bounds['bound_value']:.3f} bits "
        f"per token; with {facts['n_mostly_new']:,} documents, as many as do not share most of their text, "
        f"{bounds['bound_value_by_mostly_new']:.3f}. This is a sensitivity, not a certificate."
    )


def _read(path: Path, data_hash: str) -> dict[str, Any]:
    mend = "delete it, or measure again (sublora duplicates --config FILE)"
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: not readable ({error}); {mend}") from None
    if not isinstance(facts, dict) or facts.get("format") != FORMAT:
        raise UserError(f"{path}: not of format {FORMAT}; {mend}")
    if facts["data_hash"] != data_hash:
        raise UserError(f"{path}: of data {facts['data_hash']}, expected {data_hash}; {mend}")
    return facts
