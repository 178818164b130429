"""`sublora certify --against` on files of every kind, and in Python."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from base_samples import complaint

import sublora
from sublora.bounds.anchor import AnchoredMixture
from sublora.tools.certify_pairs import certify_pairs_file

OPTIONS = {"column": None, "id_column": None, "filter_name": None, "json_path": None}
HELD_OUT = {"lower": 0.0, "upper": 1.0, "direction": "higher"}


def accuracies() -> tuple[np.ndarray, np.ndarray]:
    """Right or wrong, of a model that is right on every eighth example where the reference is not."""
    reference = (np.arange(400) % 2).astype(float)
    return np.maximum(reference, np.arange(400) % 8 == 0), reference


def write(path: Path, values: np.ndarray, ids: np.ndarray) -> Path:
    """One file of values with their ids, by its suffix."""
    table = pd.DataFrame({"id": [f"q-{i}" for i in ids], "acc": values})
    if path.suffix == ".csv":
        table.to_csv(path, index=False)
    elif path.suffix == ".parquet":
        table.to_parquet(path)
    elif path.suffix == ".npz":
        np.savez(path, id=table["id"].to_numpy(dtype=str), acc=values)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in table.to_dict("records")))
    return path


@pytest.mark.parametrize("suffix", [".csv", ".parquet", ".npz", ".jsonl", ".ndjson"])
def test_two_files_are_paired_by_what_identifies_their_examples(tmp_path: Path, suffix: str) -> None:
    model, reference = accuracies()
    order = np.random.default_rng(0).permutation(400)
    first = write(tmp_path / f"a{suffix}", model, np.arange(400))
    second = write(tmp_path / f"b{suffix}", reference[order], order)
    options = OPTIONS | {"column": "acc", "id_column": "id"}
    found = certify_pairs_file(first, against=str(second), **options, **HELD_OUT)
    expected = sublora.certify(model, against=reference, **HELD_OUT)
    assert found == expected and found.verdict == "better" and found.low > 0.0
    fewer = write(tmp_path / f"c{suffix}", reference[:-2], np.arange(398))
    words = complaint(lambda: certify_pairs_file(first, against=str(fewer), **options, **HELD_OUT))
    assert "lacks 2 examples" in words and "(q-398, q-399)" in words


def test_two_columns_of_one_file(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    model, reference = accuracies()
    pd.DataFrame({"model": model, "base": reference}).to_csv(tmp_path / "both.csv", index=False)
    options = OPTIONS | {"column": "model", "json_path": tmp_path / "out.json"}
    found = certify_pairs_file(tmp_path / "both.csv", against="base", **options, **HELD_OUT)
    written = json.loads((tmp_path / "out.json").read_text())
    assert written["kind"] == "comparison" and written["low"] == found.low and written["on_trust"]
    text = capsys.readouterr().out
    assert "better than the reference by at least" in text and "neither model was trained, tuned or picked" in text
    assert "name the model's values" in complaint(
        lambda: certify_pairs_file(tmp_path / "both.csv", against="base", **OPTIONS, **HELD_OUT)
    )
    assert "other.csv: there is no such file" in complaint(
        lambda: certify_pairs_file(tmp_path / "both.csv", against="other.csv", **options, **HELD_OUT)
    )


@pytest.mark.parametrize(
    "change,words",
    [
        ({"direction": None}, "direction says which values are better"),
        ({"direction": "up"}, "direction says which values are better"),
        ({"code_bits": 10.0}, "give excess_upper"),
        ({"subsample": True}, "give excess_upper"),
        ({"n": 17}, "leave n out"),
        ({"alternatives": 2}, "no meaning with against"),
        ({"upper": 0.5}, "outside"),
        ({"excess_upper": 0.1}, "needs n, code_bits, and losses"),
    ],
)
def test_a_comparison_guesses_nothing(change: dict, words: str) -> None:
    model, reference = accuracies()
    with pytest.raises(ValueError, match=words):
        sublora.certify(model, against=reference, **(HELD_OUT | change))


def test_without_a_reference_nothing_has_changed() -> None:
    losses = np.linspace(0.2, 0.4, 50)
    assert sublora.certify(losses, code_bits=10.0, n=50, lower=0.0, upper=1.0).quoted == "betting"
    for missing in ({"n": 50}, {"code_bits": 10.0}):
        with pytest.raises(ValueError, match="n and code_bits are needed"):
            sublora.certify(losses, lower=0.0, upper=1.0, **missing)


def test_a_language_model_mixed_with_its_base_is_certified_by_its_excess() -> None:
    """`anchored_losses` makes the losses that the anchored bound is about, whatever the network does."""
    random, n, vocab_size = np.random.default_rng(1), 4000, 300
    targets = random.integers(20, 60, n)
    base_log_p = -targets * random.uniform(2.0, 3.0, n)
    log_p = base_log_p + targets * 0.2 * random.random(n)
    log_p[:40] = -np.inf  # what the network has no probability for costs k / T more than the base does
    log_p[40] = np.nan
    made = sublora.anchored_losses(log_p, base_log_p, targets, vocab_size=vocab_size, k=6, k0=12, min_targets=20)
    lower, upper = made.base_range
    found = sublora.certify(
        made.losses_D,
        against=made.base_losses_D,
        excess_upper=made.excess_upper,
        code_bits=300.0,
        n=n,
        lower=lower,
        upper=upper,
    )
    assert made.excess_upper == 6 / 20 and (made.losses_D - made.base_losses_D).max() <= made.excess_upper
    assert 0.0 < found.gain < -found.mean_excess
    direct = sublora.certify(
        made.losses_D, code_bits=300.0, n=n, lower=0.0, upper=AnchoredMixture(6, 12).loss_range_bits(vocab_size, 20)[1]
    )
    assert made.losses_D.mean() < found.value < direct.value
    with pytest.raises(ValueError, match="fewer than min_targets"):
        sublora.anchored_losses(log_p, base_log_p, targets, vocab_size=vocab_size, k=6, k0=12, min_targets=30)


def test_the_command(tmp_path: Path) -> None:
    model, reference = accuracies()
    path = write(tmp_path / "a.csv", model, np.arange(400))
    other = write(tmp_path / "b.csv", reference, np.arange(400))
    command = [sys.executable, "-m", "sublora.cli", "certify", str(path), "--lower", "0", "--upper", "1"]
    words = ["--against", str(other), "--column", "acc", "--id-column", "id", "--direction", "higher"]
    done = subprocess.run([*command, *words], capture_output=True, text=True)
    assert done.returncode == 0 and "by at least" in done.stdout, done.stderr
    for wrong, line in (
        (["--direction", "lower"], "--direction: only with --against"),
        (["--code-bits", "3"], "--code-bits and --n are needed"),
    ):
        done = subprocess.run([*command, *wrong], capture_output=True, text=True)
        assert done.returncode == 2 and line in done.stderr and "Traceback" not in done.stderr
